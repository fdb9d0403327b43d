"""Classify the nodes of a graph: of a data set, or linked out of a table."""

from typing import Self

from pydantic import model_validator

from flows.etl import Etl, etl
from overnight import Artifact, Dataset, Experiment, pipeline
from tasks.graphs.link_table import LinkParams, link_rows
from tasks.graphs.load import GraphParams, load_graph
from tasks.graphs.nodes import GnnParams, train_gnn
from tasks.tabular.tables import asked_columns


class Graph(Experiment):
    """Either `data`, a graph; or `link`, which makes a graph of the table of the `etl` section."""

    data: Dataset | None = None
    graph: GraphParams = GraphParams()
    etl: Etl | None = None
    link: LinkParams | None = None
    gnn: GnnParams = GnnParams()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.link is None):
            raise ValueError("give either data (a graph) or link (makes a graph of a table)")
        if self.data:
            self.data.require_kind("graph", "for a table add a link section")
        if self.etl and not self.link:
            raise ValueError("etl: makes a table, but there is no link section that takes it")
        if self.link and not self.etl:
            raise ValueError("link: there is no table to link; add an etl section")
        if self.link and "graph" in self.model_fields_set:
            raise ValueError(
                "graph: is for a data set alone; with a link section set its val, test and normalize there"
            )
        if self.link and self.etl:
            self.etl.check(self.asked(self.link))
        return self

    def asked(self, link: LinkParams) -> dict[str, str]:
        """What the graph asks of the table."""
        features = {f"link.features.{name}": text for name, text in link.features.items()}
        return {**asked_columns([link.node, link.label, *link.by], "link"), **features}


@pipeline
def graph(cfg: Graph) -> Artifact:
    """A graph in, a model of its nodes' classes out."""
    if cfg.link and cfg.etl:
        table = etl(cfg.etl.asking(cfg.asked(cfg.link)))
        return train_gnn(cfg.gnn, link_rows(cfg.link, table))
    assert cfg.data is not None  # the experiment has either
    return train_gnn(cfg.gnn, load_graph(cfg.graph, cfg.data))
