"""Classify the nodes of a graph: of a data set, or linked out of a table."""

from typing import Self

from pydantic import model_validator

from flows.etl import Etl, etl
from overnight import Artifact, Dataset, Experiment, pipeline
from overnight.errors import ConfigError
from tasks.graphs.load import GraphParams, LinkParams, link_rows, load_graph
from tasks.graphs.nodes import GnnParams, train_gnn


class Graph(Experiment):
    """Either `data`, a graph; or `link`, which makes one of a table: that of its own `etl` section, else the night's."""

    data: Dataset | None = None
    graph: GraphParams = GraphParams()
    etl: Etl | None = None
    link: LinkParams | None = None
    gnn: GnnParams = GnnParams()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.link is None):
            raise ValueError("give either data (a graph) or link (makes a graph of a table)")
        if self.data and self.data.kind != "graph":
            raise ValueError(
                f"data: {self.data.name!r} is of kind {self.data.kind!r}; expected 'graph', or a link section for a table"
            )
        if self.etl and not self.link:
            raise ValueError("etl: makes a table, but there is no link section that takes it")
        if self.link and "graph" in self.model_fields_set:
            raise ValueError(
                "graph: is for a data set alone; with a link section set its val, test and scale there"
            )
        return self


@pipeline
def graph(cfg: Graph, table: Artifact | None = None) -> Artifact:
    """A graph in, a model of its nodes' classes out. `table`: what to link when the experiment has no ETL of its own."""
    if cfg.data:
        nodes = load_graph(cfg.graph, cfg.data)
    elif cfg.link:
        rows = etl(cfg.etl) if cfg.etl else table
        if rows is None:
            raise ConfigError(
                "link: there is no table to link; add an etl section, here or at the top of the nightly config"
            )
        nodes = link_rows(cfg.link, rows)
    return train_gnn(cfg.gnn, nodes)
