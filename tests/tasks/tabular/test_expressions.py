"""SQL expressions: whole numbers never wrap, nan counts as missing where that is asked, mistakes are named."""

from datetime import UTC, datetime

import polars as pl
import pytest

from overnight.errors import DataError
from tasks.tabular.expressions import Expressions, failed

LARGEST = 2**63 - 1
ROWS = pl.LazyFrame(
    {"at": [datetime(2024, 7, 1, 23, 59, tzinfo=UTC)], "large": [LARGEST], "five": [5], "gone": [float("nan")], "name": ["a"]},
    schema_overrides={"five": pl.Int8},
)  # fmt: skip


def value(text: str, nan_is_missing: bool = False) -> object:
    made = Expressions().parse(text, "derive.x", ROWS.collect_schema(), nan_is_missing)
    return ROWS.select(made.alias("x")).collect(engine="streaming").item()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("EXTRACT(hour FROM at) * 60 + EXTRACT(minute FROM at)", 1439),  # parts of times have 8 bits
        ("five * five * five", 125),
        ("five * 1000", 5000),
        ("SUM(five) OVER (PARTITION BY name) * 100", 500),
        ("ABS(0 - five) - 6", -1),
        ("large % 10", 7),
        ("POW(large, 2)", float(LARGEST) ** 2),
        ("five / 2", 2.5),
        ("CASE WHEN five > 4 THEN five * 100 ELSE 0 END", 500),
        ("SUBSTR(name, five - 4, 1)", "a"),
    ],
)
def test_small_types_are_widened(text: str, result: object) -> None:
    assert value(text) == result


@pytest.mark.parametrize("text", ["large + 1", "large * large * large", "0 - large - 2", "SUM(large) * 2", "large + five - 100"])  # fmt: skip
def test_a_number_beyond_64_bits_is_an_error_that_names_the_expression(text: str) -> None:
    made = Expressions().parse(text, "derive.x", ROWS.collect_schema())
    with pytest.raises(pl.exceptions.PolarsError):
        ROWS.select(made.alias("x")).collect(engine="streaming")
    problem = failed({"derive.y": ("five", ROWS, pl.col("five")), "derive.x": (text, ROWS, made)})
    assert problem is not None
    assert f"derive.x: {text!r} gives whole numbers that do not fit into 64 bits" in str(problem)


def test_on_a_card_small_types_are_widened_to_64_bits() -> None:
    made = Expressions(wide=False).parse("five * 1000", "derive.x", ROWS.collect_schema())
    assert "Int128" not in str(made)
    assert ROWS.select(made).collect().item() == 5000


@pytest.mark.parametrize(("text", "result"), [("gone > 0", None), ("gone > 0 OR five > 0", True), ("COALESCE(gone, 1) = 1", True)])  # fmt: skip
def test_nan_counts_as_missing_in_conditions(text: str, result: object) -> None:
    assert value(text, nan_is_missing=True) is result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prize * 2", "derive.x: 'prize \\* 2' names 'prize'; there are at, large, five, gone, name"),
        ("fife + 1", "did you mean 'five'"),
        ("five >>> 2", "derive.x: 'five >>> 2' is not an SQL expression"),
        ("NO_SUCH(five)", "derive.x: .* unsupported function 'no_such'"),
        ("name + five * at", "derive.x"),
    ],
)
def test_a_mistake_is_found_by_the_schema_alone(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Expressions().parse(text, "derive.x", ROWS.collect_schema())


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("SELECT EXTRACT(hour FROM at) * 60 + EXTRACT(minute FROM at) AS x FROM t", [1439]),
        ("SELECT DATE_PART('hour', at) * 60 AS x FROM t", [1380]),
        ("SELECT LENGTH(name || ' (') * 2000000000 AS x, '+' AS \"LENGTH(\" FROM t", [6_000_000_000, "+"]),
        ("SELECT five * 1000 AS x, name FROM t", [5000, "a"]),
        ("SELECT name, SUM(five) * 100 AS x FROM t GROUP BY name", ["a", 500]),
        ("SELECT x FROM (SELECT five * five * five AS x FROM t) AS u", [125]),
        ("SELECT *, 1 + 1 AS x FROM t WHERE large - 1 > 0", [*ROWS.collect().row(0), 2]),
        ("SELECT SUBSTR(name, five - 4, 1) AS x, five / 2 AS y FROM t", ["a", 2.5]),
        ("SELECT COUNT(*) * 3000000000 AS x FROM t", [3_000_000_000]),
        ("SELECT * FROM t", [*ROWS.collect().row(0)]),
        ("SELECT large % 10 AS x FROM t ORDER BY large + 1", [7]),
    ],
)
def test_whole_numbers_of_a_query_do_not_wrap(text: str, result: list[object]) -> None:
    rows = Expressions().query(text, {"t": ROWS}).collect(engine="streaming")
    assert repr(list(rows.row(0))) == repr(result)
    assert pl.Int128 not in rows.dtypes


@pytest.mark.parametrize(
    "text",
    ["SELECT large + 1 AS x FROM t", "SELECT SUM(large) AS x FROM (SELECT * FROM t UNION ALL SELECT * FROM t) AS u",
     "SELECT ABS(0 - large - 1) AS x FROM t", "SELECT -(0 - large - 1) AS x FROM t", "SELECT large * large AS x FROM t",
     "SELECT POW(large, 2) AS x FROM t"],
)  # fmt: skip
def test_a_query_beyond_64_bits_is_an_error(text: str) -> None:
    with pytest.raises(pl.exceptions.PolarsError, match="conversion from `i128` to `i64` failed"):
        Expressions().query(text, {"t": ROWS}).collect(engine="streaming")
