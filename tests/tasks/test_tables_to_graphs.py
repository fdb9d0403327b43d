"""The experiments on tables and graphs: what their configs refuse, and the chain from tables to a graph of
their rows.
"""

from pathlib import Path

import pytest
import torch

from flows.etl import Etl
from flows.graph import Graph
from overnight import Artifact, RecordingRun, paths
from overnight.errors import ConfigError
from tasks.graphs.link_table import link_rows
from tasks.graphs.nodes import train_gnn
from tasks.tabular.join import join_tables


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=karate"], "give either data (a graph) or link"),
        (["link=null"], "give either data (a graph) or link"),
        (["link=null", "data=karate"], "etl: makes a table, but there is no link section"),
        (["link=null", "etl=null", "data=digits"], "'digits' is of kind 'images', expected 'graph'"),
        (["graph.val=0.1"], "graph: is for a data set alone"),
        (["etl.data=karate"], "'karate' is of kind 'graph', expected 'table'"),
        (["link.features={}"], "link.features"),
        (["gnn.conv=gtn"], "'gcn', 'sage' or 'gat'"),
    ],
)
def test_what_a_config_refuses(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Graph.load(paths.configs() / "graph.yaml", overrides)
    assert message in str(error.value)


def test_a_link_without_a_table_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="there is no table to link; add an etl section"):
        Graph.load(paths.configs() / "graph.yaml", ["etl=null"])


@pytest.mark.parametrize("name", ["cora", "facebook", "graph"])
def test_every_graph_experiment_loads(name: str) -> None:
    assert Graph.load(paths.configs() / f"{name}.yaml").gnn.epochs > 0


def test_the_experiment_on_tables_predicts_from_what_is_known_before() -> None:
    cfg = Etl.load(paths.configs() / "etl.yaml")
    assert cfg.predictor is not None
    used = set(cfg.predictor.numeric + cfg.predictor.categorical)
    assert not used & {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}


def test_the_section_of_before_is_refused_with_its_name_of_today(tmp_path: Path) -> None:
    text = (paths.configs() / "etl.yaml").read_text().replace("\npredictor:", "\nclassifier:")
    (tmp_path / "old.yaml").write_text(text)
    with pytest.raises(ConfigError, match="classifier: is now called predictor"):
        Etl.load(tmp_path / "old.yaml")


@pytest.mark.slow
def test_who_built_this_plane(tmp_path: Path) -> None:
    """The demo's chain with fewer epochs: joined flights, planes linked by routes, a network that tells their
    makers.
    """
    cfg = Graph.load(paths.configs() / "graph.yaml")
    assert cfg.etl is not None
    assert cfg.link is not None

    def run(name: str) -> RecordingRun:
        (tmp_path / name).mkdir()
        return RecordingRun(tmp_path / name)

    table: Artifact = join_tables.body(run("table"), cfg.etl.tables, cfg.etl.data)
    nodes = link_rows.body(run("graph"), cfg.link, table)
    torch.set_num_threads(1)
    training = run("gnn")
    train_gnn.body(training, cfg.gnn.model_copy(update={"epochs": 80}), nodes)
    assert training.last("test/accuracy") > 0.9 > training.last("test/without_edges") + 0.1
