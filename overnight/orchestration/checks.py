"""What is checked of a config before anything of its run starts: its values, the card, the data."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from overnight.config import Experiment, Values, parts_of, read, validate
from overnight.data.entry import Entry
from overnight.data.fetch import check_can_fetch
from overnight.errors import ConfigError, DataError, TooLate
from overnight.gpu.card import Card, find
from overnight.gpu.ledger.filesystem import check_ledger, check_slots
from overnight.night.calendar import deadline
from overnight.night.notify import NightValues
from overnight.services.register import local_timezone
from overnight.step import Pipeline, flow_names, load_pipeline


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
    """Raises DataError for data sets that are missing and cannot be fetched, all of them at once."""
    entries = {entry.name: entry for entry in _entries(experiment)}
    problems = list[str]()
    for entry in (entry for entry in entries.values() if not entry.found()):
        try:
            check_can_fetch(entry, entry.search_paths()[-1])
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)


def _entries(values: Any) -> Iterator[Entry]:
    if isinstance(values, Entry):
        yield values
    elif isinstance(values, Values):
        for _name, value in values:
            for _key, child in parts_of(value):
                yield from _entries(child)


def end_time(experiment: Experiment) -> float | None:
    """When it is to be done (unix time), by this machine's clock. Raises TooLate."""
    if not isinstance(experiment, NightValues) or experiment.done_by is None:
        return None
    try:
        return deadline(experiment.done_by, datetime.now(ZoneInfo(local_timezone()))).timestamp()
    except ValueError as error:
        raise TooLate(str(error)) from None


def about(path: Path) -> str:
    """The first comment of a config."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
