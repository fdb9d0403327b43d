"""A whole night: every family that the config has a section for, the tables feeding what is built from them."""

from typing import Self

from pydantic import model_validator

from flows.agent import Agent, agent
from flows.detect import Detect, detect
from flows.etl import Etl, etl
from flows.graph import Graph, graph
from flows.vision import Vision, vision
from overnight.config import Experiment
from overnight.step import pipeline


class Nightly(Experiment):
    """Sections by family; each named part of a section is one experiment of that flow."""

    etl: Etl | None = None
    vision: dict[str, Vision] = {}
    detect: dict[str, Detect] = {}
    graph: dict[str, Graph] = {}
    agent: dict[str, Agent] = {}

    @model_validator(mode="after")
    def _parts_and_their_tables(self) -> Self:
        if not (self.etl or self.vision or self.detect or self.graph or self.agent):
            raise ValueError("there is nothing to run; add a section: etl, vision, detect, graph or agent")
        without = (
            [name for name, part in self.graph.items() if part.link and not part.etl] if not self.etl else []
        )
        if without:
            raise ValueError(
                f"graph: {', '.join(without)}: links a table, and there is none; add an etl section here or in it"
            )
        return self


@pipeline
def nightly(cfg: Nightly) -> None:
    """Submit all parts; they run together as far as the card and the host allow."""
    table = etl(cfg.etl) if cfg.etl else None
    for name, images in cfg.vision.items():
        vision.part(name, images)
    for name, scenes in cfg.detect.items():
        detect.part(name, scenes)
    for name, nodes in cfg.graph.items():
        graph.part(name, nodes, table)
    for name, world in cfg.agent.items():
        agent.part(name, world)
