"""Columns of a stated type: how a value becomes one, and which values do not."""

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from overnight.data.content import EXACT, TRUTH

if TYPE_CHECKING:
    import polars as pl

Type = Literal["int", "float", "text", "bool", "date", "datetime"]
# datetime takes the zone of times without one; date and datetime the form of their text
Stated = Annotated[str, Field(pattern=r"^(int|float|text|bool|(date|datetime)( \S.*)?)$")]
ZONE = re.compile(r"(?:^| )([A-Za-z_]+(?:/[A-Za-z0-9_+-]+)*)$")


def cast(column: str, dtype: "pl.DataType", stated: Stated) -> "pl.Expr | None":
    """The column as that type, null where it cannot be; None when it is of that type.

    Times without a zone are of the zone that `stated` names, else UTC; all become UTC. A local time that
    occurs twice is the earlier one, one that never occurs is null. Text is a date where it begins with the
    year in four digits; for others `stated` gives the form: "date %d/%m/%Y", "datetime %d.%m.%Y %H:%M
    Europe/Berlin".
    """
    import polars as pl

    kind, _, rest = stated.partition(" ")
    text = dtype == pl.String
    at = pl.col(column).str.strip_chars() if text else pl.col(column)
    if kind == "int":
        return None if dtype.is_integer() else _whole(at, dtype)
    if kind == "bool" and text:
        return at.str.to_lowercase().replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    if kind == "date" and text:
        return _four_digits(at, rest).str.to_date(rest or None, strict=False)
    if kind == "datetime":
        return _time_of_text(at, rest) if text else _utc(pl.col(column), dtype, rest or "UTC")
    if kind == "float" and (text or dtype.is_integer()):
        return _exact_float(at, text)
    wanted = {"float": pl.Float64, "text": pl.String, "bool": pl.Boolean, "date": pl.Date}[kind]
    return None if dtype == wanted else pl.col(column).cast(wanted, strict=False)


def _four_digits(text: "pl.Expr", form: str) -> "pl.Expr":
    """Text that does not begin with a year of four digits is no date, unless its form is stated."""
    import polars as pl

    return text if form else pl.when(text.str.contains(r"^\d{4}\D")).then(text)


def _time_of_text(text: "pl.Expr", rest: str) -> "pl.Expr":
    import polars as pl

    named = ZONE.search(rest)
    zone = named[1] if named else "UTC"
    form = ZONE.sub("", rest) if named else rest
    text = _four_digits(text, form)
    zoned = text.str.contains(r"(Z|[+-]\d\d:?\d\d)$")
    local = pl.when(~zoned).then(text).str.to_datetime(form or None, strict=False, time_unit="us")
    utc = (
        pl.when(zoned).then(text).str.to_datetime(form or None, strict=False, time_unit="us", time_zone="UTC")
    )
    return utc if "%z" in form or "%#z" in form else pl.coalesce(utc, _from_local(local, zone))


def _from_local(at: "pl.Expr", zone: str) -> "pl.Expr":
    known = at.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return known.dt.convert_time_zone("UTC")


def _utc(at: "pl.Expr", dtype: "pl.DataType", zone: str) -> "pl.Expr | None":
    """Microseconds in UTC, so that all times compare and join."""
    import polars as pl

    if dtype == pl.Datetime("us", "UTC"):
        return None
    zoned = getattr(dtype, "time_zone", None) is not None
    return (
        at.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
        if zoned
        else _from_local(at.cast(pl.Datetime("us"), strict=False), zone)
    )


def _whole(at: "pl.Expr", dtype: "pl.DataType") -> "pl.Expr":
    """Whole numbers; 2.0 is one, 2.5 is not, nor is a float that cannot tell one number from the next."""
    import polars as pl

    if dtype.is_decimal():
        return pl.when(at == at.floor()).then(at).cast(pl.Int64, strict=False)
    number = at.cast(pl.Float64, strict=False)
    exact = (number == number.floor()) & (number.abs() < EXACT)
    whole = pl.when(exact).then(number).cast(pl.Int64, strict=False)
    return pl.coalesce(at.cast(pl.Int64, strict=False), whole) if dtype == pl.String else whole


def _exact_float(at: "pl.Expr", text: bool) -> "pl.Expr":
    """Floats that hold every digit of a whole number, and are infinite only where the text says so."""
    import polars as pl

    value = at.cast(pl.Float64, strict=False)
    whole = at.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False) if text else at
    exact = (value.abs() < EXACT) | (value.cast(pl.Int64, strict=False) == whole).fill_null(value=False)
    if text:
        exact |= value.is_nan() | at.str.contains("(?i)inf") | (at.str.contains("[eE]") & value.is_finite())
    return pl.when(exact).then(value)


def notation(column: str, dtype: "pl.DataType", stated: Stated) -> "pl.Expr | None":
    """Whether a text is no number as a computer writes it: 012, +5, 2.0 as int; None: it is no text."""
    import polars as pl

    if dtype != pl.String or stated not in ("int", "float"):
        return None
    at = pl.col(column)
    if stated == "float":
        return at.str.contains(r"^\s|\s$|^\s*(\+|-?0\d)")
    return at.is_not_null() & (at.cast(pl.Int64, strict=False).cast(pl.String) != at).fill_null(value=True)
