"""Values of a stated type: exact, or null; text is a date where nothing has to be guessed."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from tasks.tabular.columns import cast


def typed(values: list[object], stated: str, dtype: pl.DataType | None = None) -> list[object]:
    rows = pl.DataFrame({"a": pl.Series(values, dtype=dtype)})
    made = cast("a", rows.schema["a"], stated)
    return rows["a"].to_list() if made is None else rows.select(made)["a"].to_list()


@pytest.mark.parametrize(
    ("values", "dtype", "whole"),
    [
        (["1", "2.0", "2.5", " 3 ", "9007199254740993.0", "1e17", "x"], pl.String(), [1, 2, None, 3, None, None, None]),
        (["9223372036854775807", "9223372036854775808"], pl.String(), [2**63 - 1, None]),
        ([2.0, 2.5, float(2**53 - 1), float(2**53), float("inf"), float("nan")], pl.Float64(), [2, None, 2**53 - 1, None, None, None]),
    ],
)  # fmt: skip
def test_a_whole_number_is_the_same_number(
    values: list[object], dtype: pl.DataType, whole: list[object]
) -> None:
    assert typed(values, "int", dtype) == whole


def test_a_decimal_is_whole_where_nothing_follows_its_point() -> None:
    rows = pl.DataFrame({"a": ["1.00", "2.50", "12345678901234567890.00"]})
    rows = rows.select(pl.col("a").cast(pl.Decimal(38, 2)))
    made = cast("a", rows.schema["a"], "int")
    assert made is not None
    assert rows.select(made)["a"].to_list() == [1, None, None]


def test_dates_are_read_where_the_year_has_four_digits_or_the_form_is_stated() -> None:
    given = ["2024-01-03", "24-01-03", "02/03/2024"]
    assert typed(given, "date") == [date(2024, 1, 3), None, None]
    assert typed(given, "date %d/%m/%Y") == [None, None, date(2024, 3, 2)]


def test_a_time_without_a_zone_is_of_the_zone_that_is_stated() -> None:
    given = ["2024-01-01T10:00:00Z", "2024-07-01 12:00:00", "2024-10-27 02:30", "2024-03-31 02:30"]
    assert typed(given, "datetime Europe/Berlin") == [
        datetime(2024, 1, 1, 10, tzinfo=UTC),
        datetime(2024, 7, 1, 10, tzinfo=UTC),
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),  # twice on that day: the earlier one
        None,  # never on that day
    ]
    naive = [datetime(2024, 7, 1, 12), None]  # noqa: DTZ001 - that is the case
    assert typed(naive, "datetime America/New_York") == [datetime(2024, 7, 1, 16, tzinfo=UTC), None]
    assert typed(naive, "datetime") == [datetime(2024, 7, 1, 12, tzinfo=UTC), None]


def test_truth_is_written_as_in_the_files() -> None:
    assert typed(["Y", " n ", "TRUE", "0", "maybe"], "bool") == [True, False, True, False, None]
