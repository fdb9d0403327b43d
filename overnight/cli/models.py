"""`overnight models [NAME]`: the registered models, their champions, and what each version was judged by."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from overnight.cli.command import JSON, Command, print_rows
from overnight.errors import BadInput, one_line

if TYPE_CHECKING:
    from overnight.tracking.registry import Model, Registry, Version


@contextmanager
def registry(who: str) -> "Iterator[Registry]":
    """MLflow's Model Registry; starts the services where they are down. Raises BadInput where it fails."""
    from overnight import services

    with services.ensure(who):
        services.enter()
        from overnight.tracking.client import Tracker, mlflow_error
        from overnight.tracking.registry import Registry

        try:
            yield Registry(Tracker(services.environment()["MLFLOW_TRACKING_URI"], ""))
        except (OSError, mlflow_error()) as error:
            raise BadInput(
                f"{who}: MLflow did not take it ({one_line(error)}); the champions are those of before; "
                "`overnight status` and `overnight doctor` say what is wrong, a full disk for instance"
            ) from error


def _models(arguments: argparse.Namespace) -> None:
    with registry("overnight models") as found:
        names = [] if arguments.name else found.names()
        models = [found.existing(arguments.name)] if arguments.name else [*map(found.find, names)]
    rows = [row for model in models if model for row in _rows(model, bool(arguments.name))]
    if not rows and not arguments.json:
        print("no model is registered yet; every training registers its own")
        return
    print_rows(rows, arguments.json)


def _rows(model: "Model", every: bool) -> Iterator[dict[str, Any]]:
    """One for the champion, or one for each version."""
    shown = model.versions if every else [one for one in (model.champion,) if one]
    for version in shown:
        yield {"model": model.name, **_facts(model, version)}
    if not shown:
        last = model.last_champion()
        note = f"its alias champion was removed; version {last.number} had it" if last else "no version"
        yield {
            "model": model.name,
            "version": "",
            "is": "",
            "trained": "",
            "loss": "",
            "by": "",
            "note": note,
        }


def _facts(model: "Model", version: "Version") -> dict[str, Any]:
    from overnight.orchestration.judging import gone
    from overnight.tracking.registry import EVIDENCE, PROMOTED, WITHDRAWN, day

    evidence = version.facts(EVIDENCE)
    promoted = version.facts(PROMOTED)
    is_champion = model.champion is not None and version.number == model.champion.number
    withdrawn = "withdrawn" if WITHDRAWN in version.tags else ""
    loss = evidence.get("new_loss")
    why = version.facts(WITHDRAWN).get("why") or promoted.get("why") or evidence.get("why", "not judged")
    notes = [str(why), *(gone(version) if is_champion else [])]
    return {
        "version": version.number,
        "is": "champion" if is_champion else withdrawn,
        "trained": day(version.at),
        "loss": "" if loss is None else f"{loss:.4f}",
        "by": promoted.get("by", ""),
        "note": "; ".join(note for note in notes if note),
    }


COMMAND: Command = (
    _models,
    "the registered models and their champions; with a name all its versions",
    {**JSON, "name": {"nargs": "?", "default": "", "metavar": "NAME"}},
)
