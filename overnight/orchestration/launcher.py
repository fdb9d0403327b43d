"""Where steps run: whatever depends on the machine is decided here. `Local` runs each in a child process."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from overnight import events, processes
from overnight.errors import DiskFull, RestartProcess, Stopped
from overnight.gpu.card import Card
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.ledger import Ledger
from overnight.memory import history
from overnight.memory import subprocess as memory_subprocess
from overnight.memory.request import MemoryRequest, declared_mib
from overnight.orchestration.protocol import ChildSpec, StepResult, StepSpec
from overnight.paths import log_file, root, state, steps
from overnight.step import Step, load_step

POLL_S = 0.2
LOG = "log.txt"
LOG_LINES = 200  # of a log that are shown at each poll; all of it stays in the file
LOG_BYTES = 1 << 16
STOP_GRACE_S = 18.0  # with the looks for a cancellation and the closing after it, less than 25 s
FREE_HOST_BYTES = 1 << 30
VMSTAT = Path("/proc/vmstat")
REASONS = {  # of an exit code without a result
    -9: "killed (signal 9): by somebody, or by the kernel when the machine ran out of memory",
    -11: "crashed (segmentation fault)",
    DiskFull.child_code: "the disk is full; free some room (old runs are folders in .overnight/steps) "
    "and run it again",
}


@dataclass(eq=False)
class Stop:
    """The flag that ends a run; set by a signal or a cancellation in Prefect. `now`: kill, do not wait."""

    reason: str = ""
    now: bool = False

    def __call__(self) -> bool:
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        """Stop at the next checkpoint; asked again by a person, kill."""
        self.now = self.now or (bool(self.reason) and "Ctrl-C" in reason)
        self.reason = self.reason or reason


@contextlib.contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to stop; outside the main thread no handler can be set."""
    reasons: dict[int, str] = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
        reasons[signal.SIGHUP] = "stopped, since its terminal was closed"
    if threading.current_thread() is not threading.main_thread():
        reasons = {}

    def ask(number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            _write_to_log()
        stop.ask(reasons[number])

    before = {number: signal.signal(number, ask) for number in reasons}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_to_log() -> None:
    """What is printed from now on goes to a log: there is no terminal any more."""
    log = os.open(log_file("closed-terminal"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def new_folder(label: str) -> Path:
    now = time.strftime("%Y%m%d-%H%M%S")
    path = steps() / f"{now}-{label.replace('/', '-')}-{secrets.token_hex(3)}"
    path.mkdir(parents=True)
    return path


class Listener(Protocol):
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


@dataclass
class Local:
    card: Card

    def run(self, folder: Path, spec: StepSpec, stop: Stop, listener: Listener) -> StepResult:
        with place(spec.label, stop, lambda line: listener.event({"event": "wait", "text": line})) as running:
            step = load_step(spec.step)
            arguments = step.from_json(spec.arguments)
            asked = MemoryRequest(0)
            if step.gpu:
                asked = self._request(step, arguments, stop, listener)
            child = ChildSpec(**dict(spec), parent=os.getpid(), card=self.card, request=asked)
            threads = max(1, (os.cpu_count() or 1) // running)
            result = run_to_end(
                lambda one: run_child(folder, one, threads, stop, listener.event, listener.log), child
            )
            result = result.model_copy(update=asked.usage()).judged_for(self.card)
            if step.gpu:
                history.record_usage(step, arguments, self.card, result, finished=result.code == 0)
            return result

    def _request(
        self, step: Step[Any, Any], arguments: list[Any], stop: Stop, listener: Listener
    ) -> MemoryRequest:
        """How much to ask; a nominal share of a virtual card that counts nothing."""
        if self.card.virtual and not (self.card.count or os.environ.get("OVERNIGHT_VIRTUAL_MIB")):
            declared = declared_mib(step, arguments[0])
            if declared == 0:
                return MemoryRequest(0)
            share = min(self.card.budget_mib, max(declared or 0, self.card.budget_mib // 4))
            return MemoryRequest(share, exclusive=bool(getattr(arguments[0], "exclusive", False)))
        listener.event({"event": "log", "text": "works out how much of the card it needs"})
        asked = memory_subprocess.plan_request(step, arguments, self.card, stop)
        for event in asked.events():
            listener.estimated(event)
        return asked


def run_to_end(start: Callable[[ChildSpec], StepResult], spec: ChildSpec) -> StepResult:
    """The result of the step's last child, with what all of them used.

    A child that ends with RestartProcess is followed by a fresh one, which resumes from the checkpoint.
    """
    result = start(spec)
    while result.code == RestartProcess.child_code:
        spec = spec.after(result)
        result = result.followed_by(start(spec))
    return result


def places() -> int:
    """For children on this host."""
    return max(2, (os.cpu_count() or 2) // 2)


@contextlib.contextmanager
def place(label: str, stop: Stop, log: Callable[[str], None]) -> Iterator[int]:
    """Hold one of the places for children on this host, and yield how many are held.

    Children that wait for the card hold a place, too.
    """
    ledger = Ledger(state() / "slots", places(), "of the places on this host")

    def waiting(ahead: Sequence[Request], _overuse: int) -> None:
        names = ", ".join(str(one.owner.get("step", f"pid {one.pid}")) for one in ahead[:3])
        log(f"waits for a place on this machine, behind {names}")

    with ledger.acquire(1, {"step": label}, stop, waiting):
        if psutil.virtual_memory().available < FREE_HOST_BYTES:
            log("waiting: less than 1 GiB of host memory is free")
        while psutil.virtual_memory().available < FREE_HOST_BYTES:
            if stop():
                raise Stopped("stopped while waiting for host memory")
            time.sleep(1)
        yield ledger.held_mib()


def run_child(
    folder: Path,
    spec: ChildSpec,
    threads: int,
    stop: Stop,
    follow: Callable[[dict[str, Any]], None],
    log: Callable[[str], None],
) -> StepResult:
    start = _size(folder / events.CHILD)
    lines = Tail(folder / LOG)
    kills = oom_kills()
    process = _start(folder, spec, threads)
    asked = 0.0  # when it was asked to stop
    try:
        while True:
            ended = process.poll() is not None
            while (portion := events.read(folder / events.CHILD, start)).end > start:
                start = portion.end
                for event in portion.events:
                    follow(event)
            for line in lines.read(last=ended):
                log(line)
            if ended:
                return _result(folder, process.returncode, stop, oom_kills() - kills)
            if stop() and not asked:
                asked = time.monotonic()
                _signal(process, signal.SIGTERM)
            if asked and (stop.now or time.monotonic() - asked > STOP_GRACE_S):
                _signal(process, signal.SIGKILL)
            time.sleep(POLL_S)
    finally:
        _signal(process, signal.SIGKILL)  # the whole group: grandchildren, too
        process.wait()
        processes.kill_step_processes(folder)


def _start(folder: Path, spec: ChildSpec, threads: int) -> "subprocess.Popen[bytes]":
    (folder / "spec.json").write_text(spec.model_dump_json(indent=1))
    (folder / "result.json").unlink(missing_ok=True)  # of a child before this one
    with (folder / LOG).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "overnight.orchestration.child", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=root(),
            env={**_environment(threads), processes.STEP_MARK: processes.step_mark(folder)},
            process_group=0,
        )


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def oom_kills() -> int:
    """Processes that the kernel has killed since the boot because memory ran out (proc(5), vmstat)."""
    with contextlib.suppress(OSError, ValueError):
        return int(VMSTAT.read_text().partition("\noom_kill ")[2].partition("\n")[0])
    return 0


def _result(folder: Path, returncode: int, stop: Stop, kills: int = 0) -> StepResult:
    """kills: of the kernel meanwhile, because memory ran out."""
    try:
        return StepResult.model_validate_json((folder / "result.json").read_text())
    except (OSError, ValueError):
        if stop():
            return StepResult(code=Stopped.child_code, error=f"{stop.reason}; killed before it could save")
        unexplained = f"ended with exit code {returncode} and no result; its log: {folder / LOG}"
        reason = REASONS.get(returncode, unexplained)
        if returncode == -signal.SIGKILL:
            reason += f"; the kernel counts {kills} such kills meanwhile"
        return StepResult(code=returncode or 1, error=reason)


# No library downloads a model or reports its use behind a step's back: `overnight weights fetch` downloads.
OFFLINE = dict.fromkeys(
    ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"), "1"
) | {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


def _environment(threads: int) -> dict[str, str]:
    """With the child's share of the cores, offline, and without the addresses of servers."""
    shares = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), str(threads))
    variables = processes.with_proxies(os.environ).items()
    kept = {k: v for k, v in variables if not k.startswith(("PREFECT_", "MLFLOW_"))}
    # Passive: threads that wait leave their core to other steps.
    return {**shares, **OFFLINE, "OMP_WAIT_POLICY": "PASSIVE", **kept, "PYTHONUNBUFFERED": "1"}


class Tail:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = _size(path)

    def read(self, last: bool) -> list[str]:
        """Of a flood its end alone; `last`: also a line without its end."""
        size = _size(self.path)
        if size <= self._offset:
            return []
        skipped = max(0, size - self._offset - LOG_BYTES)
        with self.path.open("rb") as file:
            file.seek(self._offset + skipped)
            data = file.read(size - self._offset - skipped)
        if not last and (b"\n" in data or len(data) < LOG_BYTES):
            data = data[: data.rfind(b"\n") + 1]
        self._offset += skipped + len(data)
        lines = [line.decode(errors="replace") for line in data.split(b"\n") if line.strip()]
        shown = lines[-LOG_LINES:]
        if skipped or len(shown) < len(lines):
            left_out = f"{skipped >> 20} MiB and {len(lines) - len(shown)} lines are not shown here"
            shown.append(f"(a flood of output: {left_out}; all of it is in {self.path})")
        return shown


def log_tail(folder: Path) -> str:
    """The end of what a step's process printed."""
    path = folder / LOG
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
