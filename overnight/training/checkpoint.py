"""Checkpoints on disk: written whole or not at all, checked by a digest; those of two steps are kept.

.overnight/checkpoints/<key of the step>/lock       held by the one run that trains it
                                         run.json   the folders of all attempts
                                         0/         of the step's first training (a step may have several)
                                            00000007.pt     the state after 7 optimizer steps
                                            00000007.json   its digest and identity
                                            plan            see save_plan
"""

import json
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from overnight.errors import FAILURES, one_line
from overnight.files import atomic_write, file_sha256, read_json
from overnight.paths import shown

PLAN = "plan"
SHARE = 0.02  # of the time that writing may cost
UNSUITABLE = (*FAILURES, pickle.PickleError, EOFError, MemoryError)  # of torch, for a state or file
Identity = dict[str, str]  # what must be equal for a checkpoint to be usable, by name


class CheckpointStore:
    """The checkpoints of one training; without a folder it keeps none."""

    def __init__(self, folder: Path | None, every_s: float, log: Callable[[str], None]) -> None:
        self.folder = folder
        self.every_s = every_s
        self.log = log
        self.next = time.monotonic() + every_s
        self.last_failure = ""

    def due(self) -> bool:
        return self.folder is not None and time.monotonic() >= self.next

    def save(self, identity: Identity, write: Callable[[Any], None], step: int) -> None:
        """Keep what `write(file)` writes, the state after `step` steps; a failure is only logged."""
        if self.folder is None:
            return
        began = time.monotonic()
        try:
            _write(self.folder, identity, write, step)
            self.last_failure = ""
        except UNSUITABLE as error:
            failure = f"no checkpoint: {_reason(self.folder, error)}"
            if failure != self.last_failure:
                self.log(failure)
            self.last_failure = failure
        ended = time.monotonic()
        self.next = ended + max(self.every_s, (ended - began) / SHARE if self.every_s else 0)

    def usable(self, identity: Identity) -> Iterator[Path]:
        """The undamaged states with this identity, newest first; logs why others are refused."""
        for facts in reversed(_facts_files(self.folder)):
            reason = refusal(facts, identity)
            if reason:
                self.refuse(facts.with_suffix(".pt"), reason)
            else:
                yield facts.with_suffix(".pt")

    def refuse(self, state: Path, reason: str) -> None:
        self.log(f"checkpoint {shown(state)} is not used: {reason}")

    def drop(self, step: int) -> None:
        """Delete the states of this step and later ones: their weights gave a diverged loss."""
        for facts in _facts_files(self.folder):
            if int(facts.stem) >= step:
                with suppress(OSError):
                    facts.unlink()
                    facts.with_suffix(".pt").unlink(missing_ok=True)

    def save_plan(self, plan: dict[str, Any]) -> None:
        """For the process that continues from the newest state; the next save deletes it."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / PLAN, json.dumps(plan), durable=True)

    def read_plan(self) -> dict[str, Any]:
        return read_json(self.folder / PLAN) if self.folder else {}


def refusal(facts: Path, identity: Identity) -> str:
    """Why a checkpoint cannot be used; empty when it can."""
    try:
        found = json.loads(facts.read_text())
        theirs = dict(found["identity"])
        state = facts.with_suffix(".pt")
        size = state.stat().st_size
        if size != found["bytes"]:
            return f"it is truncated: {size} of {found['bytes']} bytes"
        if file_sha256(state) != found["sha256"]:
            return "its digest is wrong: the file is damaged"
    except FAILURES as error:
        return f"it cannot be read ({type(error).__name__})"
    other = [name for name in identity if theirs.get(name) != identity[name]]
    return ", ".join(f"{name} was {theirs.get(name)!r}, is {identity[name]!r}" for name in other)


def _write(folder: Path, identity: Identity, write: Callable[[Any], None], step: int) -> None:
    """The state, then the facts that make it count, each renamed after its bytes are on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"{step:08d}.pt"
    atomic_write(state, write, durable=True)
    facts = {"identity": identity, "bytes": state.stat().st_size, "sha256": file_sha256(state)}
    atomic_write(folder / f"{step:08d}.json", json.dumps(facts), durable=True)
    _delete_others(folder, step)


def _reason(folder: Path, error: BaseException) -> str:
    if isinstance(error, RuntimeError) and error.__context__ is not None:  # torch hides the file's own error
        error = error.__context__
    if isinstance(error, OSError):
        return f"{shown(folder)} cannot be written ({error.strerror})"
    return f"this training cannot be written ({type(error).__name__}: {one_line(error)})"


def _delete_others(folder: Path, step: int) -> None:
    """All but the state of this step and the one before; also the plan, and states without facts.

    The one before is needed when the next loss shows that this one's weights diverged.
    """
    before = [facts.stem for facts in _facts_files(folder) if int(facts.stem) < step]
    kept = {f"{step:08d}", *before[-1:]}
    for path in folder.iterdir():
        if path.stem not in kept and path.is_file():
            path.unlink(missing_ok=True)


def _facts_files(folder: Path | None) -> list[Path]:
    """Oldest first; other file names are ignored."""
    if folder is None:
        return []
    return sorted(path for path in folder.glob("*.json") if path.stem.isdecimal() and path.stem.isascii())
