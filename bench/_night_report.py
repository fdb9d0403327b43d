"""The morning report: 12 fixed questions, answered from the HTML file alone, for 30 nights.

Reads what a person would read: the text of the page's elements. `python -m bench.night report`
prints a row for each night and ends with 1 when an answer is wrong, a page takes more than 5 s to build, or
is larger than 1 MB.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from bench._synthetic_nights import PRICE, Made, Truth, nights

BAR_S, BAR_BYTES = 5.0, 1_000_000
VOID = {"meta", "br", "wbr", "rect", "line", "polygon", "polyline", "circle"}
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    inside: "list[Element | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        words = "".join(one if isinstance(one, str) else one.text for one in self.inside)
        return " ".join(words.split())

    def all(self, tag: str = "", name: str = "") -> "Iterator[Element]":
        """Of that tag, and of that class or id."""
        for one in self.inside:
            if isinstance(one, str):
                continue
            names = [one.attributes.get("id", ""), *one.attributes.get("class", "").split()]
            if tag in ("", one.tag) and (not name or name in names):
                yield one
            yield from one.all(tag, name)

    def first(self, name: str) -> "Element | None":
        return next(self.all(name=name), None)

    def text_of(self, name: str) -> str:
        found = self.first(name)
        return found.text if found else ""

    def rows(self, table: str) -> "dict[str, Element]":
        found = self.first(table)
        rows = found.all("tr") if found else iter(())
        return {row.attributes["data-step"]: row for row in rows if "data-step" in row.attributes}


class Reader(HTMLParser):
    """A page as elements; `problems`: elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.problems = list[str]()
        self.feed(text)
        self.problems += [one.tag for one in self.open[1:]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].tag == tag:
            self.open.pop()
        elif tag not in VOID:
            self.problems.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


# ------------------------------------------------------------------------------- what the page answers


def outcome(page: Element) -> str:
    verdict = page.text_of("verdict")
    words = {"Killed": "killed", "Stopped": "stopped"}
    first = verdict.partition(" ")[0]
    return words.get(first) or ("failed" if "failed" in verdict else "done")


def ran(page: Element) -> dict[str, float]:
    states = ("done", "failed", "stopped", "cut off")
    rows = {label: row for label, row in page.rows("steps").items() if row.text_of("state") in states}
    return {label: seconds(row.text_of("took")) for label, row in rows.items()}


def seconds(text: str) -> float:
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (s|min|h)\b", text))


def since(page: Element) -> dict[str, str]:
    rows = {label: row.text_of("since") for label, row in page.rows("steps").items()}
    return {label: text.rpartition("run ")[2] for label, text in rows.items() if text}


def failed(page: Element) -> dict[str, tuple[str, str]]:
    return {
        one.attributes["data-step"]: (one.text_of("kind"), one.text_of("fix")) for one in page.all("article")
    }


def saved_hours(page: Element) -> float:
    return float(page.text_of("saved-gpu"))


def amount(text: str) -> float:
    return float(text.replace(",", "").replace("–", "nan"))


def memory(page: Element) -> dict[str, tuple[float, float]]:
    return {
        label: (amount(row.text_of("lease")), amount(row.text_of("peak")))
        for label, row in page.rows("memory").items()
    }


def errors(page: Element) -> dict[str, float]:
    texts = {label: row.text_of("error") for label, row in page.rows("memory").items()}
    return {label: float(text.rstrip("%")) / 100 for label, text in texts.items() if text != "–"}


def survived(page: Element) -> set[str]:
    return {one.attributes["data-step"] for one in page.all(name="survived")}


def others(page: Element) -> tuple[str, str]:
    return page.text_of("other-peak") or "0 MiB", page.text_of("other-names")


def judged(page: Element) -> dict[str, tuple[bool, str]]:
    return {
        label: (row.text_of("decision") == "promoted", row.text_of("interval"))
        for label, row in page.rows("champions").items()
    }


def energy(page: Element) -> tuple[str, str]:
    found = page.text_of("energy")
    return found.partition(" cost")[0], page.text_of("cost")


def to_do(page: Element) -> list[str]:
    found = page.first("today")
    return [line.text for line in found.all("li")] if found else []


# -------------------------------------------------------------------------------------------- the judge


def near(found: dict[str, float], true: dict[str, float], apart: float, share: float = 0.0) -> bool:
    return found.keys() == true.keys() and all(
        abs(found[one] - true[one]) <= max(apart, share * abs(true[one])) for one in true
    )


def in_mib(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"


def in_kwh(truth: Truth) -> tuple[str, str]:
    if truth.energy_wh is None:
        return "not measured", ""
    kwh = truth.energy_wh / 1000
    return f"{kwh:.2f} kWh" if kwh >= 0.1 else f"{truth.energy_wh:.1f} Wh", f"{kwh * PRICE:.2f}"


def names_all(lines: Sequence[str], truth: Truth) -> bool:
    """At most five lines, which name what has to be done, or say how much more there is."""
    shown = " ".join(lines)
    missing = [words for words in truth.must_do if words not in shown]
    return len(lines) <= 5 and (not missing or "more, further down" in shown)


QUESTIONS: dict[str, Callable[[Element, Truth], bool]] = {
    "how did it end": lambda page, true: outcome(page) == true.outcome,
    "what ran, how long": lambda page, true: near(ran(page), true.ran, 0.06, share=0.1),
    "what was unchanged, since which run": lambda page, true: (
        since(page) == {label: run_id[:8] for label, run_id in true.since.items()}
    ),
    "what failed, why, which fix": lambda page, true: failed(page) == true.failed,
    "how many GPU-hours were saved": lambda page, true: abs(saved_hours(page) - true.saved_s / 3600) <= 0.051,
    "lease and peak of each step": lambda page, true: (
        memory(page) == {label: (lease, round(peak)) for label, (lease, peak) in true.memory.items()}
    ),
    "predicted against measured": lambda page, true: near(errors(page), true.errors, 0.0006),
    "which steps survived out of memory": lambda page, true: survived(page) == true.survived,
    "what other programs took": lambda page, true: (
        others(page) == (in_mib(true.other[0]), ", ".join(true.other[1]))
    ),
    "what was promoted, by which interval": lambda page, true: (
        judged(page)
        == {label: (won, f"{low:+.3g} to {high:+.3g}") for label, (won, low, high) in true.judged.items()}
    ),
    "energy and cost": lambda page, true: energy(page) == in_kwh(true),
    "what to do today": lambda page, true: names_all(to_do(page), true),
}


@dataclass
class Row:
    name: str
    seconds: float
    bytes: int
    wrong: list[str]


def judge(made: Made, path: Path, took_s: float) -> Row:
    text = path.read_text(encoding="utf-8")
    page = Reader(text)
    wrong = [name for name, holds in QUESTIONS.items() if not holds(page.root, made.truth)]
    wrong += [f"not closed: {one}" for one in page.problems]
    wrong += ["a script"] if any(page.root.all("script")) else []
    return Row(made.name, took_s, len(text.encode()), wrong)


def measured(seed: int) -> list[Row]:
    """Build the report of each night after those before it, in an empty checkout, and read it."""
    from overnight.night import record, report

    rows = []
    for made in nights(seed=seed):
        folder = record.paths.steps() / made.name
        folder.mkdir(parents=True)
        made.night.write(folder / record.FILE)
        began = time.monotonic()
        path = report.build(made.name, report.facts_of(made.night))
        rows.append(judge(made, path, time.monotonic() - began))
    return rows


def main(arguments: Sequence[str] = ()) -> int:
    from bench._rows import OUT, machine, write  # imports torch, which a reader of pages need not

    parser = argparse.ArgumentParser(prog="python -m bench._night_report", description=__doc__)
    parser.add_argument("--keep", metavar="FOLDER", help="leave the pages below it")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(given.keep or folder).absolute()
        root.mkdir(parents=True, exist_ok=True)
        os.environ["OVERNIGHT_ROOT"] = str(root)
        rows = measured(given.seed)
        del os.environ["OVERNIGHT_ROOT"]
    asked = len(QUESTIONS)
    for row in rows:
        right = f"{asked - len(row.wrong)}/{asked}"
        print(f"{row.name}  {right}  {row.seconds:.2f} s  {row.bytes:,} bytes", *row.wrong, sep="  ")
    summary = {
        "asked": asked * len(rows),
        "right": asked * len(rows) - sum(len(row.wrong) for row in rows),
        "slowest_s": round(max(row.seconds for row in rows), 2),
        "largest_bytes": max(row.bytes for row in rows),
        "seed": given.seed,
        "machine": machine(),
    }
    write(OUT / "night_report.json", summary)
    print({name: value for name, value in summary.items() if name != "machine"})
    is_slow = summary["slowest_s"] > BAR_S or summary["largest_bytes"] > BAR_BYTES
    return 1 if is_slow or summary["right"] < summary["asked"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
