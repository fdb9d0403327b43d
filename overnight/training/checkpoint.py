"""Checkpoints on disk: each written whole or not at all, told apart by a digest, those of the last two steps kept.

.overnight/checkpoints/<key of the step>/lock       held by the one run that trains it
                                         run.json   its MLflow run, and the spools of every attempt
                                         0/         of the step's first training (a step may have several)
                                            00000007.pt, 00000007.json   a state, numbered as written; its digest, step, and what it is of
"""

import hashlib
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from overnight.paths import shown
from overnight.training.out_of_memory import brief

KEPT = 2
PLAN = "plan"
SHARE = 0.02  # of the time that writing may cost
REFUSALS = (
    OSError,
    RuntimeError,
    pickle.PickleError,
    AttributeError,
    TypeError,
    ValueError,
    MemoryError,
)  # of torch.save, and pickle below it
Identity = dict[str, str]  # what a checkpoint is of: what differs here makes it useless


class Keeper:
    """The checkpoints of one training; without a folder it keeps none."""

    def __init__(self, folder: Path | None, every_s: float, log: Callable[[str], None]) -> None:
        self.folder, self.every_s, self.log = folder, every_s, log
        self.next = time.monotonic() + every_s
        self.said = ""

    def due(self) -> bool:
        """Whether it is time for the next one: every `every_s`, later where writing is slow."""
        return self.folder is not None and time.monotonic() >= self.next

    def save(self, identity: Identity, write: Callable[[Any], None], step: int) -> None:
        """Keep what `write` writes, the state after so many optimizer steps; a disk that does not take it is told, and training goes on."""
        if self.folder is None:
            return
        began = time.monotonic()
        try:
            _write(self.folder, identity, write, step)
            self.said = ""
        except REFUSALS as error:
            with suppress(OSError):  # a disk that is full has no room to lose
                (self.folder / "part").unlink(missing_ok=True)
            self._say(f"no checkpoint: {_why(self.folder, error)}")
        self.next = time.monotonic() + max(
            self.every_s, (time.monotonic() - began) / SHARE if self.every_s else 0
        )

    def _say(self, text: str) -> None:
        """Once, until there is something else to say."""
        if text != self.said:
            self.log(text)
        self.said = text

    def newest(self, identity: Identity) -> Path | None:
        """The newest state that is of use."""
        return next(self.usable(identity), None)

    def usable(self, identity: Identity) -> Iterator[Path]:
        """The states that are whole and of this very training, the newest first; says why others are refused."""
        for facts in reversed(_written(self.folder) if self.folder else []):
            reason = refused(facts, identity)
            if reason:
                self.refuse(facts.with_suffix(".pt"), reason)
            else:
                yield facts.with_suffix(".pt")

    def refuse(self, state: Path, reason: str) -> None:
        """Say why a state is of no use."""
        self.log(f"checkpoint {shown(state)} is not used: {reason}")

    def drop(self, step: int) -> None:
        """Weights that gave a loss beyond all bounds, and what came of them: no state of that optimizer step or a later one is of use."""
        for facts in _written(self.folder) if self.folder else []:
            if _step(facts) >= step:
                with suppress(OSError):
                    facts.unlink()
                    facts.with_suffix(".pt").unlink(missing_ok=True)

    def leave(self, plan: dict[str, Any]) -> None:
        """A plan for the process that goes on from the newest state; forgotten with the next one, which holds it."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(self.folder / PLAN, json.dumps(plan))

    def left(self) -> bytes:
        """The plan that the process before left, as JSON."""
        try:
            return (self.folder / PLAN).read_bytes() if self.folder else b""
        except OSError:
            return b""


def refused(facts: Path, identity: Identity) -> str:
    """Why a checkpoint is of no use; empty when it is."""
    try:
        found = json.loads(facts.read_text())
        theirs, size, digest = dict(found["identity"]), found["bytes"], found["sha256"]
        with facts.with_suffix(".pt").open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return f"it is truncated: {os.fstat(file.fileno()).st_size} of {size} bytes"
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return "its digest is wrong: the file is damaged"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"it cannot be read ({type(error).__name__})"
    other = [name for name in identity if theirs.get(name) != identity[name]]
    return ", ".join(f"{name} was {theirs.get(name)!r}, is {identity[name]!r}" for name in other)


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()

    def fill(self, write: Callable[[Any], None]) -> None:
        """Let it be written; torch has an error of its own for a file that takes no more, and hides the file's."""
        try:
            write(self)
        except RuntimeError:
            if self.error is not None:
                raise self.error from None
            raise


def _write(folder: Path, identity: Identity, write: Callable[[Any], None], step: int) -> None:
    """The state first, then the facts that make it count, each by a rename after its bytes are on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(facts.stem) for facts in _written(folder)), default=0)
    state, facts = folder / f"{number:08d}.pt", folder / f"{number:08d}.json"
    part = folder / "part"
    with part.open("wb") as file:
        hashing = _Hashing(file)
        hashing.fill(write)
        size = file.tell()
        _sync(file)
    part.replace(state)
    write_durably(
        facts,
        json.dumps({"identity": identity, "step": step, "bytes": size, "sha256": hashing.sha256.hexdigest()}),
    )
    _forget(folder)


def write_durably(path: Path, text: str) -> None:
    """A file with this text, whole or not at all; on the disk, with all that was renamed in its folder before, when this returns."""
    part = path.with_name("part")
    with part.open("wb") as file:
        file.write(text.encode())
        _sync(file)
    part.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(folder: Path, error: BaseException) -> str:
    """Why nothing was written."""
    if isinstance(error, OSError):
        return f"{shown(folder)} cannot be written ({error.strerror})"
    return f"this training cannot be written ({type(error).__name__}: {brief(error)})"


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _forget(folder: Path) -> None:
    """Remove all but the newest of each of the last two steps, and states that a crash left without facts.

    Two of the same step would be of the same weights: when the next loss shows that those are useless, there must be others.
    """
    newest = {_step(facts): facts.stem for facts in _written(folder)}
    kept = sorted(newest.values())[-KEPT:]
    for path in folder.iterdir():
        if path.stem not in kept and path.is_file():
            path.unlink(missing_ok=True)


def _written(folder: Path) -> list[Path]:
    """The facts of every state, the oldest first; what is called otherwise is none of ours."""
    return sorted(path for path in folder.glob("*.json") if path.stem.isdecimal() and path.stem.isascii())


def _step(facts: Path) -> int:
    """After how many optimizer steps it was written; -1 where that cannot be read."""
    try:
        return int(json.loads(facts.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return -1


def remove(folder: Path) -> None:
    """A finished step needs its checkpoints no more."""
    shutil.rmtree(folder, ignore_errors=True)
