"""The profile of a table as one self-contained page: every column with a small picture, the target first."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]
WIDE = 300  # columns that are open at once; the others are folded away
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right;vertical-align:middle}"
    "td:first-child,th:first-child{text-align:left}"
    "tbody tr{content-visibility:auto;contain-intrinsic-size:0 32px}"
    ".asked{background:#f4f7ea}.gone{color:#c4553b}svg{display:block}svg path{fill:#3b6ea5}"
    "small{color:#666}.levels{text-align:left;font-size:12px}"
)
WIDTH, HEIGHT = 150, 28


def page(profile: Json, drawn: Sequence[Json]) -> str:
    """The profile and what is drawn of its columns as HTML."""
    rows, columns = profile["rows_out"], profile["columns"]
    pictures = {one["column"]: one for one in drawn if not one["first"]}
    asked = [_asked_row(one) for one in drawn if one["first"]]
    body = asked + [_row(c, pictures.get(c["column"], {}), rows) for c in columns]
    title = f"{profile['rows_in']:,} rows in, {rows:,} rows out, {len(columns):,} columns"
    return (
        f"<!doctype html><meta charset='utf-8'><title>Table profile</title><style>{STYLE}</style>"
        f"<h1>{title}</h1>{_list('Dropped', _dropped(profile))}{_list('Joins', _joins(profile))}"
        f"{_list('Look at', _odd(columns, rows))}<h2>Columns</h2>{_table(body[:WIDE])}"
        + (
            f"<details><summary>{len(body) - WIDE:,} more columns</summary>{_table(body[WIDE:])}</details>"
            if len(body) > WIDE
            else ""
        )
    )


def _list(title: str, items: Sequence[str]) -> str:
    inside = "".join(f"<li>{item}</li>" for item in items) or "<li>none</li>"
    return f"<h2>{title}</h2><ul>{inside}</ul>"


def _dropped(profile: Json) -> list[str]:
    return [f"{html.escape(reason)}: {count:,}" for reason, count in profile["dropped"].items()]


def _joins(profile: Json) -> list[str]:
    return [
        f"{html.escape(j['table'])}: {j['matched']:,} of {profile['rows_joined']:,} rows "
        f"({100 * j['share']:.1f} %) found a partner, {j['duplicate_keys']:,} repeated keys "
        f"({html.escape(j['rule'])})"
        for j in profile["joins"]
    ]


def _odd(columns: Sequence[Json], rows: int) -> list[str]:
    """Kinds of columns that are worth a look, with the first of each."""
    kinds: dict[str, list[str]] = {
        "without a value": [c["column"] for c in columns if c["nulls"] == rows],
        "mostly missing": [c["column"] for c in columns if rows > c["nulls"] > rows / 2],
        "with one value only": [c["column"] for c in columns if c["distinct"] == 1],
        "with nan": [c["column"] for c in columns if c.get("nan")],
        "with inf": [c["column"] for c in columns if c.get("inf")],
    }
    return [
        f"columns {kind}: {len(names):,} ({html.escape(', '.join(names[:12]))})"
        for kind, names in kinds.items()
        if names
    ]


def _table(rows: Sequence[str]) -> str:
    names = ("column", "", "type", "missing", "distinct", "min", "max", "mean")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _asked_row(one: Json) -> str:
    name = f"<b>{html.escape(one['column'])}</b><br><small>{html.escape(one['text'][:200])}</small>"
    return f"<tr class=asked><td>{name}</td><td>{picture(one)}</td><td colspan=6></td></tr>"


def _row(column: Json, one: Mapping[str, Any], rows: int) -> str:
    about = "~" if column.get("estimated") else ""
    odd = [f"{column[key]:,} {key}" for key in ("nan", "inf") if column.get(key)]
    share = 100 * column["nulls"] / max(1, rows)
    missing = f"{share:.1f} %" if share >= 0.05 else f"{column['nulls']:,}"
    cells = [
        html.escape(column["column"]),
        picture(one),
        html.escape(column["type"].partition("(")[0]),
        f"<span class=gone>{missing}</span>" if share > 50 else missing,
        f"{about}{column['distinct']:,}",
        *(_cell(column[key]) for key in ("min", "max")),
        " ".join([_cell(column["mean"]), *odd]),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if whole else html.escape(str(value)[:60])


def picture(one: Mapping[str, Any]) -> str:
    """Bars of the counts as inline SVG, and in words what they count; empty without counts."""
    counts, labels = one.get("counts") or [], one.get("labels") or []
    if len(counts) < 2 and not labels:
        return ""
    most = max(counts)
    width = WIDTH / len(counts)
    bars = "".join(
        f"M{i * width:.4g} {HEIGHT}v{-max(1, count / most * HEIGHT):.3g}h{width - 0.5:.3g}V{HEIGHT}"
        for i, count in enumerate(counts)
        if count
    )
    about = ", ".join(f"{label}: {count:,}" for label, count in zip(labels, counts, strict=False))
    about = about or " to ".join(one["range"])
    words = f"<title>{html.escape(about)}</title>"
    shown = ", ".join(labels[:4]) if labels else ""
    below = f"<div class=levels>{html.escape(shown[:60])}</div>" if shown else ""
    return f"<svg width={WIDTH} height={HEIGHT} role=img>{words}<path d='{bars}'/></svg>{below}"
