"""Rules of an entry: what keeps them, what breaks each."""

import polars as pl
import pytest
from pydantic import ValidationError

from overnight.data.rules import TableRules, broken

FRAME = pl.DataFrame(
    {"id": [1, 2, 3, 3], "town": ["Rome", "Oslo", "Oslo", None], "price": [1.5, float("nan"), 3.0, 9.0]}
).lazy()


def wrong(**values):
    return broken({"sales": TableRules.model_validate(values)}, {"sales": FRAME})


def test_a_table_that_keeps_all_rules_is_fine():
    columns = {
        "town": {"values": ["Rome", "Oslo"], "nulls": 0.25},
        "price": {"min": 1, "max": 9, "nulls": 0.3},
    }
    assert wrong(rows=[4, 4], columns={**columns, "id": {"pattern": r"\d"}}) == []


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"rows": [5, 9]}, "4 rows; expected 5 to 9"),
        ({"key": ["id"]}, "1 values of id occur more than once (first: id 3)"),
        ({"columns": {"id": {"unique": True}}}, "more than once"),
        ({"columns": {"town": {"nulls": 0}}}, "column 'town': values that are missing: 1 of 4"),
        ({"columns": {"price": {"nulls": 0.2}}}, "values that are missing: 1 of 4; at most 20.00% may be"),
        ({"columns": {"price": {"max": 5}}}, "values above 5.0: 1 of 4"),
        ({"columns": {"price": {"min": 2}}}, "values below 2.0: 1 of 4"),
        ({"columns": {"town": {"values": ["Rome"]}}}, "values other than Rome: 2 of 4"),
        ({"columns": {"town": {"pattern": "R.*"}}}, "values unlike R.*: 2 of 4"),
        ({"columns": {"twon": {"nulls": 0}}}, "did you mean 'town'"),
    ],
)
def test_a_broken_rule_is_named(rules, named):
    (found,) = wrong(**rules)
    assert named in found


def test_dates_have_bounds():
    frame = pl.DataFrame({"day": ["2024-01-03", "0024-01-03"]}).select(pl.col("day").str.to_date()).lazy()
    rules = {"t": TableRules.model_validate({"columns": {"day": {"min": "1990-01-01"}}})}
    assert "values below 1990-01-01: 1 of 2" in broken(rules, {"t": frame})[0]


def test_a_table_that_is_not_there_is_named():
    assert "no table 'salse'" in broken({"salse": TableRules()}, {"sales": FRAME})[0]


def test_rows_stand_in_order():
    with pytest.raises(ValidationError, match="the least comes first"):
        TableRules(rows=[9, 3])
