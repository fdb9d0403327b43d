"""One step as its parent sees it: start the child, follow its files, stop it when asked, read its result."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from overnight import descendants
from overnight.errors import DiskFull, Stopped
from overnight.events import CHILD, readable
from overnight.gpu.ledger.ledger import Ledger
from overnight.orchestration.child import Result, Spec
from overnight.orchestration.provenance import stamp
from overnight.paths import root, state, steps

POLL_S = 0.2
LOG_LINES = 200  # of a log that are shown for each look; all of it stays in the file
LOG_BYTES = 1 << 16
STOP_GRACE_S = 18.0  # with the looks for a cancellation and the closing after it, less than 25 s
FREE_HOST_BYTES = 1 << 30
REASONS = {-9: "killed (signal 9): by somebody, or by the kernel when the machine ran out of memory", -11: "crashed (segmentation fault)",
           DiskFull.child_code: "the disk is full; free some room (old runs are folders in .overnight/steps) and run it again"}  # fmt: skip


class Stop:
    """The flag that ends a run: set by a signal, by a cancellation in Prefect, or by a second Ctrl-C for at once."""

    def __init__(self) -> None:
        self.reason, self.now = "", False

    def __call__(self) -> bool:
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        """Stop at the next checkpoint; asked again by a person, kill."""
        self.now = self.now or (bool(self.reason) and "Ctrl-C" in reason)
        self.reason = self.reason or reason


def new_folder(label: str) -> Path:
    """A step's own folder in .overnight/steps."""
    path = steps() / f"{stamp()}-{label.replace('/', '-')}-{secrets.token_hex(3)}"
    path.mkdir(parents=True)
    return path


@contextlib.contextmanager
def slot(label: str, stop: Stop, log: Callable[[str], None]) -> Iterator[int]:
    """A place among the children that may exist at once on this host, waiters for the card included; how many there are now.

    Raises Stopped.
    """
    ledger = Ledger(state() / "slots", max(2, (os.cpu_count() or 2) // 2), "of the places on this host")
    with ledger.acquire(1, {"step": label}, stop):
        _wait_for_host_memory(stop, log)
        yield ledger.held_mib()


def run_child(
    folder: Path,
    spec: Spec,
    threads: int,
    stop: Stop,
    follow: Callable[[dict[str, Any]], None],
    log: Callable[[str], None],
) -> Result:
    """Run *spec* in a child and wait for it, handing on its events and its log lines. A folder may see several children, in turn."""
    (folder / "spec.json").write_text(spec.model_dump_json(indent=1))
    (folder / "result.json").unlink(missing_ok=True)  # of a child before this one
    tails = Tail(folder / CHILD, new=True), Tail(folder / "log.txt", new=True)
    with (folder / "log.txt").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "overnight.orchestration.child", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=root(),
            env={**_environment(threads), descendants.MARK: descendants.mark(folder)},
            process_group=0,
        )
    try:
        _follow(process, tails, stop, follow, log)
    finally:
        _end(process)
        descendants.end(lambda owner: owner.folder == str(folder))
    return _result(folder, process.returncode, stop)


def _follow(
    process: "subprocess.Popen[bytes]",
    tails: "tuple[Tail, Tail]",
    stop: Stop,
    follow: Callable[[dict[str, Any]], None],
    log: Callable[[str], None],
) -> None:
    (events, lines), asked = tails, 0.0
    while True:
        ended = process.poll() is not None
        for line in events.lines():
            if event := readable(line):
                follow(event)
            else:
                log(f"events.jsonl: a line that is no event was left out: {line[:80]}")
        for line in lines.lines(last=ended):
            log(line)
        if ended:
            return
        if stop() and not asked:
            asked = time.monotonic()
            _signal(process, signal.SIGTERM)
        if asked and (stop.now or time.monotonic() - asked > STOP_GRACE_S):
            _signal(process, signal.SIGKILL)
        time.sleep(POLL_S)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Nothing of the child's group stays behind, grandchildren included."""
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _result(folder: Path, returncode: int, stop: Stop) -> Result:
    """What the child wrote; when it could not, what its exit code says."""
    try:
        return Result.model_validate_json((folder / "result.json").read_text())
    except (OSError, ValueError):
        if stop():
            return Result(code=Stopped.child_code, error=f"{stop.reason}; killed before it could save")
        reason = REASONS.get(
            returncode, f"ended with exit code {returncode} and no result; its log: {folder / 'log.txt'}"
        )
        return Result(code=returncode or 1, error=reason)


def _wait_for_host_memory(stop: Stop, log: Callable[[str], None]) -> None:
    told = False
    while psutil.virtual_memory().available < FREE_HOST_BYTES:
        if stop():
            raise Stopped("stopped while waiting for host memory")
        if not told:
            log("waiting: less than 1 GiB of host memory is free")
            told = True
        time.sleep(1)


def _environment(threads: int) -> dict[str, str]:
    """The parent's, with the child's share of the cores and without anything that could make it talk to a tracking server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    limits = {
        name: os.environ.get(name, str(threads))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    }
    waits = {
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    }  # threads that wait leave their core to other steps
    return {**kept, **limits, **waits, "PYTHONUNBUFFERED": "1"}


class Tail:
    """New whole lines of a growing file; `new`: but for what is there already."""

    def __init__(self, path: Path, new: bool = False) -> None:
        self.path, self._rest = path, b""
        self._offset = path.stat().st_size if new and path.exists() else 0

    def lines(self, last: bool = True) -> Iterator[str]:
        """What came since the last call; an unfinished line waits, for ever if the writer died in the middle of it."""
        if not self.path.exists():
            return
        log = self.path.name == "log.txt"
        skipped = self._skip() if log else 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if log and self._rest and (last or len(self._rest) > LOG_BYTES):
            whole, self._rest = [*whole, self._rest], b""
        lines = [line.decode(errors="replace") for line in whole if line.strip()]
        shown = lines[-LOG_LINES:] if log else lines
        yield from shown
        if skipped or len(shown) < len(lines):
            yield f"(a flood of output: {skipped >> 20} MiB and {len(lines) - len(shown)} lines are not shown here; all of it is in {self.path})"

    def _skip(self) -> int:
        """Step over all but the end of what came, when that is more than a person or Prefect could read; the bytes left out."""
        more = self.path.stat().st_size - self._offset - LOG_BYTES
        if more <= 0:
            return 0
        self._offset, self._rest = self._offset + more, b""
        return more
