"""How the rows of a table are cut: what must share a part does, whatever the order of the rows."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from overnight import Artifact, DataSpec, RecordingRun, artifact
from overnight.errors import DataError
from tasks.tabular.hashes import file_hash, row_hash
from tasks.tabular.join import join_tables
from tasks.tabular.params import FitParams
from tasks.tabular.parts import Parts, cut
from tasks.tabular.tables import TableParams
from tasks.tabular.target import labelled
from tests.tasks.tabular.test_join import made as tables_of

ROWS = 2000


def made(folder: Path, frame: pl.DataFrame, **params: object) -> tuple[Parts, pl.DataFrame]:
    file = artifact.save(
        folder / "t", "table", DataSpec(rows=frame.height), files={"table.parquet": frame.write_parquet}
    )
    assert isinstance(file, Artifact)
    given = {"target": "paid", "numeric": ["x"], **params}
    rows = labelled(FitParams.model_validate(given), file)
    return cut(FitParams.model_validate(given), rows, seed=0), frame


def frame(**more: object) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {"x": rng.normal(size=ROWS), "id": np.arange(ROWS), "paid": rng.random(ROWS) < 0.3, **more}
    )


def names(parts: Parts) -> list[str]:
    found = np.full(len(parts.identity), "train", object)
    found[parts.val], found[parts.test] = "val", "test"
    return found.tolist()


@pytest.mark.parametrize("way", [{}, {"groups": "shop"}, {"order": "day"}, {"groups": ["shop", "day"]}])
def test_the_order_of_the_rows_is_no_matter(tmp_path: Path, way: dict[str, object]) -> None:
    rng = np.random.default_rng(1)
    whole = frame(shop=rng.integers(0, 300, ROWS), day=rng.integers(0, 90, ROWS))
    one, _ = made(tmp_path, whole, **way)
    mixed = whole.sample(fraction=1.0, shuffle=True, seed=3)
    two, _ = made(tmp_path / "two", mixed, **way)
    by_id = dict(zip(mixed["id"], names(two), strict=True))
    assert names(one) == [by_id[i] for i in whole["id"]]
    sizes = [len(part) / ROWS for part in (one.train, one.val, one.test)]
    assert sizes == pytest.approx([0.7, 0.1, 0.2], abs=0.06)


def test_other_features_leave_the_parts_as_they_are(tmp_path: Path) -> None:
    """So that a model of more columns can be compared with the champion."""
    whole = frame(more=np.arange(ROWS) % 9, other=np.arange(ROWS) % 11)
    one, _ = made(tmp_path, whole)
    two, _ = made(
        tmp_path / "two", whole.select(whole.columns[::-1]), numeric=["x", "more"], categorical=["other"]
    )
    assert names(one) == names(two)


def test_a_row_keeps_its_part_when_others_come(tmp_path: Path) -> None:
    whole = frame()
    part, _ = made(tmp_path, whole)
    first, _ = made(tmp_path / "two", whole.head(1200))
    assert names(first) == names(part)[:1200]


@pytest.mark.parametrize("times", [2, 4, 30])
def test_copies_share_a_part(tmp_path: Path, times: int) -> None:
    rng = np.random.default_rng(2)
    some = frame(shop=pl.Series(rng.choice(["a", "b", None], ROWS).tolist())).head(ROWS // times)
    copied = pl.concat([some] * times).with_columns(id=pl.int_range(pl.len()))
    parts, _ = made(tmp_path, copied, categorical=["shop"])
    assert parts.copied
    assert parts.seen == 0


def test_rows_measured_again_with_another_answer_are_no_copies(tmp_path: Path) -> None:
    again = frame().with_columns(x=pl.col("id") % 200 * 0.1)
    assert not made(tmp_path, again)[0].copied
    twice = pl.col("id") < 20  # copies of one row among 2,000 others
    some = frame().with_columns(
        x=pl.when(twice).then(1.0).otherwise("x"),
        paid=pl.when(twice).then(pl.lit("yes")).otherwise(pl.col("paid").cast(pl.String)),
    )
    assert made(tmp_path / "few", some)[0].copied


@pytest.mark.parametrize("certain", [False, True])
def test_columns_of_few_values_are_cut_row_by_row(tmp_path: Path, certain: bool) -> None:
    """Kept together, a test part would hold none of the rows that are learned from: another question."""
    rng = np.random.default_rng(2)
    whole = frame(sex=rng.choice(["m", "f"], ROWS), grade=rng.integers(1, 4, ROWS)).drop("x")
    target = "grade = 3" if certain else "paid"
    given = {"numeric": ["level"], "categorical": ["sex"], "target": target}
    parts, _ = made(tmp_path, whole.with_columns(level="grade"), **given)
    assert parts.seen == len(parts.test)
    assert len(parts.test) / ROWS == pytest.approx(0.2, abs=0.03)
    assert len(parts.remarks) == certain  # it says that answers may be known by heart


def test_a_group_is_never_split_and_few_groups_keep_the_shares(tmp_path: Path) -> None:
    whole = frame(shop=np.arange(ROWS) % 10)
    parts, _ = made(tmp_path, whole, groups="shop")
    shops = [set(whole["shop"].to_numpy()[part].tolist()) for part in (parts.train, parts.val, parts.test)]
    assert [len(part) for part in shops] == [7, 1, 2]
    assert not shops[0] & shops[2]
    assert not shops[0] & shops[1]


def test_ties_move_a_share_and_it_is_told(tmp_path: Path) -> None:
    days = np.where(np.arange(ROWS) < 800, np.arange(ROWS) // 10, 500)  # 60 % of the rows on the last day
    parts, _ = made(tmp_path, frame(day=days), order="day")
    assert len(parts.test) == 1200
    assert "test has 60 % of the rows (20 % asked), since rows with equal day stay together" in parts.remarks
    near = np.where(np.arange(ROWS) < 1500, np.arange(ROWS) // 10, 500)  # 25 %: nearer to it than 0 %
    parts, _ = made(tmp_path / "near", frame(day=near), order="day")
    assert (len(parts.test), parts.remarks) == (500, ())


def test_dates_order_rows_and_the_last_ones_are_tested(tmp_path: Path) -> None:
    days = [date(2024, 1, 1) + timedelta(days=i * 7 % 100) for i in range(ROWS)]
    parts, whole = made(tmp_path, frame(day=days), order="day")
    last = [whole["day"].to_numpy()[part] for part in (parts.train, parts.val, parts.test)]
    assert last[0].max() < last[1].min()
    assert last[1].max() < last[2].min()


def test_parts_by_name_and_val_is_cut_off_train_where_none_is_named(tmp_path: Path) -> None:
    whole = frame(split=np.where(np.arange(ROWS) < 1500, "Train", "test "))
    parts, _ = made(tmp_path, whole, parts="split")
    assert parts.test.tolist() == list(range(1500, ROWS))
    assert len(parts.val) / 1500 == pytest.approx(0.1, abs=0.03)
    named = frame(split=np.array(["train", "dev", "test", "train"])[np.arange(ROWS) % 4])
    parts, _ = made(tmp_path / "named", named, parts="split")
    assert parts.val.tolist() == list(range(1, ROWS, 4))
    parts, _ = made(tmp_path / "off", whole, parts="split", val=0)
    assert len(parts.val) == 0


@pytest.mark.parametrize(
    ("more", "params", "message"),
    [
        ({"split": ["train", "holdout"] * (ROWS // 2)}, {"parts": "split"}, r"in 1000 rows \('holdout'\)"),
        ({"split": ["train"] * ROWS}, {"parts": "split"}, "and 0 of test; 'split' names none of test"),
        ({"day": [1, 2] * (ROWS // 2)}, {"order": "day"}, "2 different values, too few for 3 parts"),
        ({"day": [None, *range(ROWS - 1)]}, {"order": "day"}, "1 rows have no 'day'"),
        (
            {"shop": [1] * ROWS},
            {"groups": "shop"},
            "groups shop have 1 different values, too few for 3 parts",
        ),
        ({"shop": [1] * ROWS}, {"groups": "shop", "val": 0}, "1 different values, too few for 2 parts"),
        ({"shop": [1, 2] * (ROWS // 2)}, {"groups": "shop"}, "cut in another way, or set val: 0 to cut two"),
        ({"shop": [None, *range(1, ROWS)]}, {"groups": "shop"}, "1 rows have no 'shop' to group them by"),
    ],
)
def test_a_cut_that_leaves_a_part_empty_says_what_to_do(
    tmp_path: Path, more: dict[str, object], params: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        made(tmp_path, frame(**more), **params)


def test_equal_values_have_equal_hashes_whatever_they_are() -> None:
    days = pl.Series([date(2024, 1, 1)] * 2 + [date(2024, 1, 2)])
    one = pl.DataFrame({"a": [0.0, -0.0, 1.0], "b": ["x", "x", None], "c": days, "d": [True, True, None]})
    first, second, third = row_hash(one)
    assert file_hash(one.lazy(), list("dbca")).tolist() == [first, second, third]
    assert first == second != third
    assert row_hash(one[::-1]).tolist() == [third, second, first]
    large = pl.Series("a", [2**63 + 5, 2**63 + 6, 5, None], dtype=pl.UInt64)
    assert len(set(row_hash(large.to_frame()).tolist())) == 4
    gaps = pl.DataFrame({"a": [None, float("nan"), 1.0, -1.0]})
    assert len(set(row_hash(gaps).tolist())) == 3
    assert row_hash(pl.DataFrame({"a": ["one"], "b": [7]})).tolist() == [1445646589810640060]


def test_official_files_for_train_and_test_are_one_table_with_names(tmp_path: Path, folder: Path) -> None:
    rows = ["x,paid", *(f"{i * 7 % 31},{'yes' if i % 3 else 'no'}" for i in range(90))]
    data = tables_of(folder, train="\n".join(rows), test="\n".join(rows[:31]))
    union = "SELECT *, 'train' AS part FROM train UNION ALL SELECT *, 'test' AS part FROM test"
    (tmp_path / "run").mkdir()
    joins = TableParams(fact="every", sql={"every": union})
    table = join_tables.body(RecordingRun(tmp_path / "run"), joins, data)
    params = FitParams(target="paid", categorical=["x"], parts="part")
    found = cut(params, labelled(params, table), seed=0)
    parts = pl.read_parquet(table.path / "table.parquet")["part"]
    assert set(parts[found.test]) == {"test"}
    assert set(parts[np.concatenate([found.train, found.val])]) == {"train"}
    assert len(found.test) == found.seen == 30


@pytest.mark.parametrize(("groups", "params"), [(2, {"val": 0}), (3, {}), (4, {}), (7, {})])
def test_few_groups_give_each_part_one(tmp_path: Path, groups: int, params: dict[str, object]) -> None:
    parts, whole = made(tmp_path, frame(shop=np.arange(ROWS) % groups), groups="shop", **params)
    sizes = [whole["shop"][part].n_unique() for part in (parts.train, parts.val, parts.test)]
    assert sum(sizes) == groups
    assert all(size > 0 for size in sizes[:: 2 if params else 1])


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (slice(1990, 2000), ["the class 'odd' was never learned: its rows are 10 of test"]),
        (slice(0, 1), ["the class 'odd' is in no score of test: its rows are 1 of train"]),
        (slice(1500, 1510), ["the class 'odd' was never learned: its rows are 10 of val",
                             "the class 'odd' is in no score of test: its rows are 10 of val"]),
        (slice(0, 0), []),
    ],
)  # fmt: skip
def test_a_class_that_a_part_lacks_is_named(tmp_path: Path, at: slice, said: list[str]) -> None:
    target = np.where(np.arange(ROWS) % 2, "a", "b").astype(object)
    target[at] = "odd"
    parts, _ = made(tmp_path, frame(day=np.arange(ROWS), kind=target.tolist()), target="kind", order="day")
    assert [remark for remark in parts.remarks if "class" in remark] == said
