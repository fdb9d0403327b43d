"""Runs of the past, as their folders in .overnight/steps hold them: of experiments, and of their steps."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from overnight import events, paths
from overnight.errors import BadInput, did_you_mean
from overnight.files import read_json
from overnight.night.failures import Failure, classify
from overnight.orchestration.attempt import SINCE
from overnight.orchestration.launcher import log_tail
from overnight.orchestration.protocol import StepResult, StepSpec
from overnight.tracking.backlog import Record

MOST_NAMED = 6
ID_DIGITS = 8  # of an MLflow run id that are enough to name it


@dataclass(frozen=True)
class Recorded:
    """One run and its folder."""

    folder: Path
    record: Record

    @classmethod
    def read(cls, folder: Path) -> "Recorded | None":
        """None when the folder was removed."""
        record = Record.read(folder)
        return cls(folder, record) if record else None

    @property
    def is_step(self) -> bool:
        return bool(self.record.parent)

    @property
    def name(self) -> str:
        """EXPERIMENT/LABEL of a step, the experiment's name otherwise."""
        return f"{self.record.experiment}/{self.record.label}" if self.is_step else self.record.experiment

    @property
    def began(self) -> str:
        """When, for people; the folder's name begins with it."""
        stamp = time.strptime(self.folder.name[:15], "%Y%m%d-%H%M%S")
        return time.strftime("%Y-%m-%d %H:%M:%S", stamp)

    @cached_property
    def spec(self) -> StepSpec | None:
        """Of a step whose process was started."""
        values = read_json(self.folder / "spec.json")
        known = {name: values[name] for name in StepSpec.model_fields if name in values}
        return StepSpec.model_validate(known) if known else None

    @cached_property
    def result(self) -> StepResult | None:
        values = read_json(self.folder / "result.json")
        return StepResult.model_validate(values) if values else None

    def origin(self) -> "Recorded":
        """Of a step that was skipped, the one that made its result. Raises BadInput when that was removed."""
        since = self.record.tags.get(SINCE, "")
        return find(since, step=True) if since else self

    @property
    def notes(self) -> list[str]:
        return [event["text"] for event in self.events() if event["event"] == "note"]

    @property
    def failure(self) -> Failure | None:
        if self.result is None or self.result.code == 0:
            return None
        return classify(self.result, log_tail(self.folder), self.notes)

    @property
    def scores(self) -> dict[str, float]:
        return scores_of(self.events())

    def events(self) -> Iterator[events.Json]:
        for name in (events.CHILD, events.PARENT):
            yield from events.read_all(self.folder / name)

    def steps(self) -> "list[Recorded]":
        """Of an experiment: its steps and their attempts, the oldest first."""
        return [one for one in reversed(list(recorded())) if one.record.parent == str(self.folder)]


def scores_of(logged: Iterable[events.Json]) -> dict[str, float]:
    """The last value of each metric of a test or a validation."""
    found = dict[str, float]()
    for event in logged:
        if event["event"] == "metrics":
            found |= {k: float(v) for k, v in event["values"].items() if k.startswith(("test/", "val/"))}
    return found


def recorded() -> Iterator[Recorded]:
    """Every run, the newest first."""
    for folder in sorted(paths.steps().glob("*"), key=lambda f: f.name, reverse=True):
        found = Recorded.read(folder)
        if found is not None:
            yield found


def find(wanted: str, step: bool = False) -> Recorded:
    """The newest run of that name; `step`: a step alone. Raises BadInput.

    wanted: EXPERIMENT, EXPERIMENT/STEP, the id of a run in MLflow or Prefect, or a folder below .overnight.
    """
    every = [one for one in recorded() if one.is_step or not step]
    found = [one for one in every if wanted in _names(one) or _has_id(one, wanted)]
    if found:
        return found[0]
    if not every:
        raise BadInput("there is no run yet; `overnight run CONFIG` makes one")
    names = list(dict.fromkeys(one.name for one in every))
    hint = did_you_mean(wanted, names) or ";"
    kind = "step" if step else "run"
    raise BadInput(f"no {kind} is called {wanted!r}{hint} the newest are {', '.join(names[:MOST_NAMED])}")


def _names(one: Recorded) -> set[str]:
    tags = one.record.tags
    prefect = (
        {tags.get("prefect.name", ""), tags.get("prefect.flow_run_id", "")} if not one.is_step else set()
    )
    own = {one.name, one.folder.name, str(one.folder), paths.shown(one.folder), one.record.run_id}
    label = {one.record.label, one.record.label.rpartition("/")[2]} if one.is_step else set()
    return (own | prefect | label) - {""}


def _has_id(one: Recorded, wanted: str) -> bool:
    return len(wanted) >= ID_DIGITS and one.record.run_id.startswith(wanted)
