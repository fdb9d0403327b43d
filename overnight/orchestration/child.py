"""`python -m overnight.orchestration.child FOLDER`: one step in its own process, whose end frees all it took.

It reads spec.json, writes events.jsonl, and result.json at its end. Nothing depends on a pipe to the parent:
stdout and stderr are `log.txt`. Exit codes are those of errors.py.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.config import Values
from overnight.errors import DiskFull, OutOfMemory, OvernightError, Stopped
from overnight.files import atomic_write, is_disk_full
from overnight.gpu.out_of_memory import PAGING_FAILED, is_out_of_memory, is_paging
from overnight.night.failures import names_of
from overnight.orchestration.protocol import ChildSpec, StepResult
from overnight.processes import die_with_parent
from overnight.run import EventLogRun
from overnight.step import Step, load_step

if TYPE_CHECKING:
    from overnight.gpu.lease import Lease
    from overnight.gpu.memory_limit import MemoryLimit


def main(folder: Path) -> int:
    spec = ChildSpec.model_validate_json((folder / "spec.json").read_text())
    die_with_parent(spec.parent)
    stop: list[int] = []
    facts = dict[str, Any]()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _frame: stop.append(n))
    try:
        result = StepResult(code=0, value=_run(folder, spec, stop, facts))
    except OvernightError as error:
        result = _failed(error.child_code, str(error) or type(error).__name__, error)
    except SystemExit as error:
        result = _failed(1, f"the step called sys.exit({error.code!r}) instead of returning", error)
    except Exception as error:  # noqa: BLE001 - the border: it becomes a reason and an exit code
        with contextlib.suppress(OSError):  # its log may be on a disk that is full
            traceback.print_exc()
        result = _reason(error)
    try:
        atomic_write(folder / "result.json", result.model_copy(update=facts).model_dump_json())
    except OSError as error:  # the exit code has to do
        return _reason(error).code
    return result.code


def _run(folder: Path, spec: ChildSpec, stop: list[int], facts: dict[str, Any]) -> Any:
    """The step's value, as JSON. Its usage goes into `facts`, however it ends."""
    from overnight.gpu import memory_limit
    from overnight.gpu.monitor import watch

    run = EventLogRun(folder, spec.seed)
    run.should_stop = lambda: bool(stop)
    run.restarts = True
    memory_limit.prepare(spec.card, bool(spec.request.mib))
    step = load_step(spec.step)
    arguments = step.from_json(spec.arguments)
    with contextlib.ExitStack() as held:
        _continue_earlier(held, run, step, spec)
        lease = _take_lease(held, run, spec, facts)
        if stop:
            raise Stopped("stopped before the start")
        cap = _cap(lease, run, spec, step.program) if lease else None
        began = time.monotonic()
        try:
            with (
                watch(run, spec.card, lease, cap) as monitor,
                cap.body() if cap else contextlib.nullcontext(),
            ):
                run.should_yield = monitor.preemption_reason
                value = step.body(run, *_sized(arguments, facts.get("asked_micro_batch")))
        finally:
            facts |= {"run_s": time.monotonic() - began, **monitor.summary(), **_used(run, cap, facts)}
    return value.model_dump(mode="json") if isinstance(value, Values) else value


def _used(run: EventLogRun, cap: "MemoryLimit | None", facts: dict[str, Any]) -> dict[str, Any]:
    if cap and cap.overrun():
        run.note(cap.overrun())
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "host_peak_mib": max(peaks) / 1024,
        "micro_batch": run.micro_batch or facts.get("asked_micro_batch"),
        "resident_mib": run.resident_mib,
        **(cap.summary() if cap else {}),
        **({"out_of_memory": True, "hit_limit": True} if run.out_of_memory else {}),
    }


def _continue_earlier(
    held: contextlib.ExitStack, run: EventLogRun, step: Step[Any, Any], spec: ChildSpec
) -> None:
    """Go on where earlier attempts at the step have ended, in its log and from its checkpoint."""
    from overnight.training.resume import acquire_checkpoints, continue_log

    if step.recipe is None:
        continue_log(run, spec.earlier, spec.logged_before)
        return
    who = f"{spec.label} of {spec.experiment}"
    held.enter_context(acquire_checkpoints(run, spec.key, who, spec.earlier, spec.logged_before))


def _sized(arguments: list[Any], micro_batch: int | None) -> list[Any]:
    if micro_batch is None or not hasattr(arguments[0], "micro_batch"):
        return arguments
    return [arguments[0].model_copy(update={"micro_batch": micro_batch}), *arguments[1:]]


def _take_lease(
    held: contextlib.ExitStack, run: EventLogRun, spec: ChildSpec, facts: dict[str, Any]
) -> "Lease | None":
    request = spec.request
    if not request.mib:
        return None
    from overnight.gpu import messages
    from overnight.gpu.lease import lease

    facts |= {"asked_mib": request.mib, "exclusive": request.exclusive}
    granted = held.enter_context(
        lease(
            request.mib,
            spec.card,
            {"step": spec.label, "experiment": spec.experiment},
            run.should_stop,
            lambda ahead, overuse: run.log(messages.waiting(spec.card, request.mib, ahead, overuse)),
            request.exclusive,
            [mib for mib, _ in request.smaller],
            spec.ticket,
        )
    )
    facts |= {
        "ticket": granted.ticket,
        "lease_mib": granted.mib,
        "wait_s": granted.wait_s,
        "asked_micro_batch": request.micro_batch_of(granted.mib),
    }
    return granted


def _cap(lease: "Lease", run: EventLogRun, spec: ChildSpec, is_program: bool) -> "MemoryLimit":
    from overnight.gpu import memory_limit
    from overnight.gpu.cuda_context import overhead

    if is_program:
        lease.update(use_mib=0)
        run.budget_mib = lease.mib
        return memory_limit.ProgramUse(lease.mib, spec.card)
    if not spec.card.virtual:
        # A holder that says nothing counts with its lease, and would hide other programs.
        lease.update(use_mib=overhead(spec.card))
    cap = memory_limit.apply(lease.mib, spec.card)
    lease.update(cap_mib=cap.cap_mib)
    run.device = "cpu" if spec.card.virtual else "cuda"
    run.budget_mib = cap.cap_mib
    return cap


def _reason(error: Exception) -> StepResult:
    text = f"{type(error).__name__}: {error}"[:2000]
    # Libraries that write for themselves, such as safetensors, have errors of their own.
    if is_disk_full(error) or os.strerror(errno.ENOSPC) in text:
        return _failed(DiskFull.child_code, f"the disk is full: {error}"[:2000], error)
    if is_paging(error):
        return _failed(OutOfMemory.child_code, f"{text} ({PAGING_FAILED})", error)
    return _failed(OutOfMemory.child_code if is_out_of_memory(error) else 1, text, error)


def _failed(code: int, text: str, error: BaseException | None = None) -> StepResult:
    """Bytes in file names that are no text are replaced."""
    raised = names_of(error) if error else ()
    return StepResult(code=code, error=text.encode(errors="replace").decode(), raised=raised)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # finalisers of CUDA libraries and worker threads have nothing left to say
