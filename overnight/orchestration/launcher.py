"""Where steps run. `Local` runs them on this machine, each in a child process.

Whatever depends on the machine is decided here: places on the host, the card, MiB to lease, threads.
A launcher for other machines has the same one method.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil

from overnight import processes
from overnight.errors import DiskFull, RestartProcess, Stopped
from overnight.events import CHILD, readable
from overnight.gpu.card import Card
from overnight.gpu.ledger.ledger import Ledger
from overnight.memory import subprocess as memory_subprocess
from overnight.memory import usage
from overnight.memory.request import MemoryRequest
from overnight.orchestration.protocol import ChildSpec, StepResult, StepSpec
from overnight.orchestration.provenance import stamp
from overnight.paths import root, state, steps
from overnight.step import Step, load_step

POLL_S = 0.2
LOG_LINES = 200  # of a log that are shown for each look; all of it stays in the file
LOG_BYTES = 1 << 16
STOP_GRACE_S = 18.0  # with the looks for a cancellation and the closing after it, less than 25 s
FREE_HOST_BYTES = 1 << 30
REASONS = {  # of an exit code without a result
    -9: "killed (signal 9): by somebody, or by the kernel when the machine ran out of memory",
    -11: "crashed (segmentation fault)",
    DiskFull.child_code: "the disk is full; free some room (old runs are folders in .overnight/steps) "
    "and run it again",
}


class Stop:
    """The flag that ends a run; set by a signal or a cancellation in Prefect. `now`: kill, do not wait."""

    def __init__(self) -> None:
        self.reason = ""
        self.now = False

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


class Listener(Protocol):
    """Receives what happens to a step while a launcher runs it."""

    def begin(self, spec: StepSpec) -> StepSpec:
        """The step has its place: open its records. Returns the spec to run."""

    def waits(self, text: str) -> None:
        """It waits, or prepares, for the reason that the text says."""

    def estimated(self, event: dict[str, Any]) -> None:
        """An event of the launcher's own: how much memory the step asks for, and why."""

    def event(self, event: dict[str, Any]) -> None:
        """An event that the step logged."""

    def log(self, line: str) -> None:
        """A line that the step's process printed."""


class Launcher(Protocol):
    """The one way to run a step."""

    def run(self, folder: Path, spec: StepSpec, stop: Stop, listener: Listener) -> StepResult:
        """Run a step with its files in *folder*, and wait for its end. Raises Stopped, DoesNotFit."""


class Local:
    """Runs steps on this machine."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def run(self, folder: Path, spec: StepSpec, stop: Stop, listener: Listener) -> StepResult:
        """Wait for a place on the host, then run the step in a child, and in another when it asks for it."""
        with place(spec.label, stop, listener.log) as running:
            threads = max(1, (os.cpu_count() or 1) // running)
            spec = listener.begin(spec)
            step = load_step(spec.step)
            arguments = step.from_json(spec.arguments)
            asked = self._ask(step, arguments, stop, listener)
            result = run_to_end(
                lambda one: run_child(folder, one, threads, stop, listener.event, listener.log),
                self._child_spec(spec, asked),
            )
            asked_for = {"asked_mib": asked.mib, **usage.prediction_fields(asked)}
            result = result.model_copy(update=asked_for).judged_for(self.card)
            if step.gpu:
                usage.record_usage(step, arguments, self.card, result, finished=result.code == 0)
            return result

    def _ask(
        self, step: Step[Any, Any], arguments: list[Any], stop: Stop, listener: Listener
    ) -> MemoryRequest:
        """How much of the card the step asks for. Raises DoesNotFit, Stopped."""
        if not step.gpu:
            return MemoryRequest(0)
        listener.waits("works out how much of the card it needs")
        asked = memory_subprocess.plan_request(step, arguments, self.card, stop)
        for event in usage.request_metrics(asked):
            listener.estimated(event)
        return asked

    def _child_spec(self, spec: StepSpec, asked: MemoryRequest) -> ChildSpec:
        return ChildSpec(
            **dict(spec),
            parent=os.getpid(),
            card=self.card,
            ask_mib=asked.mib,
            micro_batch=asked.micro_batch,
            exclusive=asked.exclusive,
            smaller=asked.smaller,
        )


def run_to_end(start: Callable[[ChildSpec], StepResult], spec: ChildSpec) -> StepResult:
    """The result of the step's last child, with what all of them used; `start` runs one.

    A child that ends with RestartProcess is followed by a fresh one, which resumes from the checkpoint.
    """
    result = start(spec)
    while result.code == RestartProcess.child_code:
        spec = spec.after(result)
        result = result.followed_by(start(spec))
    return result


@contextlib.contextmanager
def place(label: str, stop: Stop, log: Callable[[str], None]) -> Iterator[int]:
    """Hold one of the places for children on this host; yields how many are held. Raises Stopped.

    Children that wait for the card hold a place, too.
    """
    ledger = Ledger(state() / "slots", max(2, (os.cpu_count() or 2) // 2), "of the places on this host")
    with ledger.acquire(1, {"step": label}, stop):
        _wait_for_host_memory(stop, log)
        yield ledger.held_mib()


def run_child(
    folder: Path,
    spec: ChildSpec,
    threads: int,
    stop: Stop,
    follow: Callable[[dict[str, Any]], None],
    log: Callable[[str], None],
) -> StepResult:
    """Run *spec* in a child and wait for it, passing on its events and its log lines.

    Several children may use a folder, one after the other.
    """
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
            env={**_environment(threads), processes.STEP_MARK: processes.step_mark(folder)},
            process_group=0,
        )
    try:
        _follow(process, tails, stop, follow, log)
    finally:
        _end(process)
        processes.kill_step_processes(lambda owner: owner.folder == str(folder))
    return _result(folder, process.returncode, stop)


def _follow(
    process: "subprocess.Popen[bytes]",
    tails: "tuple[Tail, Tail]",
    stop: Stop,
    follow: Callable[[dict[str, Any]], None],
    log: Callable[[str], None],
) -> None:
    events, lines = tails
    asked = 0.0
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


def _result(folder: Path, returncode: int, stop: Stop) -> StepResult:
    """What the child wrote; when it could not, what its exit code says."""
    try:
        return StepResult.model_validate_json((folder / "result.json").read_text())
    except (OSError, ValueError):
        if stop():
            return StepResult(code=Stopped.child_code, error=f"{stop.reason}; killed before it could save")
        reason = REASONS.get(
            returncode, f"ended with exit code {returncode} and no result; its log: {folder / 'log.txt'}"
        )
        return StepResult(code=returncode or 1, error=reason)


def _wait_for_host_memory(stop: Stop, log: Callable[[str], None]) -> None:
    logged = False
    while psutil.virtual_memory().available < FREE_HOST_BYTES:
        if stop():
            raise Stopped("stopped while waiting for host memory")
        if not logged:
            log("waiting: less than 1 GiB of host memory is free")
            logged = True
        time.sleep(1)


def _environment(threads: int) -> dict[str, str]:
    """The parent's, with the child's share of the cores and without the addresses of servers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    limits = {
        name: os.environ.get(name, str(threads))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    }
    # Threads that wait leave their core to other steps.
    waits = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    return {**kept, **limits, **waits, "PYTHONUNBUFFERED": "1"}


class Tail:
    """New whole lines of a growing file; `new`: without those that it has already."""

    def __init__(self, path: Path, new: bool = False) -> None:
        self.path = path
        self._rest = b""
        self._offset = path.stat().st_size if new and path.exists() else 0

    def lines(self, last: bool = True) -> Iterator[str]:
        """Lines since the last call; a line without its end is kept for the next one."""
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
            whole.append(self._rest)
            self._rest = b""
        lines = [line.decode(errors="replace") for line in whole if line.strip()]
        shown = lines[-LOG_LINES:] if log else lines
        yield from shown
        if skipped or len(shown) < len(lines):
            left_out = f"{skipped >> 20} MiB and {len(lines) - len(shown)} lines are not shown here"
            yield f"(a flood of output: {left_out}; all of it is in {self.path})"

    def _skip(self) -> int:
        """Skip all but the end of what a person or Prefect could not read; returns the bytes left out."""
        more = self.path.stat().st_size - self._offset - LOG_BYTES
        if more <= 0:
            return 0
        self._offset += more
        self._rest = b""
        return more
