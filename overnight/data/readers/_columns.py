"""The columns of a table of text: which type each has, and whether every value has it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from typing import Any, Literal

import polars as pl

from overnight.data.content import EXACT, TRUTH
from overnight.data.readers._lines import Facts

SAMPLE = 10_000
LOOKED_AT = 1000  # values, for numbers that are written in two ways
SHOWN = 20  # columns that are named one by one
CLOCKS = ("%H:%M:%S%.f", "%H:%M")
SPOKEN = ("%H:%M:%S", "%H:%M", "%I:%M:%S %p", "%I:%M %p")
ISO = (*(f"%Y-%m-%d{between}{clock}" for clock in CLOCKS for between in ("T", " ")),)
DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y")
NAMED_LAST = tuple(day for day in DAYS if not day.startswith("%Y"))
FORMATS = {
    "date": (*DAYS, "%Y%m%d"),
    "datetime": (
        *(f"{form}%#z" for form in ISO), *ISO, "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M",
        *(f"{day} {clock}" for day in NAMED_LAST for clock in SPOKEN),
        "%Y-%m-%d",
    ),
    "time": CLOCKS,
}  # fmt: skip
SIGNED, CODE = r"^\+|^-?0\d", r"^\d+[eE]\d+$"
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d")
SHORT_YEAR = r"^\d{1,2}[-/.]\d{1,2}[-/.]\d{2}( |$)"
NEVER = pl.lit(value=False)


@dataclass(frozen=True)
class Column:
    """How the text of one column becomes values. given: the entry states the type."""

    name: str
    kind: str = "text"
    form: str = ""
    given: bool = False
    zone: str = ""  # of times that name none
    decimal: str = "."
    thousands: str = ""
    points: bool = True  # whether a value may have a decimal point

    @property
    def dtype(self) -> Any:
        zone = "UTC" if self._has_zone or self.zone else None
        return {
            "int": pl.Int64, "float": pl.Float64, "text": pl.String, "bool": pl.Boolean,
            "date": pl.Date, "datetime": pl.Datetime("us", zone), "time": pl.Time,
        }[self.kind]  # fmt: skip

    @property
    def described(self) -> str:
        article = "an" if self.kind == "int" else "a"
        return f"{article} {self.kind} of the form {self.form}" if self.form else f"{article} {self.kind}"

    @property
    def is_native(self) -> bool:
        """Whether the scan itself can give the type (and the GPU engine read it)."""
        plain = self.decimal == "." and not self.thousands
        return self.kind == "text" or (plain and self.kind in ("int", "float"))

    @property
    def is_local(self) -> bool:
        return self.kind == "datetime" and bool(self.zone) and not self._has_zone

    @property
    def _has_zone(self) -> bool:
        return "%#z" in self.form or "%z" in self.form

    def value(self, strict: bool) -> pl.Expr:
        """strict: what is not of the type fails the query; else it is null.

        Of a local hour that comes twice the first is taken; one that the clock leaves out is null.
        """
        if not self.is_local:
            return self._parsed(strict).alias(self.name)
        local = self._parsed(strict).dt.replace_time_zone(
            self.zone, ambiguous="earliest", non_existent="null"
        )
        return local.dt.convert_time_zone("UTC").alias(self.name)

    def clock_changes(self) -> list[pl.Expr]:
        """How many local times come twice, and how many the clock leaves out."""
        naive = self._parsed(strict=False)
        once = naive.dt.replace_time_zone(self.zone, ambiguous="null", non_existent="null")
        there = self.value(strict=False).is_not_null()
        return [
            (there & once.is_null()).sum().alias(f"twice {self.name}"),
            (naive.is_not_null() & ~there).sum().alias(f"never {self.name}"),
        ]

    def wrong(self, facts: Facts) -> pl.Expr:
        """Whether a value is there, but not of the type or changed by it."""
        there, value = pl.col(self.name).is_not_null(), self._parsed(strict=False)
        bad = value.is_null()
        if self.kind == "int" and not self.given and facts.signs:
            bad |= self._number.str.contains(SIGNED)
        if self.kind == "bool" and not self.given:
            bad |= ~pl.col(self.name).str.to_lowercase().is_in(["true", "false"])
        if self.kind == "float":
            bad |= self._changed(value, facts)
        return there & bad

    def _changed(self, value: pl.Expr, facts: Facts) -> pl.Expr:
        """Whether a decimal number would not come back as the same number, or was never meant as one."""
        text, bad = self._number, NEVER
        if not self.given:
            bad |= ~value.is_finite()
            bad |= text.str.contains(SIGNED) if facts.signs else NEVER
            bad |= text.str.contains(CODE) if facts.exponents else NEVER
        if facts.far_exponents or facts.many_digits:
            bad |= value.is_infinite() & ~text.str.contains("(?i)inf")
            bad |= (value == 0) & text.str.contains("^[^eE]*[1-9]")
        if facts.many_digits:
            whole = text.str.replace(r"\.0*$", "").cast(pl.Int128, strict=False)
            same = (whole == value.cast(pl.Int128, strict=False)).fill_null(value=False)
            beyond = NEVER if self.given else value.abs() >= 2**63  # of whole numbers an id, not an amount
            bad |= (((value.abs() >= EXACT) & ~same) | beyond) & ~text.str.contains("[eE]|(?i)inf")
        return bad

    def notation(self) -> pl.Expr:
        """How many numbers are written with a plus or leading zeros."""
        return self._number.str.contains(SIGNED).sum().alias(self.name)

    @property
    def _number(self) -> pl.Expr:
        """The text as a computer writes numbers; null where it is none."""
        text = pl.col(self.name)
        if self.decimal == "." and not self.thousands:
            return text
        point, group = re.escape(self.decimal), re.escape(self.thousands)
        whole = rf"(\d+|\d{{1,3}}({group}\d{{3}})+)" if group else r"\d+"
        form = rf"^[+-]?({whole}({point}\d*)?|{point}\d+)([eE][+-]?\d+)?$"
        plain = text.str.replace_all(self.thousands, "", literal=True) if self.thousands else text
        return pl.when(text.str.contains(form)).then(plain.str.replace(self.decimal, ".", literal=True))

    def _parsed(self, strict: bool) -> pl.Expr:
        text = pl.col(self.name)
        if self.kind == "bool":
            lower = text.str.to_lowercase()
            if strict:
                return lower.replace_strict(TRUTH, return_dtype=self.dtype)
            return lower.replace_strict(TRUTH, default=None, return_dtype=self.dtype)
        if self.kind in FORMATS:
            dtype = pl.Datetime("us") if self.is_local else self.dtype
            if self.points and "%.f" in self.form:  # the type holds microseconds
                text = (
                    pl.when(text.str.contains(r"\.\d{6}\d*[1-9]")).then(text + " is too fine").otherwise(text)
                )
            return self._in_four_digits(text.str.strptime(dtype, self.form, strict=strict), dtype, strict)
        if self.kind == "text":
            return text
        if strict and not self.is_native:
            text = pl.coalesce(self._number, text + " is no number")  # for the cast to fail
        return (text if strict else self._number).cast(self.dtype, strict=strict)

    def _in_four_digits(self, value: pl.Expr, value_type: Any, strict: bool) -> pl.Expr:
        """24-01-03 is no day of the year 24."""
        if self.kind == "time" or "%Y" not in self.form:
            return value
        first = pl.lit(date(1000, 1, 1)).cast(value_type)
        late = value >= first
        if strict:  # the cast of a negative number fails the query
            late = (late.cast(pl.Int8) - 1).cast(pl.UInt8).is_not_null()
        return pl.when(late).then(value)


@dataclass
class Inference:
    """Types for the columns of a table of text. text: every column as text, missing values null."""

    text: pl.LazyFrame
    facts: Facts
    remarks: list[str] = field(default_factory=list)

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
        if not complete:  # a form that the entry asks for must hold, so the query itself will say
            inferred = {name: rest[name] for name, c in found.items() if not c.given}
            self._narrow(self.text, inferred, "streaming")
            found |= {name: rest[name][0] for name, c in found.items() if not c.given}
        found |= self._unambiguous(found)
        texts = [c for c in found.values() if c.kind == "text" and before[c.name].form == c.form]
        self._remark_text(texts, before, values)
        for c in found.values():
            if c.kind == "float" and not c.given and c.points:
                self.remarks += _twins(c, values[c.name])
        return [found.get(c.name, c) for c in stated]

    def _later(self, names: list[str]) -> dict[str, pl.Series]:
        """The first values of columns that have none in the sample."""
        if not names:
            return {}
        first = self.text.select(pl.col(name).drop_nulls().head(100).implode() for name in names)
        row = first.collect(engine="streaming")
        return {name: row[name].explode().drop_nulls() for name in names}

    def _narrow(
        self, frame: pl.LazyFrame, rest: dict[str, list[Column]], engine: Literal["in-memory", "streaming"]
    ) -> None:
        """Drop candidates from the front until the first fits every value."""
        pending = [name for name, columns in rest.items() if columns and columns[0].kind != "text"]
        while pending:
            query = frame.select(rest[name][0].wrong(self.facts).any().alias(name) for name in pending)
            wrong = query.collect(engine=engine).row(0, named=True)
            pending = [name for name in pending if wrong[name]]
            for name in pending:
                rest[name].pop(0)
            pending = [name for name in pending if rest[name] and rest[name][0].kind != "text"]

    def _decided(self, stated: Column, left: list[Column], values: pl.Series) -> Column:
        shown = left or [c for c in _candidates(stated, values) if not self._is_wrong(c, values.head(1))]
        if shown:  # where a later value has another form, the query fails
            return shown[0]
        name, kind = stated.name, stated.kind
        why = f"column {name!r} should be a {kind}, but {values[0]!r} has no form that is known"
        raise ValueError(f"{why}; state it in the entry: `{name}: {kind} %d.%m.%Y`")

    def _is_wrong(self, column: Column, values: pl.Series) -> bool:
        return bool(values.to_frame().select(column.wrong(self.facts).any()).item())

    def _unambiguous(self, found: Mapping[str, Column]) -> dict[str, Column]:
        """Columns that may be day/month as well as month/day, as text. Raises ValueError when given."""
        swapped = {name: replace(c, form=_swapped(c.form)) for name, c in found.items() if _swapped(c.form)}
        if not swapped:
            return {}
        query = self.text.select(c.wrong(self.facts).any().alias(name) for name, c in swapped.items())
        wrong = query.collect(engine="streaming").row(0, named=True)
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
            query = self.text.select(self._first_odd(column) for column in odd.values())
            for name, value in query.collect(engine="streaming").row(0, named=True).items():
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


def _twins(column: Column, values: pl.Series) -> list[str]:
    """A remark where the first values have 1.1 beside 1.10: one number, but two codes."""
    texts = values.head(LOOKED_AT).to_list()
    long = [text for text in texts if text[-1] == "0" and column.decimal in text]
    short = [text.rstrip("0") for text in long]
    known = set(texts) if long else set[str]()
    twins = [text for text, one in zip(long, short, strict=True) if one[-1].isdigit() and one in known]
    if not twins:
        return []
    said = f"{twins[0]!r} and {twins[0].rstrip('0')!r} are one number"
    return [f"column {column.name!r}: {said}; if they are codes, state `{column.name}: text`"]


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
