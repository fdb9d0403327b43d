"""Two profiles of the same population do not differ; each planted fault does."""

import numpy as np
import polars as pl
import pytest

from overnight.data.drift import drift
from overnight.data.profile import TableProfile, profile

ROWS = 2000


def made(seed: int = 0) -> pl.DataFrame:
    dice = np.random.default_rng(seed)
    towns = dice.choice(["Rome", "Oslo", "Lima", "Pune"], ROWS, p=[0.5, 0.3, 0.15, 0.05])
    return pl.DataFrame(
        {
            "id": np.arange(ROWS) + 100_000 * seed,
            "price": dice.lognormal(3, 1, ROWS),
            "town": towns,
            "score": np.where(dice.random(ROWS) < 0.1, np.nan, dice.normal(size=ROWS)),
            "paid": dice.random(ROWS) < 0.3,
            "note": ["x" * int(n) for n in dice.integers(1, 30, ROWS)],
            "at": pl.Series(1_700_000_000_000_000 + dice.integers(0, 8 * 3600, ROWS) * 1_000_000).cast(
                pl.Datetime("us")
            ),
            "pieces": dice.poisson(3, ROWS),
        }
    ).with_columns(pl.col("score").fill_nan(None))


BEFORE = {"sales": profile(made().lazy())}


def changes(frame: pl.DataFrame) -> list[str]:
    return drift(BEFORE, {"sales": profile(frame.lazy())})


def some(every: int, value: object, column: str) -> pl.Expr:
    return pl.when(pl.int_range(pl.len()) % every == 0).then(value).otherwise(pl.col(column)).alias(column)


@pytest.mark.parametrize("seed", range(20))
def test_a_bootstrap_sample_has_not_changed(seed):
    assert changes(made().sample(ROWS, with_replacement=True, seed=seed)) == []


@pytest.mark.parametrize("seed", range(1, 6))
def test_new_rows_of_the_same_kind_have_not_changed(seed):
    assert changes(made(seed)) == []


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda f: f.with_columns(pl.col("price") * 100), "price"),
        (lambda f: f.with_columns(some(5, None, "price")), "price: 20.0% are missing"),
        (lambda f: f.with_columns(pl.col("town").replace("Oslo", "OSL")), "'OSL'"),
        (lambda f: f.with_columns(some(2, pl.lit("Pune"), "town")), "Pune"),
        (lambda f: f.with_columns(some(25, pl.lit("Kyiv"), "town")), "'Kyiv' is in 4.0% of the rows"),
        (lambda f: f.drop("pieces"), "'pieces' is not there"),
        (lambda f: f.with_columns(one=1), "'one' is new"),
        (lambda f: f.with_columns(pl.col("pieces").cast(pl.String)), "its type is String"),
        (lambda f: f.head(ROWS // 2), "1,000 rows; there were 2,000"),
        (lambda f: pl.concat([f, f]), "4,000 rows"),
        (lambda f: f.with_columns(some(40, -999.0, "score")), "-999"),
        (lambda f: f.with_columns(some(ROWS, 1e9, "price")), "goes up to 1e+09"),
        (lambda f: f.with_columns(~pl.col("paid")), "paid"),
        (lambda f: f.with_columns(pl.col("score") + 0.5), "score"),
        (lambda f: f.with_columns(pl.col("note").str.slice(0, 8)), "the lengths of its texts"),
        (lambda f: f.with_columns(pl.col("at").dt.offset_by("5h")), "the minutes of its days"),
        (lambda f: f.with_columns(some(ROWS, pl.lit("0024-05-01").str.to_datetime(), "at")), "0024-05-01"),
        (lambda f: f.with_columns(score=1.0), "score"),
    ],
)
def test_a_planted_fault_is_named(fault, named):
    assert named in "\n".join(changes(fault(made())))


def test_an_empty_table_and_columns_without_values_are_profiled():
    frame = pl.DataFrame({"a": pl.Series([], dtype=pl.Int64), "b": pl.Series([], dtype=pl.String)})
    empty = profile(frame.lazy())
    assert (empty.rows, empty.columns["a"].quantiles, empty.columns["b"].values) == (0, [], {})
    nothing = profile(pl.DataFrame({"a": [None, None], "b": [[1], [2]]}).lazy())
    assert nothing.columns["a"].nulls == 1.0
    assert drift({"t": empty}, {"t": nothing})


def test_a_profile_survives_its_file():
    found = profile(pl.DataFrame({"x": [1.0, float("inf"), float("nan"), None]}).lazy())
    assert TableProfile.model_validate_json(found.model_dump_json()) == found
    assert (found.columns["x"].low, found.columns["x"].high) == (1.0, 1.0)


def test_every_type_of_parquet_has_a_profile():
    found = profile(
        pl.DataFrame(
            {
                "bytes": [b"\xff", None, b"a"],
                "span": pl.Series([1, 1, None]).cast(pl.Duration("us")),
                "list": [[1], [1], None],
                "none": [None] * 3,
                "far": pl.Series([10**7, 0, 0]).cast(pl.Date),  # Python's end with the year 9999
                "farther": pl.Series([2**63 - 1, 0, -(2**63)]).cast(pl.Datetime("us")),
                "odd": [float("nan"), float("inf"), 2.0],
                "exact": pl.Series(["1.10", "2.20", None]).cast(pl.Decimal(10, 2)),
                "truth": [True, False, None],
            }
        ).lazy()
    ).columns
    assert {name: (c.low, c.high) for name, c in found.items() if c.low is not None} == {
        "far": (0, 10**7 * 86400),
        "farther": (pytest.approx(-(2**63) / 1e6), pytest.approx(2**63 / 1e6)),
        "odd": (2, 2),
        "exact": (pytest.approx(1.1), pytest.approx(2.2)),
        "truth": (0, 1),
    }
    assert (found["span"].values, found["list"].distinct, found["bytes"].distinct) == ({"1µs": 1}, 0, 2)
    assert found["none"].nulls == 1
