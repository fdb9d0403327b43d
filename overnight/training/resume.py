"""Attempts at one step: who may keep its checkpoints, and what earlier ones have logged already.

A resumed attempt does again what came after its checkpoint, and would log it again. What an earlier attempt has put into its spool is
shipped whatever becomes of that attempt, and MLflow forgets nothing, so cutting the spool at the checkpoint would come too late for
points that are there already. Therefore the repeats are left out (`Run.told`): each (metric, step) is logged by whoever came first.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from overnight import events, locks
from overnight.errors import GoesOn
from overnight.paths import state
from overnight.run import Run
from overnight.training.checkpoint import put, remove

MONITOR = ("system/", "card/")  # measured by every attempt; their steps count its reports, and go on


def folder_of(key: str) -> Path:
    """Where the checkpoints of a step with this key are."""
    return state() / "checkpoints" / key


@contextmanager
def claim(
    run: Run, key: str, who: str, known: Sequence[str] = (), told: Mapping[str, int] = MappingProxyType({})
) -> Iterator[None]:
    """Inside, the run keeps checkpoints under the step's key, and they are removed when the block ends well.

    known: the folders of the attempts that its MLflow run is known to go on with; told: up to which step that has each metric.
    Another process that trains the same step at the same time has the checkpoints already: this one then trains without.
    """
    folder = folder_of(key)
    with ExitStack() as held:
        try:
            held.enter_context(locks.hold(folder / "lock", who))
        except locks.Held as error:
            run.note(f"no checkpoints: {error.by} trains the same step now and keeps its own")
            yield
            return
        run.checkpoints = folder
        _enter(run, folder, known, told)
        try:
            yield
        except GoesOn:  # the next process begins with what this one left
            raise
        except BaseException:
            if not any(folder.glob("*/*.json")):
                remove(folder)
            raise
        remove(folder)


def _enter(run: Run, folder: Path, known: Sequence[str], told: Mapping[str, int]) -> None:
    """Note this attempt; what earlier ones have logged is not logged again, and is shipped to this run if that was not known."""
    file, mine = folder / "run.json", str(run.folder)
    before = [one for one in _read(file).get("folders", []) if one != mine]
    if unknown := [one for one in before if one not in known]:
        run.continues(unknown)
    last = latest(dict(told), *(events.last_steps(Path(one) / events.CHILD) for one in [*before, mine]))
    run.told = {name: step for name, step in last.items() if not name.startswith(MONITOR)}
    run.reports = 1 + max((step for name, step in last.items() if name.startswith(MONITOR)), default=-1)
    put(file, json.dumps({"folders": [*before, mine]}))


def latest(*found: Mapping[str, int]) -> dict[str, int]:
    """The last step of each metric in any of them."""
    return {
        name: max(one[name] for one in found if name in one)
        for name in {name for one in found for name in one}
    }


def earlier(key: str) -> tuple[str, ...]:
    """The folders of the attempts at a step that has not finished; none while one is at it."""
    folder = folder_of(key)
    return (
        ()
        if locks.holder(folder / "lock") is not None
        else tuple(_read(folder / "run.json").get("folders", []))
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return _parsed(file.read_text())
    except OSError:
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
