"""Remembered results: `.overnight/results/KEY.json` for each key whose step has finished, with its artifact.

Paths are relative to the state folder, so that a checkout can be moved. A result is used only when its file
can be read, belongs to its key, and the artifact's folder still has the digest that it was made with.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from overnight import locks
from overnight.artifact import Artifact
from overnight.config import Values
from overnight.files import UNREADABLE, atomic_write, tree_sha256
from overnight.night.key import Reasons, digest
from overnight.paths import shown, state

CODE = "code "  # how the parts of a key begin that are code


class Result(Values):
    """What a finished step made. `at`: when it ended, in seconds since 1970; `folder`: of the step."""

    model_config = ConfigDict(extra="ignore")  # an older checkout reads what a newer one wrote

    key: str
    parts: Reasons
    step: str
    label: str
    experiment: str
    value: dict[str, Any] | None = None  # the artifact
    scores: dict[str, float] = {}
    folder: str
    run_id: str = ""
    link: str = ""
    at: float
    run_s: float = 0.0

    @property
    def artifact(self) -> Artifact | None:
        if self.value is None:
            return None
        return Artifact.model_validate({**self.value, "path": state() / self.value["path"]})

    @property
    def name(self) -> str:
        """When it was made, and by which run of MLflow."""
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.at))
        return f"{made} (run {self.run_id[:8]})" if self.run_id else made

    def problem(self) -> str:
        """Why its artifact cannot be used; empty when it is intact."""
        if self.artifact is None:
            return ""
        place = shown(self.artifact.path)
        if not self.artifact.path.is_dir():
            return f"its result was removed: {place}"
        try:
            intact = tree_sha256(self.artifact.path) == self.artifact.digest
        except OSError as error:
            return f"its result cannot be read: {place}: {error.strerror}"
        return "" if intact else f"its result was changed or damaged since: {place}"


def folder() -> Path:
    return state() / "results"


def file_of(key: str) -> Path:
    return folder() / f"{key}.json"


def in_state(value: Any) -> dict[str, Any] | None:
    """An artifact as JSON with its path relative to the state folder; outside of that folder it stays."""
    if value is None:
        return None
    path = Path(value["path"])
    home = state().resolve()
    inside = path.resolve().is_relative_to(home)
    return {**value, "path": str(path.resolve().relative_to(home)) if inside else str(path)}


def locked() -> AbstractContextManager[None]:
    """While results are written, found and removed: what a run has found is not removed under it."""
    return locks.hold(folder() / ".lock", "the remembered results", wait=True)


def remember(result: Result) -> None:
    """Replace what this key has. Raises OSError."""
    with locked():
        atomic_write(file_of(result.key), result.model_dump_json(indent=1), durable=True)


def recall(key: str) -> Result | str:
    """The intact result of a key; else why there is none, empty when there never was one."""
    file = file_of(key)
    try:
        with locked():
            found = _read(file)
            os.utime(file)  # it is in use: `overnight clean` keeps it
    except FileNotFoundError:
        return ""
    except UNREADABLE:
        return f"what was remembered of it is damaged: {shown(file)}"
    if found.key != key or digest(found.parts) != key:
        return f"what was remembered of it is damaged: {shown(file)}"
    return found.problem() or found


def find(key: str) -> Result | None:
    """The result of a key, unchecked; None where there is none that can be read."""
    with suppress(*UNREADABLE):
        return _read(file_of(key))
    return None


def _read(file: Path) -> Result:
    """Raises OSError, ValueError."""
    return Result.model_validate_json(file.read_bytes())


def all_results() -> Iterator[Result]:
    """Those whose files can be read; nothing else is checked."""
    for file in folder().glob("*.json"):
        with suppress(*UNREADABLE):
            yield _read(file)


def last(step: str, label: str, experiment: str) -> Result | None:
    """The newest result of a step under this label of an experiment."""
    wanted = (step, label, experiment)
    found = [one for one in all_results() if (one.step, one.label, one.experiment) == wanted]
    return max(found, key=lambda one: one.at, default=None)


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the parts that differ, code last."""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return sorted(names, key=lambda name: name.startswith(CODE))
