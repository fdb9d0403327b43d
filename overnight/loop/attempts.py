"""Attempts at one step: who may keep its checkpoints, and what earlier ones have told MLflow already."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from overnight import locks
from overnight.loop.checkpoint import remove
from overnight.paths import state
from overnight.run import Run

MONITOR = ("system/", "card/")  # counted anew by every attempt


def folder_of(key: str) -> Path:
    """Where the checkpoints of a step with this key are."""
    return state() / "checkpoints" / key


@contextmanager
def claim(run: Run, key: str, who: str, mlflow_run: str = "") -> Iterator[None]:
    """Inside, the run keeps checkpoints under the step's key, and they are removed when the block ends well.

    Another process that trains the same step at the same time has them already: this one then trains without.
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
        _enter(run, folder, mlflow_run)
        try:
            yield
        except BaseException:
            if not any(folder.glob("*/*.json")):
                remove(folder)
            raise
        remove(folder)


def _enter(run: Run, folder: Path, mlflow_run: str) -> None:
    """Note this attempt; what earlier ones of the same MLflow run have logged is not logged again."""
    file, spool = folder / "run.json", str(run.folder / "events.jsonl")
    found = _read(file)
    same = bool(mlflow_run) and found.get("mlflow_run") == mlflow_run
    spools = [path for path in found.get("spools", []) if path != spool] if same else []
    run.told = told([Path(path) for path in spools])
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"mlflow_run": mlflow_run, "spools": [*spools, spool]}))
    part.replace(file)


def told(spools: list[Path]) -> dict[str, int]:
    """The last step of each metric in these spools; a line that a crash cut short does not count, as nobody will ever ship it."""
    last = dict[str, int]()
    for spool in spools:
        for line in spool.read_text(errors="replace").split("\n")[:-1] if spool.is_file() else []:
            if '"metrics"' not in line:
                continue
            event = _parsed(line)
            if event.get("event") == "metrics":
                last |= {name: max(last.get(name, -1), int(event["step"])) for name in event["values"] if not name.startswith(MONITOR)}
    return last


def earlier(key: str) -> tuple[str, int] | None:
    """The MLflow run of earlier attempts at a step that has not finished, and how many there were; None while one is at it."""
    folder = folder_of(key)
    found = _read(folder / "run.json")
    if not found.get("mlflow_run") or locks.holder(folder / "lock") is not None:
        return None
    return str(found["mlflow_run"]), len(found.get("spools", []))


def _read(file: Path) -> dict[str, Any]:
    try:
        return _parsed(file.read_text())
    except OSError:
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
