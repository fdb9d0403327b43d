"""Writers that are ended, or refused, at each of their state-changing system calls, by strace.

A writer is a fork of this process that strace attaches to. What it leaves is read by this process, and written to
by the next one: nothing is torn, nothing that was finished is lost, nothing stays held.
"""

import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import chdir, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from overnight import artifact, events
from overnight.errors import OvernightError
from overnight.gpu.ledger.ledger import Ledger
from overnight.tracking.client import Tracker, mlflow_error
from overnight.tracking.registry import EVIDENCE, PROMOTED, Registry
from overnight.training.checkpoint import CheckpointStore
from tests.chaos.case import Case, Measured
from tests.support.registered import Models

REFUSED = "openat,mkdir,link,rename,unlink,unlinkat,rmdir,write,pwrite64,ftruncate,fsync,fdatasync"
ENDED = f"{REFUSED},flock,close"
FAULTS = {"kill": "signal=KILL", "full": "error=ENOSPC", "broken": "error=EIO"}
TRACED = 4_000_000  # what a writer is told of its parent, from when on strace counts its calls
BUDGET = 1000


class Writer(Protocol):
    """write: what the fork does; check: what must be so afterwards, whatever became of it."""

    def write(self) -> None: ...
    def check(self, done: bool) -> None: ...


class Lease:
    """Acquires and releases beside another holder, twice: an error in the first must not harm the second."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "card", BUDGET)
        self.other = self.ledger.acquire(400)

    def write(self) -> None:
        with suppress(OvernightError, OSError):
            self.ledger.acquire(600).release()
        self.ledger.acquire(600, should_stop=lambda: True).release()

    def check(self, done: bool) -> None:
        assert [r.mib for r in self.ledger.requests()] == [400]
        self.ledger.acquire(600, should_stop=lambda: True).release()
        assert len(list(self.ledger.folder.iterdir())) <= 4, "files pile up"


class Restored:
    """A holder whose folder is removed enters again."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "card", BUDGET)

    def write(self) -> None:
        with self.ledger.acquire(600) as grant:
            for path in self.ledger.folder.iterdir():
                path.unlink()
            grant.restore()
            assert self.ledger.held_mib() == 600

    def check(self, done: bool) -> None:
        assert self.ledger.requests() == []
        self.ledger.acquire(BUDGET, should_stop=lambda: True).release()


class Checkpoint:
    """A state is the one before or the new one, and whole."""

    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(folder / "0", 0, lambda _text: None)
        self.step = 0

    def write(self) -> None:
        self.store.save({"of": "x"}, lambda file: file.write(self._content(self.step + 1)), self.step + 1)

    def check(self, done: bool) -> None:
        newest = next(self.store.usable({"of": "x"}), None)
        assert newest is not None, "no state is left"
        steps = [n for n in (self.step, self.step + 1) if newest.read_bytes() == self._content(n)]
        assert steps, "neither the one before nor the new one"
        self.step = steps[0]
        self.write()  # the next one, which also clears up what an error left
        self.step += 1

    def _content(self, step: int) -> bytes:
        return b"%d," % step * 30_000


class Events:
    """Lines that were written stay, those of the next writer are read, a torn one is passed over."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"
        self.count = 0
        self.kept = set[int]()

    def write(self) -> None:
        log = events.Writer(self.path)
        for number in range(self.count, self.count + 3):
            log.write({"event": "note", "text": str(number)})
        log.sync()
        log.close()

    def check(self, done: bool) -> None:
        first = self.count
        self.count += 4
        after = events.Writer(self.path)
        after.write({"event": "note", "text": str(first + 3)})
        after.close()
        found = [int(e["text"]) for e in events.read(self.path, 0).events]
        assert found == sorted(set(found)), "a line is there twice, or out of order"
        assert self.kept | {first + 3} <= set(found), "a line is lost"
        assert not done or {first, first + 1, first + 2} <= set(found), "a line is lost"
        self.kept = set(found)


class Made:
    """An artifact is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "out"
        self.number = 0

    def write(self) -> None:
        text = f"{self.number} " * 5000
        artifact.save(
            self.folder, "text", meta={"text": text}, files={"a/text": lambda path: self._put(path, text)}
        )

    def _put(self, path: Path, text: str) -> None:
        path.write_text(text)

    def check(self, done: bool) -> None:
        self.number += 1
        assert self.folder.exists() or not done
        if self.folder.exists():
            found = artifact.Artifact(kind="text", path=self.folder, digest="", spec=artifact.DataSpec())
            assert found.meta()["text"] == (self.folder / "a" / "text").read_text()


class Promotion:
    """The alias is on the old or the new version, with its evidence; what was cut off is done by the next one."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "mlflow.db"
        with chdir(folder):
            self.made = Models(Registry(Tracker(f"sqlite:///{self.database}", "made")), "vision")
            self.number = 0
            self._next()
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints the traceback of each refusal

    def _next(self) -> None:
        """Register the version that the next writer promotes, and leave no connection to its fork."""
        self.number += 1
        self.made.register(str(self.number))
        client = self.made.registry.client
        for store in (client._get_registry_client().store, client._tracking_client.store):
            store.engine.dispose()

    def write(self) -> None:
        try:
            self.made.judge(str(self.number), former=self.number - 1, looks=self.number)
        except mlflow_error() as error:
            raise OSError(str(error)) from None

    def check(self, done: bool) -> None:
        with closing(sqlite3.connect(self.database)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        now = self.made.champion()
        assert now in ((self.number,) if done else (self.number - 1, self.number)), f"the champion is {now}"
        champion = self.made.find().champion
        if champion:
            assert champion.facts(EVIDENCE)["why"] == f"{now} is better", "a champion without its evidence"
            assert champion.facts(PROMOTED)["former"] == now - 1
            assert self.made.find().account["looks"] >= now, "a look that is not counted"
        self.write()
        assert self.made.champion() == self.number, "what was cut off is not done"
        self._next()


WRITERS: dict[str, Callable[[Path], Writer]] = {
    "lease": Lease,
    "restored": Restored,
    "checkpoint": Checkpoint,
    "events": Events,
    "artifact": Made,
    "promotion": Promotion,
}


@dataclass
class Swept:
    """calls: how many were met; damaged: after how many of them something was not as it must be."""

    calls: int = 0
    damaged: int = 0


def sweep(writer: str, fault: str, every: int = 1) -> Swept:
    """One writer, refused or ended at its first, (1 + every)-th ... call."""
    swept = Swept()
    with tempfile.TemporaryDirectory(prefix="calls-") as folder:
        made = WRITERS[writer](Path(folder))
        made.write()  # what Python loads at the first time, it loads here
        made.check(done=True)
        traced = ENDED if fault == "kill" else REFUSED
        _, names = _run(made.write, f"trace=getppid,{traced}")
        made.check(done=True)
        for number in range(0, len(names), every):
            name = names[number]
            nth = names[: number + 1].count(name)  # strace counts each kind of call by itself
            inject = f"inject={name}:{FAULTS[fault]}:when={nth}"
            done, _ = _run(made.write, f"trace=getppid,{name}", inject)
            try:
                made.check(done)
            except (AssertionError, OvernightError, OSError):
                print(f"{writer}, {fault} at {name} {nth}:", file=sys.stderr)
                traceback.print_exc()
                swept.damaged += 1
            swept.calls += 1
    return swept


def _run(body: Callable[[], None], *expressions: str) -> tuple[bool, list[str]]:
    """Whether a fork under strace came to its end without an error, and the names of the calls it made."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            while os.getppid() != TRACED:
                time.sleep(0.001)
            body()
            code = 0
        except (OvernightError, OSError):
            code = 2
        finally:
            os._exit(code)
    options = [part for e in (f"inject=getppid:retval={TRACED}", *expressions) for part in ("-e", e)]
    traced = subprocess.run(
        ["strace", "-q", *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True, check=True
    )
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, 2, -9}, f"the writer ended with {code}"
    return code == 0, [
        name for name in re.findall(r"^(\w+)\(", traced.stderr, re.MULTILINE) if name != "getppid"
    ]


def refusal() -> str:
    """Why nothing can be traced here; empty when it can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def cases() -> list[Case]:
    reason = refusal()
    if reason:
        print(f"calls: skipped, {reason}", file=sys.stderr)
        return []
    quick = [name for name in WRITERS if name != "promotion"]
    return [
        Case(f"calls_{fault}", f"writers at each of their system calls: {FAULTS[fault]}",
             lambda _seed, fault=fault: _all(fault, quick), {"damaged": "== 0", "calls": ">= 100"}, 300)
        for fault in FAULTS
    ] + [
        Case(f"promotion_{fault}", f"a promotion at each of its system calls: {FAULTS[fault]}",
             lambda _seed, fault=fault: _all(fault, ["promotion"]), {"damaged": "== 0", "calls": ">= 50"}, 600)
        for fault in FAULTS
    ]  # fmt: skip


def _all(fault: str, writers: Sequence[str]) -> Measured:
    swept = {writer: sweep(writer, fault) for writer in writers}
    counts = {f"{writer}_calls": float(s.calls) for writer, s in swept.items()}
    return {
        **counts,
        "calls": sum(s.calls for s in swept.values()),
        "damaged": sum(s.damaged for s in swept.values()),
    }
