"""Graphs linked out of a table."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from overnight import Artifact, DataSpec, RecordingRun, artifact
from overnight.errors import DataError
from tasks.graphs.link_table import LinkParams, link_rows


def run_in(folder: Path, seed: int = 0) -> RecordingRun:
    folder.mkdir(exist_ok=True)
    return RecordingRun(folder, seed=seed)


def people(tmp_path: Path) -> Artifact:
    """60 people in two towns, each in 6 of their town's 10 clubs; the town is unknown for some, two are from
    elsewhere.
    """
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        town = "north" if i % 2 else "south"
        named = "elsewhere" if i in (1, 2) else town
        said = None if i % 10 == 0 else named
        rows += [
            {"who": f"p{i:02}", "club": f"{town} {c}", "day": d, "town": said, "age": float(20 + i)}
            for d, c in enumerate(rng.permutation(10)[:6])
        ]
    rows += [
        {"who": None, "club": "north 1", "day": 0, "town": "north", "age": 1.0},
        {"who": "alone", "club": None, "day": 0, "town": "north", "age": None},
    ]
    frame = pl.DataFrame(
        rows,
        schema={"who": pl.String, "club": pl.String, "day": pl.Int64, "town": pl.String, "age": pl.Float64},
    )
    return artifact.save(
        tmp_path / "people",
        "table",
        DataSpec(rows=frame.height),
        files={"table.parquet": frame.write_parquet},
    )


def linked(tmp_path: Path, seed: int = 0, **params: object) -> tuple[RecordingRun, Artifact]:
    run = run_in(tmp_path / f"run{seed}", seed)
    given = {
        "node": "who",
        "by": ["club"],
        "label": "town",
        "features": {"age": "AVG(age)", "rows": "COUNT(day)"},
        "neighbours": 4,
        **params,
    }
    return run, link_rows.body(run, LinkParams(**given), people(tmp_path))


@pytest.mark.parametrize("similarity", ["jaccard", "cosine"])
def test_people_are_linked_within_their_town(tmp_path: Path, similarity: str) -> None:
    run, graph = linked(tmp_path, similarity=similarity, rare=5)
    arrays = graph.arrays()
    assert (graph.spec.nodes, graph.spec.classes, graph.spec.shape) == (61, ("north", "south"), (2,))
    assert (arrays["edges"][0] < arrays["edges"][1]).all()
    assert len(np.unique(arrays["edges"], axis=1).T) == graph.spec.edges <= 60 * 4
    names = ["alone", *(f"p{i:02}" for i in range(60))]
    parity = np.array([-1] + [i % 2 for i in range(60)])
    assert (parity[arrays["edges"][0]] == parity[arrays["edges"][1]]).all()
    assert names[0] == "alone"
    assert not np.isin(0, arrays["edges"])
    degrees = np.bincount(arrays["edges"].ravel(), minlength=61)
    assert degrees[1:].min() >= 4
    assert (arrays["weights"] > 0).all()
    assert (arrays["weights"] <= 1).all()
    assert run.last("data/node_without_a_label_kept") == 6
    assert run.last("data/node_of_a_rare_class_unlabelled") == 2
    assert run.last("data/missing_feature_given_the_mean_of_its_column") == 1


def test_jaccard_is_shared_over_all(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "who": ["a", "a", "a", "b", "b", "c"],
            "club": ["x", "y", "y", "x", "z", "q"],
            "t": ["u", "u", "u", "v", "v", "u"],
            "n": 1,
        }
    )
    table = artifact.save(
        tmp_path / "table", "table", DataSpec(rows=6), files={"table.parquet": frame.write_parquet}
    )
    params = LinkParams(
        node="who", by=["club"], label="t", features={"n": "SUM(n)"}, similarity="jaccard", rare=1
    )
    with pytest.raises(DataError, match="3 labelled nodes leave none for"):
        link_rows.body(run_in(tmp_path / "run"), params, table)
    from tasks.graphs import link_table

    edges, weights = link_table._links(
        pl.scan_parquet(table.path / "table.parquet").with_columns(pl.col("who").alias("\0node")),
        pl.Series(["a", "b", "c"]),
        params,
        0,
    )
    assert edges.tolist() == [[0], [1]]
    np.testing.assert_allclose(weights, [1 / 3])


def test_links_are_the_same_twice_and_drawn_by_seed(tmp_path: Path) -> None:
    first, again, other = (linked(tmp_path, seed)[1] for seed in (0, 0, 1))
    assert first.digest == again.digest
    assert (
        first.arrays()["edges"].shape != other.arrays()["edges"].shape
        or (first.arrays()["edges"] != other.arrays()["edges"]).any()
    )


def test_nodes_with_few_rows_are_left_out(tmp_path: Path) -> None:
    run, graph = linked(tmp_path, rows=2, rare=5)
    assert graph.spec.nodes == 60
    assert run.last("data/node_with_too_few_rows_left_out") == 1


@pytest.mark.parametrize(
    ("params", "messages"),
    [
        ({"node": "whom", "by": ["clubs"]}, ["no column 'whom'", "no column 'clubs'"]),
        ({"by": ["town"]}, ["town cannot be a key: it is the label"]),
        (
            {"features": {"spy": "MAX(CASE WHEN town = 'north' THEN 1 ELSE 0 END)"}},
            ["feature 'spy' is made of the label 'town'"],
        ),
        ({"features": {"bad": "AVG(nope)"}}, ["feature 'bad': 'AVG(nope)' does not work"]),
        ({"features": {"list": "age"}}, ["gives List(Float64), not one number"]),
        ({"rare": 50}, ["0 of 0 classes occur"]),
        ({"by": ["who"]}, ["no two values of 'who' share who"]),
    ],
)
def test_wrong_values_say_what_is_wrong(
    tmp_path: Path, params: dict[str, object], messages: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        linked(tmp_path, **params)
    assert all(message in str(error.value) for message in messages), str(error.value)
