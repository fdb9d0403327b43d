"""Graphs come whole, split and normalised out of data sets."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from overnight import Artifact, RecordingRun
from overnight.data.content import Graph
from overnight.data.dataset import Dataset, load_entry
from overnight.errors import DataError
from tasks.graphs.arrays import _degrees, adjacency
from tasks.graphs.load import GraphParams, load_graph


def run_in(folder: Path, seed: int = 0) -> RecordingRun:
    folder.mkdir(parents=True, exist_ok=True)
    return RecordingRun(folder, seed=seed)


class Made(Dataset):
    """An entry whose content is made here."""

    content: object

    def load(self) -> Graph:
        assert isinstance(self.content, Graph)
        return self.content


def made(
    tmp_path: Path, seed: int = 0, params: Mapping[str, object] | None = None, **values: object
) -> tuple[RecordingRun, Artifact]:
    """A ring of 40 nodes with two classes and dense features; any of it replaced."""
    nodes = 40
    ring = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes])
    parts = {
        "edges": ring,
        "nodes": nodes,
        "features": np.random.default_rng(0).normal(3, 2, (nodes, 5)).astype(np.float32),
        "labels": np.arange(nodes) % 2,
        "classes": ("even", "odd"),
        **values,
    }
    run = run_in(tmp_path / f"run{seed}", seed)
    return run, load_graph.body(
        run,
        GraphParams(**(params or {})),
        Made(name="made", kind="graph", reader="edge_list", content=Graph(**parts)),
    )


def masks(graph: Artifact) -> dict[str, np.ndarray]:
    return {split: graph.arrays()[f"{split}_mask"] for split in ("train", "val", "test")}


def test_splits_are_cut_by_seed_and_class(tmp_path: Path) -> None:
    run, graph = made(tmp_path)
    found, labels = masks(graph), graph.arrays()["labels"]
    assert graph.spec.counts == {"train": 24, "val": 8, "test": 8}
    assert (sum(found.values()) == 1).all()
    assert [int(labels[mask].sum()) for mask in found.values()] == [12, 4, 4]
    assert made(tmp_path)[1].digest == graph.digest != made(tmp_path, seed=1)[1].digest
    assert run.of("data")[0]["digest"] == graph.digest


def test_splits_of_the_set_stay_and_the_missing_one_is_cut_off_train(tmp_path: Path) -> None:
    given = {"train": np.arange(40) < 20, "test": np.arange(40) >= 30}
    _, graph = made(tmp_path, masks=given)
    found = masks(graph)
    assert (found["test"] == given["test"]).all()
    assert found["val"].sum() == 4
    assert ((found["train"] | found["val"]) == given["train"]).all()


def test_unlabelled_and_doubly_split_nodes_are_counted(tmp_path: Path) -> None:
    labels = np.where(np.arange(40) % 10 == 0, -1, np.arange(40) % 2)
    everything = {split: np.ones(40, bool) for split in ("train", "val")} | {"test": np.arange(40) >= 30}
    everything["train"] = np.arange(40) < 20
    everything["val"] = np.arange(40) < 30
    run, graph = made(tmp_path, labels=labels, masks=everything)
    assert graph.spec.counts == {"train": 18, "val": 9, "test": 9}
    assert run.last("data/node_of_two_splits_kept_in_the_first") == 18
    assert run.last("data/unlabelled_node_left_out_of_a_split") == 6


def test_dense_features_have_mean_0_and_sparse_rows_sum_to_1(tmp_path: Path) -> None:
    odd = np.random.default_rng(0).normal(3, 2, (40, 5)).astype(np.float32)
    odd[3, 2], odd[:, 4] = np.nan, 7
    run, graph = made(tmp_path, features=odd)
    features = graph.arrays()["features"]
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(0), [1, 1, 1, 1, 0], atol=1e-5)
    assert run.last("data/feature_that_is_no_finite_number_set_to_0") == 1
    bag = np.zeros((40, 50), np.float32)
    bag[np.arange(1, 40), np.arange(1, 40)] = 4
    bag[1:, 0] = 1
    _, graph = made(tmp_path, features=bag)
    arrays = graph.arrays()
    assert (graph.spec.shape, graph.spec.nonzeros) == ((50,), 78)
    np.testing.assert_allclose(
        np.add.reduceat(arrays["features_data"], arrays["features_indptr"][1:-1]), 1, rtol=1e-6
    )


@pytest.mark.parametrize(("blank", "width", "nonzeros"), [("identity", 34, 34), ("degree", 2, 0)])
def test_a_graph_without_features_gets_some(tmp_path: Path, blank: str, width: int, nonzeros: int) -> None:
    run = run_in(tmp_path / "run")
    graph = load_graph.body(run, GraphParams(blank=blank), load_entry("karate"))
    assert (graph.spec.shape, graph.spec.nonzeros, graph.spec.nodes, graph.spec.edges) == (
        (width,),
        nonzeros,
        34,
        78,
    )
    assert run.last(f"data/graph_without_features_given_the_{blank}_of_its_nodes") == 1


def test_isolated_nodes_are_kept_and_counted(tmp_path: Path) -> None:
    run, graph = made(tmp_path, edges=np.array([[0, 1], [1, 2]]))
    assert graph.spec.edges == 2
    assert run.last("data/isolated_node_kept") == 37


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": np.zeros(40, int)}, "1 of 2 classes occur among 40 nodes"),
        ({"labels": np.full(40, -1)}, "0 of 2 classes occur"),
        (
            {"labels": np.where(np.arange(40) < 2, np.arange(40), -1)},
            "2 labelled nodes leave none for val, test",
        ),
    ],
)
def test_what_cannot_be_learned_from_says_why(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        made(tmp_path, **values)


def test_a_set_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds images, not graph"):
        load_graph.body(run_in(tmp_path / "run"), GraphParams(), load_entry("digits"))


def test_adjacency_is_the_normalised_one() -> None:
    found = adjacency(np.array([[0, 1], [1, 2]]), 4).toarray()
    half, sixth = 1 / 2, 1 / np.sqrt(6)
    np.testing.assert_allclose(
        found, [[half, sixth, 0, 0], [sixth, 1 / 3, sixth, 0], [0, sixth, half, 0], [0, 0, 0, 1]], rtol=1e-6
    )


# ------------------------------------------------------------------------------------------------ linked out
# of a table


def test_degrees_are_shown(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    assert [Path(event["path"]).name for event in run.of("publish")] == ["degrees.png"]
    edges = np.array([[0, 0, 0, 1], [1, 2, 3, 2]])
    figure = _degrees(Graph(edges, 6, None, np.zeros(6, np.int64), ("a",)))
    line = figure.axes[0].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [4, 3, 1])
    assert "2 without any" in line.get_label()


@pytest.mark.parametrize("scale", ["columns", "rows"])
@pytest.mark.parametrize("unit", [1e30, 1e-30])
def test_the_unit_of_features_is_no_matter(tmp_path: Path, scale: str, unit: float) -> None:
    plain = np.random.default_rng(0).normal(3, 2, (40, 5)).astype(np.float32)
    _, one = made(tmp_path / "one", params={"normalize": scale}, features=plain)
    _, other = made(
        tmp_path / "other", params={"normalize": scale}, features=(plain * unit).astype(np.float32)
    )
    np.testing.assert_allclose(one.arrays()["features"], other.arrays()["features"], rtol=1e-4, atol=1e-4)
