"""One column of a table of text: how its values are made, and which are not of its type."""

import re
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from overnight.data.content import EXACT, TRUTH
from overnight.data.readers._lines import Facts

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
    def decimals(self) -> pl.Expr:
        """How many digits stand after the point; null without one."""
        text = pl.col(self.name)
        return text.str.len_bytes() - text.str.find(self.decimal, literal=True) - 1

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
