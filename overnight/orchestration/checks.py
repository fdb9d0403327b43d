"""What is checked of a config before anything of its run starts: its values, the card, the data."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from overnight import services
from overnight.best_effort import call_until_stopped
from overnight.config import Experiment, Values, parts_of, read, validate
from overnight.data.fetch import check_can_fetch
from overnight.data.file_set import FileSet
from overnight.errors import ConfigError, DataError, Stopped, TooLate
from overnight.gpu.card import Card, find
from overnight.gpu.ledger.filesystem import check_ledger, check_slots
from overnight.night.calendar import deadline
from overnight.night.settings import NightValues
from overnight.services.register import local_timezone
from overnight.step import Pipeline, flow_names, load_pipeline
from overnight.tracking.client import Tracker, mlflow_error
from overnight.tracking.registry import Registry, model_name, name_problem

NAMES_S = 5.0  # for the registry's answer, before a run begins


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Pipeline[Any, Any], Experiment]:
    """Raises ConfigError with every mistake."""
    values, source = read(path, overrides)
    name = values.get("flow")
    if name not in flow_names():
        given = f"unknown flow {name!r}" if name else "is required and missing"
        problem = f"{source.at(('flow',))}: flow: {given}; there are {', '.join(flow_names())}"
        raise ConfigError([*source.problems, problem])
    pipeline = load_pipeline(name)
    experiment = validate(pipeline.experiment, values, source)
    return pipeline, experiment.model_copy(update={"name": experiment.name or path.stem})


def card_for(experiment: Experiment, cpu: bool) -> Card:
    """Raises ServiceError or DiskFull where its steps could not take leases."""
    card = find(experiment.card.use, cpu, experiment.card.count, experiment.card.policy)
    check_ledger(card)
    check_slots()
    return card


def check_data(experiment: Experiment) -> None:
    """Raises DataError for data sets and weights that are missing and cannot be fetched, all at once."""
    named = {entry.called: entry for entry in entries(experiment)}
    problems = list[str]()
    for entry in (entry for entry in named.values() if not entry.found()):
        try:
            check_can_fetch(entry, entry.search_paths()[-1])
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)


def entries(values: Any) -> Iterator[FileSet]:
    """The data sets and weights that a config names."""
    if isinstance(values, FileSet):
        yield values
    elif isinstance(values, Values):
        for _name, value in values:
            for _key, child in parts_of(value):
                yield from entries(child)


def asked_fresh(experiment: Experiment, label: str, name: str) -> bool:
    """By `fresh`: all, or the label, the step's name or the night's part is named."""
    if isinstance(experiment.fresh, bool):
        return experiment.fresh
    return bool({label, name, *label.split("/")} & {*experiment.fresh})


def end_time(experiment: Experiment) -> float | None:
    """When it is to be done (unix time), by this machine's clock. Raises TooLate."""
    if not isinstance(experiment, NightValues) or experiment.done_by is None:
        return None
    try:
        return deadline(experiment.done_by, datetime.now(ZoneInfo(local_timezone()))).timestamp()
    except ValueError as error:
        raise TooLate(str(error)) from None


def tracker_for(experiment: Experiment, path: Path) -> Tracker:
    """Raises ConfigError for a name that a model of another flow has."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    about = first.lstrip("# ") if first.startswith("#") else ""
    tracker = Tracker(services.environment()["MLFLOW_TRACKING_URI"], str(experiment.name), about)
    check_names(tracker, experiment)
    return tracker


def check_names(tracker: Tracker, experiment: Experiment) -> None:
    """Raises ConfigError for names of registered models that another flow has, as far as MLflow answers."""
    registry = Registry(tracker)  # loads MLflow, which takes seconds on a busy machine
    until = time.monotonic() + NAMES_S
    with suppress(Stopped, OSError, mlflow_error()):
        problems = call_until_stopped(
            lambda: _taken_names(registry, experiment), lambda: time.monotonic() > until, 0.0
        )
        if problems:
            raise ConfigError(problems)


def _taken_names(registry: Registry, experiment: Experiment) -> list[str]:
    parts = [
        child for _, value in experiment for _, child in parts_of(value) if isinstance(child, Experiment)
    ]
    named = {str(one.name): str(one.flow) for one in [experiment, *parts] if one.name and one.flow}
    there = set(registry.names())
    found = [
        (registry.find(model_name(name)), flow) for name, flow in named.items() if model_name(name) in there
    ]
    problems = [name_problem(model, flow) for model, flow in found if model]
    return [problem for problem in problems if problem]
