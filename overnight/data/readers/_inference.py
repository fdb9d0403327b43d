"""Which type each column of a table of text has: what every value of every row fits."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import polars as pl

from overnight.data.readers._columns import DAYS, FORMATS, Column
from overnight.data.readers._lines import Facts

SAMPLE = 10_000
SHOWN = 20  # columns that are named one by one
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d")
SHORT_YEAR = r"^\d{1,2}[-/.]\d{1,2}[-/.]\d{2}( |$)"
UNLIKE = "\0unlike"


@dataclass
class Inference:
    """Types for the columns of a table of text. text: every column as text, missing values null."""

    text: pl.LazyFrame
    facts: Facts
    remarks: list[str] = field(default_factory=list)
    # decimal numbers that may be written in two ways, and how many decimals all first values have
    unlike: set[str] = field(default_factory=set)
    decimals: dict[str, int] = field(default_factory=dict)

    def columns(self, stated: Sequence[Column]) -> list[Column]:
        """Of each column its type: the narrowest that every value of every row has, else text.

        stated: kind "" where the entry gives no type, form "" where it gives a date type without a form.
        """
        open_ = {c.name: c for c in stated if not c.kind or (c.kind in FORMATS and not c.form)}
        if not open_:
            return list(stated)
        sample = self.text.select(list(open_)).head(SAMPLE).collect(engine="streaming")
        complete = sample.height == self.facts.rows
        values = {name: sample[name].drop_nulls() for name in open_}
        if not complete:
            values |= self._later([name for name, found in values.items() if not len(found)])
        rest = {name: list(_candidates(c, values[name])) for name, c in open_.items()}
        self._narrow(sample.lazy(), rest, "in-memory")
        found = {name: self._decided(open_[name], left, values[name]) for name, left in rest.items()}
        before = dict(found)
        self._see_decimals(sample, [c for c in found.values() if c.kind == "float"])
        if complete:
            self.unlike |= {name for name, c in found.items() if c.kind == "float" and self.facts.zeros}
            self.unlike -= self.decimals.keys()
        else:
            # a form that the entry asks for must hold, so the query itself will say
            inferred = {name: rest[name] for name, c in found.items() if not c.given}
            self._narrow(self.text, inferred, "streaming")
            found |= {name: rest[name][0] for name, c in found.items() if not c.given}
        found |= self._unambiguous(found)
        texts = [c for c in found.values() if c.kind == "text" and before[c.name].form == c.form]
        self._remark_text(texts, before, values)
        self._remark_twins([c for c in found.values() if c.kind == "float" and c.name in self.unlike])
        return [found.get(c.name, c) for c in stated]

    def _asked(self, questions: Iterable[pl.Expr]) -> pl.DataFrame:
        return self.text.select(questions).collect(engine="streaming")

    def _later(self, names: list[str]) -> dict[str, pl.Series]:
        """The first values of columns that have none in the sample."""
        if not names:
            return {}
        row = self._asked(pl.col(name).drop_nulls().head(100).implode() for name in names)
        return {name: row[name].explode().drop_nulls() for name in names}

    def _narrow(
        self, frame: pl.LazyFrame, rest: dict[str, list[Column]], engine: Literal["in-memory", "streaming"]
    ) -> None:
        """Drop candidates from the front until the first fits every value."""
        pending = [name for name, columns in rest.items() if columns and columns[0].kind != "text"]
        while pending:
            first = [rest[name][0] for name in pending]
            asked = [c.wrong(self.facts).any().alias(c.name) for c in first]
            asked += [self._is_unlike(c) for c in first if c.kind == "float" and self.facts.zeros]
            wrong = frame.select(asked).collect(engine=engine).row(0, named=True)
            self.unlike |= {name for name in pending if wrong.get(f"{name}{UNLIKE}")}
            pending = [name for name in pending if wrong[name]]
            for name in pending:
                rest[name].pop(0)
            pending = [name for name in pending if rest[name] and rest[name][0].kind != "text"]

    def _decided(self, stated: Column, left: list[Column], values: pl.Series) -> Column:
        first = values.head(1).to_frame()
        fitting = (
            c for c in _candidates(stated, values) if not first.select(c.wrong(self.facts).any()).item()
        )
        shown = left or list(fitting)
        if shown:  # where a later value has another form, the query fails
            return shown[0]
        name, kind = stated.name, stated.kind
        why = f"column {name!r} should be a {kind}, but {values[0]!r} has no form that is known"
        raise ValueError(f"{why}; state it in the entry: `{name}: {kind} %d.%m.%Y`")

    def _unambiguous(self, found: Mapping[str, Column]) -> dict[str, Column]:
        """Columns that may be day/month as well as month/day, as text. Raises ValueError when given."""
        swapped = {name: replace(c, form=_swapped(c.form)) for name, c in found.items() if _swapped(c.form)}
        if not swapped:
            return {}
        asked = (c.wrong(self.facts).any().alias(name) for name, c in swapped.items())
        wrong = self._asked(asked).row(0, named=True)
        both = {name: found[name] for name in swapped if not wrong[name]}
        for name, column in both.items():
            why = f"column {name!r}: every date may be day first or month first"
            cure = f"state `{name}: {column.kind} {column.form}` or `{swapped[name].form}`"
            if column.given:
                raise ValueError(f"{why}; {cure}")
            self.remarks.append(f"{why}, so it stays text; {cure}")
        return {name: replace(column, kind="text", form="") for name, column in both.items()}

    def _remark_text(
        self, columns: Sequence[Column], before: Mapping[str, Column], values: Mapping[str, pl.Series]
    ) -> None:
        """Say which columns look like something else and stay text, and why. before: by the sample alone."""
        odd, rest = dict[str, Column](), 0
        for c in columns:
            likely = self._likely(before[c.name], values[c.name]) if len(odd) < SHOWN else None
            if likely is not None:
                odd[c.name] = likely
            elif len(odd) == SHOWN and re.match(r"[+-]?\d", str(values[c.name].first() or "")):
                rest += 1
        if odd:
            found = self._asked(self._first_odd(column) for column in odd.values())
            for name, value in found.row(0, named=True).items():
                self.remarks.append(f"column {name!r} stays text: {_why(odd[name], str(value))}")
        if rest:
            self.remarks.append(f"{rest} more columns that begin with a digit stay text")

    def _likely(self, before: Column, values: pl.Series) -> Column | None:
        """What the first values look like, although the column is text."""
        if before.kind != "text":
            return before
        if _mostly_numbers(before, values):
            return replace(before, kind="float")
        dates = [c for c in _candidates(replace(before, kind=""), values.head(1)) if c.kind in FORMATS]
        head = values.head(100).to_frame()
        fitting = [c for c in dates if head.select((c.value(strict=False).is_not_null()).any()).item()]
        looks = len(values) > 0 and DATE.match(str(values[0]))
        unknown = replace(before, kind="date", form="") if looks else None
        return fitting[0] if fitting else unknown

    def _see_decimals(self, sample: pl.DataFrame, columns: Sequence[Column]) -> None:
        """Set `decimals`, and forget what the sample alone said."""
        self.unlike.clear()
        if not columns or not self.facts.zeros:
            return
        digits = sample.select(c.decimals.unique().drop_nulls().implode().alias(c.name) for c in columns)
        known = digits.row(0, named=True)
        self.decimals |= {name: int(some[0]) for name, some in known.items() if len(some) == 1}

    def _is_unlike(self, column: Column) -> pl.Expr:
        """Whether there may be 1.10 beside 1.1: the cheapest question that says no to most columns."""
        text, digits = pl.col(column.name), self.decimals.get(column.name)
        if digits is None:
            odd = text.str.ends_with("0") & ~text.str.ends_with(f"{column.decimal}0")
        else:
            odd = column.decimals != digits
        return odd.any().alias(f"{column.name}{UNLIKE}")

    def _remark_twins(self, columns: Sequence[Column]) -> None:
        """Say where 1.10 stands beside 1.1 or 1.100: one number, but two codes. Of many columns of some."""
        if not columns:
            return
        if len(columns) > SHOWN:
            more = len(columns) - SHOWN
            self.remarks.append(f"{more} more columns have numbers with unequal decimals, which may be codes")
            columns = columns[:SHOWN]
        ending = (
            pl.col(c.name)
            .filter(pl.col(c.name).str.ends_with("0") & (c.decimals > 1))
            .unique(maintain_order=True)
            for c in columns
        )
        texts = self._asked(some.implode() for some in ending)
        long = {c.name: texts[c.name].explode().drop_nulls() for c in columns}
        long = {name: some.filter(~some.str.contains("[eE]")) for name, some in long.items()}
        short = {name: _without_zeros(some) for name, some in long.items()}
        again = {name: long[name].filter(~some.is_first_distinct()) for name, some in short.items()}
        wanted = {name: pl.concat([some, again[name]]).implode() for name, some in short.items()}
        first = (pl.col(name).filter(pl.col(name).is_in(some)).first() for name, some in wanted.items())
        for name, one in self._asked(first).row(0, named=True).items():
            if one is not None:
                same = short[name] == _without_zeros(pl.Series([one]))[0]
                other = long[name].filter(same & (long[name] != one))[0]
                said = f"column {name!r}: {other!r} and {one!r} are one number"
                self.remarks.append(f"{said}; if they are codes, state `{name}: text`")

    def _first_odd(self, column: Column) -> pl.Expr:
        text = pl.col(column.name)
        if column.kind in FORMATS and not column.form:
            return text.drop_nulls().first().alias(column.name)
        wrong = column.wrong(self.facts)
        first = text.filter(wrong).first()
        if column.kind in ("int", "float"):  # a value that neither holds says more
            both = wrong & replace(column, kind="int").wrong(self.facts)
            first = pl.coalesce(text.filter(both).first(), first)
        return first.alias(column.name)


def _without_zeros(numbers: pl.Series) -> pl.Series:
    """1.1 of 1.10, 1.0 of 1.00."""
    return numbers.str.strip_chars_end("0").str.replace(r"(\D)$", "${1}0")


def _why(column: Column, value: str) -> str:
    if re.match(SHORT_YEAR, value):
        return f"{value!r} has a year of two digits; state `{column.name}: date %d.%m.%y` with its form"
    if column.kind in ("int", "float"):
        return f"{value!r} as a number would not come back, or is none"
    known = "" if column.form or column.kind == "bool" else " of a form that is known"
    return f"{value!r} is not {column.described}{known}"


def _swapped(form: str) -> str:
    """The form with day and month in the other order; empty where none is usual."""
    for day_first, month_first in (("%d/%m", "%m/%d"), ("%d-%m", "%m-%d")):
        if form.startswith(day_first):
            return form.replace(day_first, month_first)
        if form.startswith(month_first):
            return form.replace(month_first, day_first)
    return ""


def _candidates(stated: Column, values: pl.Series) -> Iterator[Column]:
    """What the column may be, the narrowest first, as far as its first value shows."""
    first = str(values[0]) if len(values) else ""
    if stated.kind:
        forms = [form for form in FORMATS[stated.kind] if _shape(form).fullmatch(first) or not first]
        yield from (replace(stated, form=form) for form in forms)
        return
    if re.match(r"[+-]?[\d.,' ]+([eE][+-]?\d+)?$", first):
        yield replace(stated, kind="int")
        yield replace(stated, kind="float")
    if first.lower() in ("true", "false") and values.str.to_lowercase().is_in(["true", "false"]).all():
        yield replace(stated, kind="bool")
    if DATE.match(first):
        kinds = [("date", form) for form in DAYS]
        kinds += [("datetime", form) for form in FORMATS["datetime"] if form not in DAYS]
        fitting = [(kind, form) for kind, form in kinds if _shape(form).fullmatch(first)]
        yield from (replace(stated, kind=kind, form=form) for kind, form in fitting)
    yield replace(stated, kind="text")


@cache
def _shape(form: str) -> re.Pattern[str]:
    """What a text of that form looks like, with any digits."""
    shapes = {"%Y": r"\d{1,4}", "%\\.f": r"(\.\d+)?", "%\\#z": r"(Z|[+-]\d\d:?(\d\d)?)", "%p": "[AaPp][Mm]"}
    text = "\\d{8}" if form == "%Y%m%d" else re.escape(form)
    for part, shape in shapes.items():
        text = text.replace(part, shape)
    return re.compile(r"\s*" + re.sub("%[mdHIMS]", r"\\d{1,2}", text))


def _mostly_numbers(column: Column, values: pl.Series) -> bool:
    head = values.head(100).to_frame()
    if not re.search(r"\d", "".join(map(str, head.to_series().head(3)))):
        return False
    numbers = head.select(replace(column, kind="float").value(strict=False).is_not_null().sum()).item()
    return bool(2 * numbers >= len(head)) and len(head) > 0
