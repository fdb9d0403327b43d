"""Graphs: ids of any kind, nodes that only some files know, odd edges counted; npz without pickles."""

import json

import numpy as np
import pytest

from overnight.errors import DataError

EDGES = {"edges": {"file": "e.csv", "source": "from", "target": "to"}}
FULL = EDGES | {"features": "f.json", "targets": {"file": "t.csv", "id": "node", "label": "kind"}}


@pytest.fixture
def write(folder):
    def write(edges: str = "from,to\na,b\n", features=None, targets: str = "node,kind\na,x\nb,y\n") -> None:
        (folder / "e.csv").write_text(edges, encoding="utf-8")
        (folder / "f.json").write_text(json.dumps({} if features is None else features), encoding="utf-8")
        (folder / "t.csv").write_text(targets, encoding="utf-8")

    return write


def dense(graph) -> list[list[float]]:
    data, indices, indptr, shape = graph.features
    rows = np.zeros(shape, dtype=np.float32)
    for row in range(shape[0]):
        rows[row, indices[indptr[row] : indptr[row + 1]]] = data[indptr[row] : indptr[row + 1]]
    return rows.tolist()


def test_edges_alone(load, write) -> None:
    write("weight,from,to\n9,10,2\n9,2,10\n9,2,2\n9,30,10\n9,30,10\n9,,3\n")
    graph = load("edge_list", EDGES)
    assert graph.nodes == 3  # 2, 10, 30 in the order of numbers
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert graph.edges.dtype == np.int64
    assert (graph.features, graph.classes, graph.labels.tolist()) == (None, (), [-1, -1, -1])
    assert graph.cleaned == {
        "self loop dropped": 1,
        "repeated edge dropped": 2,
        "edge without both ends dropped": 1,
    }


def test_ids_of_any_kind_and_nodes_that_only_one_file_knows(load, write) -> None:
    features = {"王": [0, 2], "a b": {"1": 0.5}, "only here": [2, 2]}
    targets = '\ufeffnode,page,kind\r\n王,"x, y",käse\r\n7,z,brot\r\nonly there,z,brot\r\nlost,z,\r\n\r\n'
    write('from,to\n王,"a b"\n7,007\n', features, targets)
    graph = load("edge_list", FULL)
    assert graph.nodes == 7  # 007, 7, then a b, lost, only here, only there, 王
    assert graph.edges.tolist() == [[0, 2], [1, 6]]
    assert graph.classes == ("brot", "käse")
    assert graph.labels.tolist() == [-1, 0, -1, -1, -1, 0, 1]
    assert dense(graph) == [[0, 0, 0], [0, 0, 0], [0, 0.5, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert graph.cleaned == {
        "unlabelled node kept": 4,
        "node without features given zeros": 4,
        "target without an id dropped": 1,
        "node of the features without an edge kept": 1,
        "id that is another one written otherwise kept": 1,
        "node of the targets without an edge kept": 2,
    }


def test_classes_of_the_entry_fix_the_order(load, write) -> None:
    write()
    graph = load("edge_list", FULL | {"classes": ["z", "y", "x"]})
    assert graph.labels.tolist() == [2, 1]
    assert graph.cleaned["empty class kept"] == 1


def test_features_with_names(load, write) -> None:
    write(features={"a": ["wide", "tall"], "b": ["tall"]})
    assert dense(load("edge_list", FULL)) == [[1, 1], [1, 0]]


def test_feature_ids_with_large_gaps_are_names(load, write) -> None:
    write(features={"a": [10**15, 7], "b": [7]})
    assert dense(load("edge_list", FULL)) == [[1, 1], [0, 1]]


def test_features_as_vectors(load, write) -> None:
    write(features={"a": [0.5, -1, 2]})
    assert dense(load("edge_list", FULL | {"vectors": True})) == [[0.5, -1, 2], [0, 0, 0]]
    with pytest.raises(DataError, match="set vectors"):
        load("edge_list", FULL)


def test_a_repeated_target_is_dropped_unless_it_says_otherwise(load, write) -> None:
    write(targets="node,kind\na,x\na,x\nb,y\n")
    assert load("edge_list", FULL).cleaned["repeated target dropped"] == 1
    write(targets="node,kind\na,x\na,y\n")
    with pytest.raises(DataError, match=r"t\.csv: node 'a' has two classes, 'x' and 'y'"):
        load("edge_list", FULL)


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        ({"edges": "source,to\n1,2\n"}, {}, r"e\.csv: no column 'from'; the file has: source, to"),
        ({"edges": ""}, {}, r"e\.csv: the file is empty"),
        ({"edges": "<html><p>gone</p></html>\n"}, {}, r"e\.csv: expected csv, found a web page"),
        ({"targets": "node,label\na,x\n"}, {}, r"t\.csv: no column 'kind'"),
        ({"features": [1, 2]}, {}, r"f\.json: expected json of the form"),
        ({"features": {"a": "text"}}, {}, r"f\.json: node 'a' has features of an unknown form"),
        ({}, {"classes": ["x"]}, r"t\.csv: class 'y' is not among the entry's classes: x"),
    ],
)
def test_edge_list_errors_name_the_file(load, write, files, more, said: str) -> None:
    write(**files)
    with pytest.raises(DataError, match=said):
        load("edge_list", FULL | more)


def test_json_that_is_cut_short(load, write, folder) -> None:
    write()
    (folder / "f.json").write_text('{"a": [1, 2')
    with pytest.raises(DataError, match=r"f\.json: expected json"):
        load("edge_list", FULL)


# ------------------------------------------------------------------------------------------------ npz


def arrays(**more):
    masks = {"train_mask": [1, 0, 0], "val_mask": [0, 1, 0], "test_mask": [0, 0, 1]}
    found = {
        "edge_index": np.array([[0, 2, 1, 1], [1, 1, 1, 2]]),
        "x_data": np.array([1.0, 2.0]),
        "x_indices": np.array([3, 0], dtype=np.int32),
        "x_indptr": np.array([0, 1, 1, 2]),
        "x_shape": np.array([3, 4]),
        "y": np.array([0, 2, -1]),
        **{name: np.array(mask, dtype=bool) for name, mask in masks.items()},
    }
    return {name: value for name, value in {**found, **more}.items() if value is not None}


def test_planetoid(load, folder) -> None:
    np.savez(folder / "g.npz", **arrays())
    graph = load("planetoid", {"file": "g.npz", "classes": ["a", "b", "c"]})
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert dense(graph) == [[0, 0, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert graph.labels.tolist() == [0, 2, -1]
    assert {name: mask.tolist() for name, mask in graph.masks.items()}["val"] == [False, True, False]
    assert graph.cleaned == {
        "self loop dropped": 1,
        "repeated edge dropped": 1,
        "unlabelled node kept": 1,
        "empty class kept": 1,
    }


def test_planetoid_dense_features_and_no_masks(load, folder) -> None:
    sparse = dict.fromkeys(
        ("x_data", "x_indices", "x_indptr", "x_shape", "train_mask", "val_mask", "test_mask")
    )
    np.savez(folder / "g.npz", **arrays(x=np.eye(3), **sparse))
    graph = load("planetoid", {"file": "g.npz"})
    assert (graph.features.tolist(), dict(graph.masks)) == (np.eye(3).tolist(), {})
    assert graph.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"y": None}, "no array y; the file has: edge_index"),
        ({"edge_index": np.array([[0], [3]])}, r"an edge names node 3, but there are 3 nodes"),
        ({"x_shape": np.array([2, 4]), "x_indptr": np.array([0, 1, 2])}, "x has 2 rows and y 3"),
        ({"edge_index": np.array([[0, 1], [0, 1]])}, "there is no edge between two nodes"),
        ({"x_indices": np.array([3, 4])}, "x is no sparse matrix of 3 rows and 4 columns"),
        ({"train_mask": np.array([True])}, "train_mask has the wrong shape"),
        ({"y": np.array([0, 2, None], dtype=object)}, "expected an npz file of plain arrays"),
        ({"y": np.array([0, 9, 1])}, "y has the class 9, the entry names 3 classes"),
    ],
)
def test_planetoid_errors(load, folder, more, said: str) -> None:
    np.savez(folder / "g.npz", **arrays(**more))
    with pytest.raises(DataError, match=said) as caught:
        load("planetoid", {"file": "g.npz", "classes": ["a", "b", "c"]})
    assert "g.npz" in str(caught.value)


def test_labels_that_are_no_numbers_of_classes(load, folder) -> None:
    np.savez(folder / "g.npz", **arrays(y=np.array([0, 2**40, 1])))
    with pytest.raises(DataError, match=r"g\.npz: a label is 1099511627776.*name the classes"):
        load("planetoid", {"file": "g.npz"})


def test_planetoid_cut_short_or_something_else(load, folder) -> None:
    np.savez(folder / "g.npz", **arrays())
    whole = (folder / "g.npz").read_bytes()
    for written in (whole[:-40], whole[:200] + b"\xff" * 40 + whole[240:], b"<html></html>", b"\x80\x04]."):
        (folder / "g.npz").write_bytes(written)
        with pytest.raises(DataError, match=r"g\.npz: expected an npz file of plain arrays"):
            load("planetoid", {"file": "g.npz"})


def test_ids_that_a_json_says_twice_are_refused(load, write, folder) -> None:
    write()
    for text, said in (
        ('{"a": [1], "b": [2], "a": [3]}', "'a' stands twice"),
        ('{"a": [1], "a ": [2]}', "blanks"),
    ):
        (folder / "f.json").write_text(text)
        with pytest.raises(DataError, match=said):
            load("edge_list", FULL)


def test_classes_and_ids_written_in_two_ways_are_named(load, write) -> None:
    write("from,to\ncafé,cafe\u0301\n", targets="node,kind\ncafé,1\ncafe\u0301,1.0\n", features={"café": [1]})
    graph = load("edge_list", FULL)
    assert graph.classes == ("1", "1.0")
    assert graph.cleaned["classes '1' and '1.0' of nearly one name kept apart"] == 1
    assert graph.cleaned["id that is another one written otherwise kept"] == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"y": np.array([0, 1.5, 1])}, "y is float64"),
        ({"edge_index": np.array([[0, 1.5], [1, 2]])}, "edge_index is float64"),
        ({"edge_index": np.array([[0, -1], [1, 2]])}, "names node -1"),
        ({"train_mask": np.array([0, 2, 1])}, "train_mask has the wrong shape or values"),
    ],
)
def test_numbers_that_are_no_labels_nodes_or_masks_are_refused(load, folder, more: dict, said: str) -> None:
    arrays = {"edge_index": np.array([[0, 1], [1, 2]]), "y": np.array([0, 1, 1])}
    np.savez(folder / "g.npz", **(arrays | more))
    with pytest.raises(DataError, match=said):
        load("planetoid", {"file": "g.npz"})
    mask = np.array([1, 0, 0])
    np.savez(folder / "g.npz", **arrays, train_mask=mask, test_mask=mask == 1)
    assert load("planetoid", {"file": "g.npz"}).cleaned["node in several masks kept in each"] == 1


BEYOND, SMALL = (
    "feature beyond the range of float32 read as infinite",
    "feature too small for float32 read as 0",
)
ROUNDED = "whole number of a feature rounded to 24 bits"


@pytest.mark.parametrize("form", ["dense", "csr", "csv", "json"])
@pytest.mark.parametrize(
    ("values", "cleaned"),
    [
        ([1e300, -1e39], {BEYOND: 2}),
        ([1e-300, 0.0], {SMALL: 1}),
        ([1700000001.0, 16777217.0], {ROUNDED: 2}),
        ([16777216.0, 0.1], {}),
    ],
)
def test_features_that_float32_does_not_hold_are_counted(load, write, folder, form, values, cleaned) -> None:
    write(features={"a": values[:1], "b": values[1:]})
    options = FULL | {"vectors": True}
    if form == "csv":
        (folder / "f.csv").write_text(f"id,v\na,{values[0]!r}\nb,{values[1]!r}\n")
        options = FULL | {"features": {"file": "f.csv", "id": "id", "columns": ["v"]}}
    if form in ("dense", "csr"):
        graph = {"edge_index": np.array([[0], [1]]), "y": np.array([0, 1])}
        sparse = {"x_data": np.array(values), "x_indices": [0, 0], "x_indptr": [0, 1, 2], "x_shape": [2, 1]}
        np.savez(
            folder / "g.npz", **graph, **({"x": np.array(values)[:, None]} if form == "dense" else sparse)
        )
    found = load("planetoid", {"file": "g.npz"}) if form in ("dense", "csr") else load("edge_list", options)
    assert found.cleaned == cleaned
    features = found.features if form in ("dense", "csv") else found.features[0]
    with np.errstate(over="ignore"):
        assert features.ravel().tolist() == np.float32(values).tolist()


def test_weights_that_float32_does_not_hold(load, write) -> None:
    weighted = {"edges": {**EDGES["edges"], "weight": "w"}}
    write("from,to,w\na,b,1e39\n")
    with pytest.raises(
        DataError, match=r"row 1: the weight is 1e.39, expected a number above 0 that float32 holds"
    ):
        load("edge_list", weighted)
    write("from,to,w\na,b,1e-60\nb,c,2\n")
    assert load("edge_list", weighted).cleaned["edge of weight 0 dropped"] == 1
