"""Predict in a process of its own: a trace changes operators of the whole process, and a crash costs no step.

`python -m overnight.memory.subprocess` reads {step, arguments, card} from its standard input and stores the
interval of each micro-batch that the planner looks at in the step's folder (intervals.py), so each is traced
once. If the process ends early (a fault in a library, the machine's memory, the time limit) the remaining
intervals are
unknown: the step requests what it declares, and logs why.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.errors import DoesNotFit, Stopped
from overnight.gpu.card import Card
from overnight.memory import intervals, request
from overnight.memory.request import MemoryRequest
from overnight.paths import root
from overnight.processes import die_with_parent

if TYPE_CHECKING:
    from overnight.step import Step

COMMAND = (sys.executable, "-P", "-m", "overnight.memory.subprocess")
LIMIT_S = 240.0  # on a busy machine; a trace takes 1 to 15 s of one core
POLL_S = 0.05
FIRST_TO_GO = 1000  # when the machine's memory runs out (oom_score_adj)


def plan_request(
    step: "Step[Any, Any]",
    arguments: Sequence[Any],
    card: Card,
    should_stop: Callable[[], bool],
    limit_s: float = LIMIT_S,
) -> MemoryRequest:
    """request.plan_request, with the prediction made in a process of its own. Raises DoesNotFit, Stopped."""
    known = intervals.StoredIntervals(request.folder_of(step, arguments, card), intervals.version())
    with contextlib.suppress(DoesNotFit):
        found = request.plan_request(step, arguments, card, known)
        if not known.missing:
            return _with_note(found, known)
    if known.missing:
        known.missing.clear()
        why = run(_question(step, arguments, card), COMMAND, should_stop, limit_s)
        with contextlib.suppress(DoesNotFit):
            request.plan_request(step, arguments, card, known)
        if known.missing:
            known.give_up(why or "the process made no prediction")
    return _with_note(request.plan_request(step, arguments, card, known), known)


def _with_note(found: MemoryRequest, known: intervals.StoredIntervals) -> MemoryRequest:
    """Add the reason when there is no prediction."""
    if not known.unknown or found.predicted is not None:
        return found
    return replace(found, note=f"its memory is not predicted: {known.unknown}")


def run(
    question: Mapping[str, Any], command: Sequence[str], should_stop: Callable[[], bool], limit_s: float
) -> str:
    """Run the command with the question as its input. Returns why it failed, or nothing. Raises Stopped."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(json.dumps(question).encode())
        given.seek(0)
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=root(),
            env=_environment(),
            process_group=0,
        )
        try:
            late = _wait(process, should_stop, limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        last = (output.read().decode(errors="replace").strip().splitlines() or [""])[-1][:300]
    if late:
        return f"the prediction was not there after {limit_s:g} s"
    if process.returncode < 0:
        return f"the process that predicts was ended by signal {-process.returncode}"
    return f"the process that predicts ended with {process.returncode}: {last}" if process.returncode else ""


def _wait(process: "subprocess.Popen[bytes]", should_stop: Callable[[], bool], limit_s: float) -> bool:
    """Wait for the end; True when the time ran out. Raises Stopped."""
    until = time.monotonic() + limit_s
    while process.poll() is None:
        if should_stop():
            raise Stopped("stopped while its memory was predicted")
        if time.monotonic() > until:
            return True
        time.sleep(POLL_S)
    return False


def _environment() -> dict[str, str]:
    """One thread, no card, no server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _question(step: "Step[Any, Any]", arguments: Sequence[Any], card: Card) -> dict[str, Any]:
    plain = [a.model_dump(mode="json") if hasattr(a, "model_dump") else a for a in arguments]
    return {
        "step": step.address,
        "arguments": plain,
        "card": card.model_dump(mode="json"),
        "parent": os.getpid(),
    }


def main() -> int:
    """Predict the step of the question; 0 whether it fits or not."""
    question = json.loads(sys.stdin.read())
    die_with_parent(int(question["parent"]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))
    from overnight.step import load_step

    step, card = load_step(question["step"]), Card.model_validate(question["card"])
    arguments = step.from_json(question["arguments"])
    folder = request.folder_of(step, arguments, card)
    with contextlib.suppress(DoesNotFit):
        request.plan_request(
            step, arguments, card, intervals.stored(intervals.predict_here, folder, intervals.version())
        )
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
