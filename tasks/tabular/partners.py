"""One join: keys that compare exactly, the rows with their partners, and what share of them found one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from overnight.data.content import EXACT
from overnight.errors import DataError
from tasks.tabular import columns
from tasks.tabular.expressions import columns_there
from tasks.tabular.tables import Join

ROW, AT, START, END, NTH = "\0row", "\0at", "\0start", "\0end", "\0nth"
EXAMPLES = 3
Pair = tuple[pl.Expr, pl.Expr]


@dataclass(frozen=True)
class Partner:
    """A join and what it was made of.

    left: the rows before it; right: the table's keys, the columns taken, and the flag; after: all rows, the
    flag true where one was found; repeated: a query for the rows beyond the first of their key
    """

    join: Join
    label: str
    flag: str
    left: pl.LazyFrame
    right: pl.LazyFrame
    after: pl.LazyFrame
    repeated: pl.LazyFrame
    ours: list[pl.Expr]
    floats: list[tuple[str, pl.LazyFrame]]

    @property
    def keys(self) -> list[str]:
        """The columns of `right` that name one of its rows."""
        names = self.right.collect_schema().names()
        return [name for name in names if name.startswith("\0key") or name in (START, END)]

    def refusal(self, rows: int, matched: int) -> str:
        """Why too few found a partner, with ids of both sides; empty when enough did."""
        least = self.join.min_match
        if not rows or matched >= least * rows:
            return ""
        names = list(self.join.keys()) + ([self.join.between.column] if self.join.between else [])
        have = self.after.collect_schema()
        given = [pl.col(name).fill_nan(None) if have[name].is_float() else pl.col(name) for name in names]
        there = pl.all_horizontal(key.is_not_null() for key in given)
        keyed = int(self.after.select(there.sum()).collect(engine="streaming").item())
        if keyed and matched >= least * keyed:
            return ""
        alone = self.after.filter(there & pl.col(self.flag).is_null()).select(names)
        keys = [name for name in self.right.collect_schema() if name.startswith("\0key")]
        missed = self.right.select(keys or pl.col(START, END))
        if keys and not self.join.between and not self.join.asof:
            left = self.left.select(key.alias(name) for name, key in zip(keys, self.ours, strict=True))
            missed = missed.join(left, on=keys, how="anti", maintain_order="left")
        share = f"{100 * matched / max(1, keyed):.1f} %"
        return (
            f"the join with {self.label}: {matched:,} of {keyed:,} rows with a key ({share}) found a "
            f"partner, of {rows:,} rows; the share must be at least {least:g}. "
            f"Ours without one: {_examples(alone)}; "
            f"not met in {self.join.table}: {_examples(missed)}. Correct `by`, or what makes the ids differ "
            "(blanks, types, zones), or set min_match of this join"
        )


def _examples(frame: pl.LazyFrame) -> str:
    found = frame.unique(maintain_order=True).head(EXAMPLES).collect(engine="streaming")
    shown = [row[0] if len(row) == 1 else row for row in found.rows()]
    return ", ".join(map(repr, shown)) or "none"


def join_with(left: pl.LazyFrame, table: pl.LazyFrame, join: Join, label: str, flag: str) -> Partner:
    """The rows with the columns taken beside them. Raises DataError for keys that cannot be compared."""
    have, theirs = left.collect_schema(), table.collect_schema()
    taken = _taken(have, theirs, join)
    pairs = [_comparable(have, theirs, join, mine, other) for mine, other in join.by.items()]
    keys = [f"\0key{i}" for i in range(len(pairs))]
    right = [other.alias(key) for key, (_, other) in zip(keys, pairs, strict=True)]
    right += [pl.col(c).alias(name) for c, name in taken.items()] + [pl.lit(value=True).alias(flag)]
    floats = _floats(left, table, join)
    ours = [mine for mine, _ in pairs]
    if join.asof or join.between:
        near = _near(left, table, right, pairs, join, flag)
        return Partner(join, label, flag, left, near[0], near[1], near[2], ours, floats)
    partners = table.select(right).drop_nulls(keys)
    once = (
        partners.unique(keys, keep="first", maintain_order=True) if join.duplicates == "first" else partners
    )
    plain = [mine.meta.is_column() for mine in ours]
    made = [f"\0mine{i}" for i, _ in enumerate(ours)]
    on = [m.meta.output_name() if p else name for m, p, name in zip(ours, plain, made, strict=True)]
    cast = [m.alias(name) for m, p, name in zip(ours, plain, made, strict=True) if not p]
    rows = left.with_columns(cast) if cast else left
    after = rows.join(once, left_on=on, right_on=keys, how="left", maintain_order=_order(join))
    after = after.drop([name for p, name in zip(plain, made, strict=True) if not p]) if cast else after
    return Partner(join, label, flag, left, partners, after, _repeated(partners, keys), ours, floats)


def _order(join: Join) -> Literal["left", "left_right"]:
    return "left_right" if join.duplicates == "multiply" else "left"


def _repeated(partners: pl.LazyFrame, keys: list[str]) -> pl.LazyFrame:
    """Rows beyond the first with their key; those without a key never match and are not counted."""
    counts = partners.group_by(keys).len()
    return counts.select((pl.col("len") - 1).sum().alias("repeated"))


def _taken(have: pl.Schema, theirs: pl.Schema, join: Join) -> dict[str, str]:
    """{column of the table: its name beside ours}."""
    wanted = join.take if join.take is not None else [c for c in theirs if c not in join.theirs()]
    unknown = [c for c in dict.fromkeys([*join.theirs(), *wanted]) if c not in theirs]
    if unknown:
        raise DataError(f"the join with {join.table} names {columns_there(unknown, theirs)}")
    ours = [*join.keys(), *([join.between.column] if join.between else [])]
    early = [c for c in ours if c not in have]
    if early:
        named = columns_there(early, have).replace("; there are", ", which is not there yet; there are", 1)
        raise DataError(f"the join with {join.table} is on {named}")
    taken = {c: join.prefix + c for c in wanted}
    clash = [name for name in taken.values() if name in have]
    if clash:
        raise DataError(
            f"the join with {join.table} brings {', '.join(clash)}, which is already there; give the join a "
            "prefix or take less"
        )
    return taken


def _comparable(have: pl.Schema, theirs: pl.Schema, join: Join, mine: str, other: str) -> Pair:
    """Both keys in one type that holds every value of each exactly. Raises DataError."""
    found = _pair(mine, have[mine], other, theirs[other])
    if found is None:
        raise DataError(
            f"the join with {join.table}: {mine} is {have[mine]}, {join.table}.{other} is {theirs[other]}; "
            "give both the same type under types (of times without a zone: datetime Europe/Berlin)"
        )
    return found


def _pair(mine: str, ours: Any, other: str, theirs: Any) -> Pair | None:
    a, b = pl.col(mine), pl.col(other)
    if ours == theirs:
        return _fractions(a, b) if ours.is_float() else (a, b)
    if all(isinstance(dtype, pl.String | pl.Categorical | pl.Enum) for dtype in (ours, theirs)):
        return a.cast(pl.String), b.cast(pl.String)
    if isinstance(ours, pl.Datetime) and isinstance(theirs, pl.Datetime):
        return _times(a, ours, b, theirs)
    if not (ours.is_numeric() and theirs.is_numeric()):
        return None
    if ours.is_decimal() or theirs.is_decimal():
        return _decimals(a, ours, b, theirs)
    floats = ours.is_float() and theirs.is_float()
    return _fractions(a, b) if floats else (_whole(mine, ours, theirs), _whole(other, theirs, ours))


def _fractions(a: pl.Expr, b: pl.Expr) -> Pair:
    return a.cast(pl.Float64).fill_nan(None), b.cast(pl.Float64).fill_nan(None)


def _decimals(a: pl.Expr, ours: Any, b: pl.Expr, theirs: Any) -> Pair | None:
    """Both with as many digits after the point; beside a float none is exact."""
    if ours.is_float() or theirs.is_float():
        return None
    wide = pl.Decimal(38, max(getattr(dtype, "scale", 0) or 0 for dtype in (ours, theirs)))
    return a.cast(wide, strict=False), b.cast(wide, strict=False)


def _whole(name: str, dtype: Any, beside: Any) -> pl.Expr:
    """A column of numbers as whole ones; what is none never matches."""
    wide = pl.Int128 if {dtype, beside} & {pl.UInt64, pl.Int128} else pl.Int64
    if dtype.is_float():
        exact = columns.cast(name, dtype, "int")
        return pl.col(name) if exact is None else exact.cast(wide)
    return pl.col(name) if dtype == wide else pl.col(name).cast(wide, strict=False)


def _times(a: pl.Expr, ours: pl.Datetime, b: pl.Expr, theirs: pl.Datetime) -> Pair | None:
    """Times in the finer unit, zones in UTC; one with a zone beside one without cannot be compared."""
    if (ours.time_zone is None) != (theirs.time_zone is None):
        return None
    finer = max(ours.time_unit, theirs.time_unit, key=["ms", "us", "ns"].index)
    a, b = a.dt.cast_time_unit(finer), b.dt.cast_time_unit(finer)
    return (
        (a, b) if ours.time_zone is None else (a.dt.convert_time_zone("UTC"), b.dt.convert_time_zone("UTC"))
    )


def _floats(left: pl.LazyFrame, table: pl.LazyFrame, join: Join) -> list[tuple[str, pl.LazyFrame]]:
    """(what it is, query for how many) of keys that are floats too large to tell one number from the next."""
    sides = [(left, list(join.by), "our"), (table, list(join.by.values()), f"{join.table}'s")]
    return [
        (
            f"{whose} {name}",
            frame.select((pl.col(name).fill_nan(None).abs() >= EXACT).sum().alias("inexact")),
        )
        for frame, names, whose in sides
        for name in names
        if frame.collect_schema()[name].is_float()
    ]


# ------------------------------------------------------------------------------------------ near, not equal


def _near(
    left: pl.LazyFrame, table: pl.LazyFrame, right: list[pl.Expr], pairs: list[Pair], join: Join, flag: str
) -> tuple[pl.LazyFrame, pl.LazyFrame, pl.LazyFrame]:
    """(right, after, repeated) of a join by nearness or by intervals: pairs of row numbers first."""
    keys = [f"\0key{i}" for i, _ in enumerate(pairs)]
    mine = [f"\0mine{i}" for i, _ in enumerate(pairs)]
    have, theirs = left.collect_schema(), table.collect_schema()
    ends = [_ordered(have, theirs, join, ours, other) for ours, other in join.near()]
    numbered = left.with_row_index(ROW)
    rows = numbered.select(
        ROW, *(m.alias(name) for name, (m, _) in zip(mine, pairs, strict=True)), ends[0][0].alias(AT)
    ).drop_nulls()
    names = [START, END] if join.between else [START]
    partners = table.select(*right, *(end[1].alias(name) for name, end in zip(names, ends, strict=True)))
    if join.asof:
        partners = partners.drop_nulls([*keys, START])
        found = _asof(rows, partners, join, mine, keys)
        repeated = _repeated(partners, [*keys, START])
    else:
        partners = partners.drop_nulls(keys)
        found = _between(rows, partners, join, mine, keys)
        repeated = found.select((pl.len() - pl.col(ROW).n_unique()).alias("repeated"))
        found = found.unique(ROW, keep="first", maintain_order=True) if join.duplicates == "first" else found
    taken = [c for c in partners.collect_schema() if not c.startswith("\0") or c == flag]
    after = numbered.join(found.select(ROW, *taken), on=ROW, how="left", maintain_order=_order(join))
    return partners, after.drop(ROW), repeated


def _ordered(have: pl.Schema, theirs: pl.Schema, join: Join, mine: str, other: str) -> Pair:
    """Both in one type that has an order: times, or numbers. Raises DataError."""
    ours, beside = have[mine], theirs[other]
    within = join.asof.within if join.asof else None
    if within is not None and isinstance(within, str) != ours.is_temporal():
        raise DataError(
            f"the join with {join.table}: within is {within!r}, but {mine} is {ours}; give a number for "
            "numbers, and for times such as 90s, 5m, 2h, 1d"
        )
    if ours.is_integer() and beside.is_integer():
        return pl.col(mine).cast(pl.Int64), pl.col(other).cast(pl.Int64)
    if ours.is_numeric() and beside.is_numeric():
        return _fractions(pl.col(mine), pl.col(other))
    found = _comparable(have, theirs, join, mine, other)
    if not (ours.is_temporal() and beside.is_temporal()):
        raise DataError(
            f"the join with {join.table}: asof and between take times or numbers; {mine} is {ours}, {other} "
            f"is {beside}; give both a type under types"
        )
    return found


def _asof(
    rows: pl.LazyFrame, partners: pl.LazyFrame, join: Join, mine: list[str], keys: list[str]
) -> pl.LazyFrame:
    assert join.asof is not None
    by: Mapping[str, Any] = {"by_left": mine, "by_right": keys} if keys else {}
    once = partners.unique([*keys, START], keep="first", maintain_order=True)
    return rows.sort(AT).join_asof(
        once.sort(START), left_on=AT, right_on=START, strategy=join.asof.direction,
        tolerance=join.asof.within, check_sortedness=False, **by,
    )  # fmt: skip


def _between(
    rows: pl.LazyFrame, partners: pl.LazyFrame, join: Join, mine: list[str], keys: list[str]
) -> pl.LazyFrame:
    """A row for each pair, by our row, then by the table's."""
    assert join.between is not None
    closed = join.between.closed
    start, end, at = pl.col(START), pl.col(END), pl.col(AT)
    after = at >= start if closed in ("both", "left") else at > start
    before = at <= end if closed in ("both", "right") else at < end
    equal = [pl.col(m) == pl.col(k) for m, k in zip(mine, keys, strict=True)]
    found = rows.join_where(
        partners.with_row_index(NTH), *equal, after | start.is_null(), before | end.is_null()
    )
    return found.sort(ROW, NTH)
