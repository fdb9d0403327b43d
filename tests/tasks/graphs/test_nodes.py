"""The graph network: its product and gradient are right, it learns what only the edges tell, and it reaches
its floors on real graphs.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from mlflow.exceptions import MlflowException
from torch._subclasses.fake_tensor import FakeTensorMode

from overnight import Artifact, DataSpec, RecordingRun, artifact
from overnight.data.content import CleaningCounts, Graph
from overnight.data.dataset import load_entry
from overnight.errors import Stopped
from tasks.graphs.arrays import Shares, save
from tasks.graphs.load import GraphParams, load_graph
from tasks.graphs.nodes import GnnParams, gnn_recipe, train_gnn
from tasks.graphs.predictor import NodeClassifier
from tasks.graphs.sparse import csr, spmm
from tasks.graphs.tensors import GraphTensors, example
from tests.support.loaded import by_mlflow


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run_in(folder: Path, seed: int = 0) -> RecordingRun:
    folder.mkdir(exist_ok=True)
    return RecordingRun(folder, seed=seed)


def blocks(folder: Path, features: str = "dense", nodes: int = 300, **values: object) -> Artifact:
    """Three groups that link within themselves; a node's features hardly tell its group."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, nodes)
    chance = np.where(labels[:, None] == labels[None], 0.1, 0.003)
    edges = np.stack(np.nonzero(np.triu(rng.random((nodes, nodes)) < chance, 1)))
    x = rng.normal(size=(nodes, 8)).astype(np.float32)
    x[:, :3] += 0.7 * np.eye(3)[labels]
    if features == "sparse":
        x = np.where(x > 1.2, x, 0).astype(np.float32)
    graph = Graph(
        edges,
        nodes,
        None if features == "none" else x,
        labels,
        ("a", "b", "c"),
        cleaned=CleaningCounts(),
        **values,
    )
    return save(run_in(folder), graph, "made", Shares(0.2, 0.3), "auto", "identity")


def trained(folder: Path, graph: Artifact, seed: int = 0, **params: object) -> tuple[RecordingRun, Artifact]:
    run = run_in(folder / "train", seed)
    return run, train_gnn.body(run, GnnParams(**{"epochs": 60, "hidden": 16, **params}), graph)


def test_product_and_gradient_equal_the_dense_ones() -> None:
    rng = np.random.default_rng(0)
    matrix = sp.random(7, 5, 0.4, format="csr", dtype=np.float32, random_state=rng)
    dense = torch.randn(5, 3, requires_grad=True)
    product = spmm(csr(matrix), csr(matrix.T.tocsr()), dense)
    pull = torch.randn(7, 3)
    product.backward(pull)
    full = torch.from_numpy(matrix.toarray())
    torch.testing.assert_close(product, full @ dense)
    torch.testing.assert_close(dense.grad, full.T @ pull)


@pytest.mark.parametrize("features", ["dense", "sparse"])
def test_the_network_equals_its_formula(tmp_path: Path, features: str) -> None:
    graph = blocks(tmp_path / "g", features)
    params = GnnParams(hidden=6)
    torch.manual_seed(0)
    model = gnn_recipe(params, graph.spec).build().eval()
    arrays = graph.arrays()
    data = GraphTensors(arrays, graph.spec, "gcn", "cpu")
    a_NN = np.eye(300, dtype=np.float32)
    a_NN[arrays["edges"][0], arrays["edges"][1]] = a_NN[arrays["edges"][1], arrays["edges"][0]] = 1
    a_NN /= np.sqrt(a_NN.sum(0)[:, None] * a_NN.sum(0)[None])
    x = arrays.get("features")
    if x is None:
        x = sp.csr_matrix(
            (arrays["features_data"], arrays["features_indices"], arrays["features_indptr"]), shape=(300, 8)
        ).toarray()
    a, x = torch.from_numpy(a_NN), torch.from_numpy(x)
    want = a @ torch.relu(a @ x @ model.first + model.bias) @ model.rest[0].weight.T + model.rest[0].bias
    torch.testing.assert_close(model(data.batch(torch.arange(300))), want, atol=1e-5, rtol=1e-4)


def test_every_node_attends_to_itself_once(tmp_path: Path) -> None:
    from torch_geometric.nn import GATConv

    graph = blocks(tmp_path / "g")
    data = GraphTensors(graph.arrays(), graph.spec, "gat", "cpu")
    ours = gnn_recipe(GnnParams(conv="gat", hidden=8), graph.spec).build().eval().rest[0]
    theirs = GATConv(ours.in_channels, ours.out_channels)  # looks for the loops by itself
    theirs.load_state_dict(ours.state_dict())
    x, links = torch.rand(300, ours.in_channels), data.shared["links"]
    assert links.shape == (2, 2 * graph.spec.edges + 300)
    torch.testing.assert_close(ours(x, links), theirs(x, links[:, : 2 * graph.spec.edges]))
    assert example(graph.spec, "gat", 9)["links"].shape == links.shape


@pytest.mark.parametrize("features", ["dense", "sparse"])
@pytest.mark.parametrize("conv", ["gcn", "sage", "gat"])
def test_it_learns_what_only_the_edges_tell(tmp_path: Path, features: str, conv: str) -> None:
    run, _ = trained(tmp_path, blocks(tmp_path / "g", features), conv=conv)
    assert run.last("test/accuracy") > run.last("test/without_edges") + 0.15
    assert run.last("test/accuracy") > 0.75 > 0.5 > run.last("test/majority")
    assert len(run.curve("val/accuracy")) == 60  # the network without edges logs nothing
    assert {Path(e["path"]).stem for e in run.of("publish")} == {"confusion", "embedding"}


@pytest.mark.parametrize("layers", [1, 3])
def test_other_depths_train(tmp_path: Path, layers: int) -> None:
    run, _ = trained(tmp_path, blocks(tmp_path / "g"), layers=layers, epochs=40, lr=0.05)
    assert run.last("test/accuracy") > 0.8


def test_a_graph_without_features_learns_from_its_edges_alone(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, blocks(tmp_path / "g", "none"), epochs=100)
    assert run.last("test/accuracy") > 0.8
    assert run.last("test/without_edges") < 0.5


def test_weights_of_edges_count(tmp_path: Path) -> None:
    graph = blocks(tmp_path / "g")
    edges, labels = graph.arrays()["edges"], graph.arrays()["labels"]
    rng = np.random.default_rng(1)
    noise = np.sort(rng.integers(0, 300, (2, 3000)), 0)
    noise = np.unique(noise[:, noise[0] < noise[1]], axis=1)
    every = np.concatenate([edges, noise], 1)
    weak = np.concatenate([np.ones(edges.shape[1]), np.full(noise.shape[1], 1e-3)]).astype(np.float32)
    scores = []
    for weights in (weak, None):
        made = Graph(every, 300, graph.arrays()["features"], labels, ("a", "b", "c"), weights=weights)
        run, _ = trained(
            tmp_path, save(run_in(tmp_path / "w"), made, "made", Shares(0.2, 0.3), "none", "identity")
        )
        scores.append(run.last("test/accuracy"))
    assert scores[0] > scores[1] + 0.1


def test_the_model_in_mlflow_carries_its_graph_and_scores_what_was_logged(tmp_path: Path) -> None:
    graph = blocks(tmp_path / "g", "sparse")
    run, model = trained(tmp_path, graph)
    loaded, arrays = by_mlflow(model, tmp_path / "packed"), graph.arrays()
    test = np.flatnonzero(arrays["test_mask"])
    truth = [graph.spec.classes[label] for label in arrays["labels"][test]]
    found = loaded.predict(pd.DataFrame({"node": test}))
    assert list(found) == ["node", "class", "probability", "probability_a", "probability_b", "probability_c"]
    assert (found["class"] == truth).mean() == pytest.approx(run.last("test/accuracy"), abs=1e-6)
    for given in (test.astype(float), test.astype(str), list(map(int, test))):
        pd.testing.assert_frame_equal(loaded.predict(given), found)
    pd.testing.assert_frame_equal(loaded.predict(loaded.input_example), found[:3])
    losses = NodeClassifier(model.path).item_losses(graph)
    assert 1 - losses.loss.mean() == pytest.approx(run.last("test/accuracy"), abs=1e-9)
    assert losses.item.tolist() == test.astype(str).tolist()
    with pytest.raises(MlflowException, match=r"2 of 3 nodes are not in the graph.*'300', 'x'; it has 300"):
        loaded.predict([0, 300, "x"])


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    graph = blocks(tmp_path / "g")
    first, again, other = (trained(tmp_path, graph, seed, epochs=5)[1].digest for seed in (0, 0, 1))
    assert first == again != other


def test_a_stop_takes_effect_before_the_first_epoch_ends(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    run.should_stop = lambda: True
    with pytest.raises(Stopped):
        train_gnn.body(run, GnnParams(), blocks(tmp_path / "g"))
    assert not (run.folder / "out").exists()


@pytest.mark.parametrize("nonzeros", [0, 200])
@pytest.mark.parametrize("conv", ["gcn", "sage"])
def test_the_recipe_traces_from_the_spec_alone(conv: str, nonzeros: int) -> None:
    spec = DataSpec(
        shape=(30,), classes=("a", "b"), nodes=50, edges=70, nonzeros=nonzeros, counts={"train": 20}
    )
    recipe = gnn_recipe(GnnParams(conv=conv), spec)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = recipe.build()
        loss, count = recipe.loss(model, recipe.example_batch(20))
        loss.backward()
    assert float(count) == 20
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_the_example_has_the_shapes_and_types_of_the_real_batch(tmp_path: Path) -> None:
    graph = blocks(tmp_path / "g", "sparse")
    data = GraphTensors(graph.arrays(), graph.spec, "gcn", "cpu")
    real, made = data.batch(data.nodes["train"]), example(graph.spec, "gcn", len(data.nodes["train"]))
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {
        k: (v.shape, v.dtype) for k, v in made.items()
    }


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    from overnight.errors import DataError

    wrong = artifact.save(tmp_path / "t", "table")
    with pytest.raises(DataError, match="expected an artifact of kind 'graph'"):
        train_gnn.body(run_in(tmp_path / "run"), GnnParams(), wrong)


@pytest.mark.slow
def test_floor_on_the_public_split_of_papers(tmp_path: Path, shared_data: Path) -> None:
    found = []
    for seed in range(3):
        graph = load_graph.body(run_in(tmp_path / "g", seed), GraphParams(), load_entry("cora"))
        run, _ = trained(tmp_path, graph, seed, epochs=60, hidden=64, weight_decay=5e-4)
        found.append(run.last("test/accuracy"))
    assert graph.spec.counts == {"train": 140, "val": 500, "test": 1000}
    assert np.mean(found) >= 0.79


@pytest.mark.slow
def test_floor_on_pages_that_like_one_another(tmp_path: Path, shared_data: Path) -> None:
    graph = load_graph.body(run_in(tmp_path / "g"), GraphParams(normalize="none"), load_entry("facebook"))
    run, _ = trained(tmp_path, graph, hidden=64, epochs=40)
    assert run.last("test/accuracy") >= 0.93 > 0.4 > run.last("test/majority")
