"""Dry run: the steps of a config with the shapes of their data as far as they are known; nothing runs."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.artifact import Artifact, DataSpec
from overnight.config import Experiment, Params, Values, parts_of
from overnight.data.entry import Entry
from overnight.data.file_set import FileSet
from overnight.errors import ConfigError, OvernightError, did_you_mean
from overnight.gpu.card import Card, find
from overnight.night import results
from overnight.night.key import key
from overnight.orchestration.checks import load
from overnight.step import Builder, Step, building, place_of


@dataclass(frozen=True, eq=False)
class PlannedStep:
    """A step that would run.

    given: entries of data sets and weights, and specs of upstream artifacts. spec: of its result.
    artifact: of the last run with the same values and data. section: of its values in the config, with a dot
    at the end (`cnn.`).
    """

    label: str
    step: Step[Any, Any]
    params: Any
    given: tuple[FileSet | DataSpec | None, ...]
    spec: DataSpec | None
    artifact: Artifact | None
    section: str = ""
    above: tuple["PlannedStep", ...] = ()

    @property
    def shapes(self) -> DataSpec | None:
        return next(
            (given for given in self.given if isinstance(given, DataSpec) and given != DataSpec()), None
        )

    @property
    def missing(self) -> str:
        lacking = next((a for a in self.above if a.spec is None), None)
        if lacking is None:
            return "the shapes of its data are unknown: run the steps before it once"
        return f"{lacking.label}: {lacking.unknown}"

    @property
    def unknown(self) -> str:
        lacking = next((a for a in self.above if a.spec is None), None)
        if lacking is not None:
            return lacking.unknown
        names = [a.name for a in self.given if isinstance(a, Entry)]
        where = f", or write them into datasets/{names[0]}.yaml under `expected`" if names else ""
        return f"the shapes of what it makes are unknown: run it once{where}"


class DryRun(Builder):
    def __init__(self, experiment: Experiment) -> None:
        self.seed = experiment.seed
        self.steps = list[PlannedStep]()
        self.card: Card | None = None  # that finished steps ran on
        with contextlib.suppress(OvernightError):  # a card that cannot be used
            self.card = find(experiment.card.use)
        self.sections = dict(_sections(experiment, ""))

    def submit(self, step: Step[Any, Any], arguments: list[Any]) -> PlannedStep:
        params, *rest = arguments
        above = tuple(a for a in rest if isinstance(a, PlannedStep))
        given = tuple(a.spec if isinstance(a, PlannedStep) else a for a in rest)
        artifact = self._finished(step, params, rest)
        spec = artifact.spec if artifact else None
        if spec is None and step.spec and None not in given:
            spec = step.spec(params, *given)
        for one in self.steps:  # the same step with the same arguments runs once
            is_same = (one.step, one.params.result_params()) == (step, params.result_params())
            if is_same and one.given == given and given and None not in given:
                return one
        section = self.sections.get(id(params), "")
        planned = PlannedStep(self.label(step.name), step, params, given, spec, artifact, section, above)
        self.steps.append(planned)
        return planned

    def _finished(self, step: Step[Any, Any], params: Any, given: Sequence[Any]) -> Artifact | None:
        arguments = [params, *(a.artifact if isinstance(a, PlannedStep) else a for a in given)]
        if any(a is None for a in arguments):
            return None
        with contextlib.suppress(OvernightError, OSError):
            found = results.find(key(step, self.seed, arguments, self.card))
            return found.artifact if found else None
        return None


def planned_steps(path: Path, overrides: Sequence[str] = ()) -> list[PlannedStep]:
    """Raises ConfigError."""
    pipeline, experiment = load(path, overrides)
    found = DryRun(experiment)
    with building(found):
        try:
            pipeline.body(experiment)
        except OvernightError:
            raise
        except Exception as error:
            where = place_of(pipeline.name, error)
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    return found.steps


def check_fresh(path: Path, overrides: Sequence[str] = ()) -> None:
    """Raises ConfigError where `fresh` names what is no step, nor a part of the night."""
    _pipeline, experiment = load(path, overrides)
    if isinstance(experiment.fresh, bool):
        return
    found = planned_steps(path, overrides)
    known = {name for one in found for name in (one.label, one.step.name, one.label.partition("/")[0])}
    wrong = [name for name in experiment.fresh if name not in known]
    if wrong:
        hint = did_you_mean(wrong[0], known) or ";"
        raise ConfigError(f"fresh: no step is called {wrong[0]!r}{hint} there are {', '.join(sorted(known))}")


def _sections(values: Any, where: str) -> Iterator[tuple[int, str]]:
    if isinstance(values, Params):
        yield id(values), where
    for name, value in values if isinstance(values, Values) else ():
        for keys, child in parts_of(value):
            yield from _sections(child, ".".join([f"{where}{name}", *keys, ""]))
