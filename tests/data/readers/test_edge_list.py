"""Graphs in the dialects that people write: understood by an option, or refused with it."""

import json

import numpy as np
import pytest

from overnight.errors import ConfigError, DataError

EDGES = {"file": "e.csv", "source": "a", "target": "b"}
PLAIN = {"file": "e.csv", "header": False, "source": 1, "target": 2}
TARGETS = {"file": "t.csv", "id": "id", "label": "kind"}


@pytest.fixture
def put(folder):
    def write(**texts: str | bytes) -> None:
        for name, text in texts.items():
            data = text if isinstance(text, bytes) else text.encode()
            (folder / f"{name}.{'json' if name == 'j' else 'csv'}").write_bytes(data)

    return write


def pairs(graph) -> list[tuple[str, str]]:
    ids = graph.ids or tuple(map(str, range(graph.nodes)))
    return [(ids[a], ids[b]) for a, b in graph.edges.T]


WANTED = [("2", "3"), ("2", "10")]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,b\n3,2\n10,2\n", EDGES),
        ("a;b\n3;2\n10;2\n", EDGES | {"delimiter": ";"}),
        ("# a graph\n# of 3 nodes\na,b\n3,2\n10,2\n", EDGES | {"comment": "#"}),
        ("# From\tTo\n3\t2\n10\t2\n", PLAIN | {"comment": "#", "delimiter": "\t"}),
        ("% sym unweighted\n 3 2 \n10  2\n", PLAIN | {"comment": "%", "delimiter": "whitespace"}),
        ("3\t 2\r\n10   2 \r\n", PLAIN | {"delimiter": "whitespace"}),
        ("x 3 2\nx 10 2\n", PLAIN | {"source": "2", "target": 3, "delimiter": "whitespace"}),
        ("\ufeffa, b\n3 , 2\n10, 2\n".replace(", b", ",b"), EDGES),
        ("größe|a|b\n1|3|2\n2|10|2\n".encode("latin-1"), EDGES | {"delimiter": "|", "encoding": "latin-1"}),
        ("a,b\n3,2\n10,2\n".encode("utf-16"), EDGES | {"encoding": "utf-16"}),
        ("a,b\r3,2\r10,2\r", EDGES),
        ("a,b\n3,2\n10,2\nnan,2\n,3\nNaN,<NA>\n", EDGES),
    ],
)
def test_one_graph_in_many_dialects(load, put, text, options) -> None:
    put(e=text)
    assert pairs(load("edge_list", {"edges": options})) == WANTED


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("# From\tTo\n3\t2\n", EDGES, r"it starts with '# From.*set `comment: '#'`"),
        ("% sym\n3 2\n", EDGES, r"set `comment: '%'`"),
        ("a;b\n3;2\n", EDGES, r"it has one column, 'a;b'; set `delimiter: \";\"`"),
        ("a b\n3 2\n", EDGES, r"set `delimiter: \"whitespace\"`"),
        ("3\t2\n4\t2\n", PLAIN, r"it has one column, '3\\t2'; set `delimiter: \"\\t\"`"),
        ("a,b\n3,2\n4,2,9\n", EDGES, "line 3 has 3 fields, line 1 has 2; mend it, or correct the delimiter"),
        ("größe,a,b\n1,3,2\n".encode("latin-1"), EDGES, "line 1 is not in utf-8; set its encoding"),
        ("a,b\n3,2\n", EDGES | {"encoding": "klingon"}, "there is no encoding 'klingon'"),
        ('a,b\n3,2\n4,"2\n', EDGES, "line 3 has a quote that does not close"),
        (b"a,b\n3,2\n\0\0,2\n", EDGES, "it holds NUL bytes"),
        ("a,b\n3,2\n".encode("utf-16-le"), EDGES, "it holds NUL bytes"),
        ("a,b,a\n3,2,1\n", EDGES, "two columns are called 'a'"),
        ("a,b\n3,3\n4,4\n", EDGES, "no edge between two nodes is left of 2"),
        ("a,b\n", EDGES, "no edge between two nodes is left of 0"),
        ("a,b\n,1\n2,\n", EDGES, "no edge between two nodes is left of 0"),
        ("a,b,w\n1,2,-3\n", EDGES | {"weight": "w"}, "row 1: the weight is -3, expected a number above 0"),
        ("a,b,w\n1,2,3\n1,2,inf\n", EDGES | {"weight": "w"}, "row 2: the weight is inf"),
        (
            "a,b,w\n1,2,3\n1,3,\n1,4,much\n",
            EDGES | {"weight": "w"},
            "row 3: 'much' in column 'w' is no number",
        ),
    ],
)
def test_what_an_option_would_mend_is_refused_with_it(load, put, text, options, said: str) -> None:
    put(e=text)
    with pytest.raises(DataError, match=said):
        load("edge_list", {"edges": options})


def test_columns_without_a_header_are_called_by_number(load, put) -> None:
    put(e="1,2\n")
    with pytest.raises(ConfigError, match="'a': without a header columns are called by their number"):
        load("edge_list", {"edges": EDGES | {"header": False}})


def test_weights_follow_their_edges(load, put) -> None:
    put(e="a,b,w\n3,2,0.5\n2,3,0.5\n10,2,4\n2,10,7\n3,10,0\n3,11,\n5,5,1\n")
    graph = load("edge_list", {"edges": EDGES | {"weight": "w"}})
    assert dict(zip(pairs(graph), graph.weights.tolist(), strict=True)) == {("2", "3"): 0.5, ("2", "10"): 4.0}
    assert graph.weights.dtype == np.float32
    assert {
        "repeated edge dropped": 2,
        "repeated edge of another weight dropped": 1,
        "edge of weight 0 dropped": 1,
        "edge without a weight dropped": 1,
        "self loop dropped": 1,
    }.items() <= graph.cleaned.items()


def ring(n: int, form: str = "{}") -> str:
    return "a,b\n" + "".join(f"{form},{form}\n".format(i, (i + 1) % n) for i in range(n))


@pytest.mark.parametrize("form", ["{}.0", "n{}", "0{}", "{} x", "{:+d}"])
@pytest.mark.parametrize("what", ["targets", "features of json", "features of csv"])
def test_ids_that_are_written_otherwise_are_refused_with_both(load, put, form: str, what: str) -> None:
    ids = [form.format(i) for i in range(30)]
    put(e=ring(30), t="id,kind\n" + "".join(f"{i},x\n" for i in ids), j=json.dumps({i: [1] for i in ids}))
    more = {
        "targets": {"targets": TARGETS},
        "features of json": {"features": "j.json"},
        "features of csv": {"features": {"file": "t.csv", "id": "id", "columns": ["kind"]}},
    }[what]
    put(t=("id,kind\n" + "".join(f"{i},1\n" for i in ids)))
    with pytest.raises(DataError, match=r"e\.csv: \d of 30 ids of the .* must be written alike") as caught:
        load("edge_list", {"edges": EDGES, **more})
    assert str(caught.value).count("'") >= 12  # three ids of both sides


def test_what_meets_by_half_is_read_and_the_rest_counted(load, put) -> None:
    put(e=ring(20), t="id,kind\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(10, 30)))
    graph = load("edge_list", {"edges": EDGES, "targets": TARGETS})
    assert graph.nodes == 30
    assert graph.cleaned == {"node of the targets without an edge kept": 10, "unlabelled node kept": 10}


@pytest.mark.parametrize("label", ["NaN", "nan", "", "NA", "None", "<NA>", " null "])
def test_a_label_that_says_nothing_is_missing(load, put, label: str) -> None:
    put(e=ring(4), t=f"id,kind\n0,x\n1,y\n2,{label}\n")
    graph = load("edge_list", {"edges": EDGES, "targets": TARGETS})
    assert (graph.classes, graph.labels.tolist()) == (("x", "y"), [0, 1, -1, -1])
    assert graph.cleaned["unlabelled node kept"] == 2
    if label:
        assert graph.cleaned[f"label {label.strip()!r} read as missing"] == 1


def test_a_class_may_be_called_so_when_the_entry_says_it(load, put) -> None:
    put(e=ring(4), t="id,kind\n0,NA\n1,EU\n2,none\n3,\n")
    options = {"edges": EDGES, "targets": TARGETS}
    assert load("edge_list", options | {"classes": ["EU", "NA", "none"]}).labels.tolist() == [1, 0, 2, -1]
    own = {**options, "targets": TARGETS | {"nulls": ["none"]}}
    assert load("edge_list", own).classes == ("EU", "NA")


def test_features_and_labels_from_one_csv(load, put) -> None:
    put(e=ring(4), t="id;kind;x;y\n0;p;1;2.5\n1;q;;-3\n2;p;nan;1e3\n2;p;nan;1e3\n")
    table = {"file": "t.csv", "id": "id", "delimiter": ";"}
    options = {
        "edges": EDGES,
        "targets": {**table, "label": "kind"},
        "features": {**table, "columns": ["x", "y"]},
    }
    graph = load("edge_list", options)
    np.testing.assert_array_equal(graph.features, [[1, 2.5], [np.nan, -3], [np.nan, 1000], [0, 0]])
    assert graph.features.dtype == np.float32
    assert graph.cleaned["node without features given zeros"] == 1
    assert graph.cleaned["repeated features dropped"] == 1
    with pytest.raises(DataError, match=r"t\.csv: row 1: 'p' in column 'kind' is no number"):
        load("edge_list", options | {"features": table})
    put(t="id,x\n0,1\n0,2\n")
    with pytest.raises(DataError, match="node '0' has features in two rows"):
        load("edge_list", {"edges": EDGES, "features": {"file": "t.csv", "id": "id"}})


def test_vectors_of_unequal_length_are_refused_by_node(load, put) -> None:
    put(e=ring(3), j=json.dumps({"0": [1, 2, 3], "1": [1, 2, 3], "2": [1, 2]}))
    with pytest.raises(DataError, match=r"j\.json: node '2' has 2 values, node '0' has 3"):
        load("edge_list", {"edges": EDGES, "features": "j.json", "vectors": True})


def test_one_number_written_in_several_ways_is_named(load, put) -> None:
    put(e="a,b\n1,2\n1.0,3\n02,3\n+3,1\n0,x1\n00,0.0\n")
    graph = load("edge_list", {"edges": EDGES})
    assert graph.nodes == 10
    assert graph.cleaned == {"id that is another one written otherwise kept": 5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("%%MatrixMarket matrix coordinate pattern general\n3 5 2\n1 2\n2 3\n", "format MatrixMarket"),
        ("*Vertices 2\n1 a\n2 b\n*Edges\n1 2\n", "format Pajek"),
        ("graph [\n edge [ source 1 target 2 ]\n]\n", "format GML"),
        ("from to\n1 2\n2 3\n", "'from', 'to'"),
    ],
)
def test_lines_that_are_no_edges_make_no_nodes(load, put, text: str, said: str) -> None:
    put(e=text)
    with pytest.raises(DataError, match=said):
        load("edge_list", {"edges": PLAIN | {"delimiter": "whitespace", "comment": "%"}})
