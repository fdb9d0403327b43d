"""What is in a table: exact or said to be estimated, whatever the types; a page with every column."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from overnight.data.profile import EXACT_ROWS
from tasks.tabular import page, profile


def profiled(
    frame: pl.DataFrame, folder: Path, asked: dict[str, str] | None = None
) -> tuple[dict[str, dict[str, object]], str]:
    file = folder / "t.parquet"
    frame.write_parquet(file, row_group_size=50_000)
    columns, sample = profile.columns(file)
    found = {
        "rows_in": 9,
        "rows_joined": 9,
        "rows_out": frame.height,
        "dropped": {},
        "joins": [],
        "columns": columns,
    }
    drawn = profile.drawn(sample, asked or {})
    return {c["column"]: c for c in columns}, page.page(found, drawn)


def test_every_type_has_an_entry_and_what_can_be_drawn_is_drawn(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "number": [1.0, float("nan"), float("inf"), None],
            "huge": [-1.7e308, 1.7e308, 0.0, 1.0],
            "text": ["<b>", "y", "y", None],
            "day": [date(2024, 1, 1) + timedelta(days=i) for i in range(4)],
            "truth": [True, False, None, True],
            "list": [[1], [2], [], None],
            "empty": [None] * 4,
            "same": [7] * 4,
            "bytes": [b"\xff", b"a", None, b"a"],
            "far": pl.Series([10**7, 0, 1, 1]).cast(pl.Date),  # Python's end with the year 9999
        }
    ).with_columns(kind=pl.col("text").cast(pl.Categorical), span=pl.col("day") - pl.col("day").first())
    found, text = profiled(frame, tmp_path)
    assert found["number"] == {"column": "number", "type": "Float64", "nulls": 1, "distinct": 1, "min": 1.0, "max": 1.0, "mean": 1.0, "nan": 1, "inf": 1}  # fmt: skip
    assert (found["day"]["min"], found["day"]["max"], found["day"]["distinct"]) == (
        "2024-01-01",
        "2024-01-04",
        4,
    )
    assert (found["empty"]["nulls"], found["list"]["nulls"], found["text"]["distinct"]) == (4, 1, 2)
    assert (found["bytes"]["distinct"], found["span"]["max"]) == (2, "3 days, 0:00:00")
    assert (found["far"]["min"], found["far"]["max"]) == ("1970-01-01", "8.64e+11 s since 1970")
    assert text.count("<svg") == 7  # not: number (one finite value), list, empty, same
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "columns with nan: 1 (number)" in text
    assert "2024-01-01 to 2024-01-04" in text


def test_a_large_table_is_told_from_its_statistics_and_estimates(tmp_path: Path) -> None:
    rows = EXACT_ROWS + 100_001
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "id": np.arange(rows),
            "level": rng.choice(["ä", "b", "z"], rows),
            "value": rng.normal(size=rows),
            "day": pl.Series(rng.integers(0, 1000, rows)).cast(pl.Date),
            "odd": pl.Series(rng.normal(size=rows)).scatter([3], float("nan")),
        }
    ).with_columns(gaps=pl.when(pl.col("id") % 2 == 0).then(pl.col("id")))
    found, text = profiled(frame, tmp_path)
    for name in ("id", "value", "day", "gaps"):
        series = frame[name]
        assert found[name]["nulls"] == series.null_count()
        assert found[name]["distinct"] == pytest.approx(series.drop_nulls().n_unique(), rel=0.06)
        assert str(found[name]["min"])[:6] == str(series.min())[:6]
    assert found["level"] | {"mean": None} == {"column": "level", "type": "String", "nulls": 0, "distinct": 3, "min": "b", "max": "ä", "mean": None, "estimated": True}  # fmt: skip
    assert found["odd"]["nan"] == 1
    assert "~3" in text


def test_the_target_is_first_and_many_columns_are_folded_away(tmp_path: Path) -> None:
    frame = pl.DataFrame({f"c{i}": [i, i + 1, i + 3] for i in range(page.WIDE + 5)})
    _, text = profiled(
        frame, tmp_path, {"predictor.target": "CASE WHEN c1 > 2 THEN 'late' ELSE 'in time' END"}
    )
    body = text[text.index("<tbody>") :]
    assert body.index("predictor.target") < body.index("c0<")
    assert "in time: 2, late: 1" in body or "late: 1" in body
    assert "6 more columns" in text
    assert len(text) / len(frame.columns) < 700
