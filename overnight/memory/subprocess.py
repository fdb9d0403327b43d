"""A prediction in a process of its own: a trace changes operators of the whole process, and what crashes there costs no step.

`python -m overnight.memory.subprocess` reads {step, arguments, card} from its standard input and leaves in the step's folder what it predicts of
each micro-batch that is looked at (intervals.py), so that it is asked once. Whatever ends it (a fault in a library, the kernel when the
machine's memory runs out, the limit of time) leaves the rest unknown: the step asks for what it declares, and says why.
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
from overnight.memory.request import Ask
from overnight.paths import root
from overnight.processes import die_with_parent

if TYPE_CHECKING:
    from overnight.step import Step

COMMAND = (sys.executable, "-P", "-m", "overnight.memory.subprocess")
LIMIT_S = 240.0  # of a machine that does other things as well; a trace takes 1 to 15 s of one core
POLL_S = 0.05
FIRST_TO_GO = 1000  # when the machine's memory runs out (oom_score_adj)


def ask(
    step: "Step[Any, Any]",
    arguments: Sequence[Any],
    card: Card,
    should_stop: Callable[[], bool],
    limit_s: float = LIMIT_S,
) -> Ask:
    """sizes.ask, with the prediction made elsewhere. Raises DoesNotFit, Stopped."""
    known = intervals.Known(request.folder_of(step, arguments, card), intervals.version())
    with contextlib.suppress(DoesNotFit):
        found = request.ask(step, arguments, card, known)
        if not known.missing:
            return _noted(found, known)
    if known.missing:
        known.missing.clear()
        why = run(_question(step, arguments, card), COMMAND, should_stop, limit_s)
        with contextlib.suppress(DoesNotFit):
            request.ask(step, arguments, card, known)
        if known.missing:
            known.give_up(why or "nothing was said of it")
    return _noted(request.ask(step, arguments, card, known), known)


def _noted(found: Ask, known: intervals.Known) -> Ask:
    """With the reason, where nothing is predicted of what it asks for."""
    told = known.unknown and found.predicted is None
    return replace(found, note=f"its memory is not predicted: {known.unknown}") if told else found


def run(
    question: Mapping[str, Any], command: Sequence[str], should_stop: Callable[[], bool], limit_s: float
) -> str:
    """Have a process answer; why it did not, or nothing. Raises Stopped."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(json.dumps(question).encode())
        given.seek(0)
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=root(),
            env=_environment(),
            process_group=0,
        )
        try:
            late = _waited(process, should_stop, limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        last = (said.read().decode(errors="replace").strip().splitlines() or [""])[-1][:300]
    if late:
        return f"the prediction was not there after {limit_s:g} s"
    if process.returncode < 0:
        return f"the process that predicts was ended by signal {-process.returncode}"
    return f"the process that predicts ended with {process.returncode}: {last}" if process.returncode else ""


def _waited(process: "subprocess.Popen[bytes]", should_stop: Callable[[], bool], limit_s: float) -> bool:
    """Whether the time ran out. Raises Stopped."""
    until = time.monotonic() + limit_s
    while process.poll() is None:
        if should_stop():
            raise Stopped("stopped while its memory was predicted")
        if time.monotonic() > until:
            return True
        time.sleep(POLL_S)
    return False


def _environment() -> dict[str, str]:
    """One thread, no card, and nothing that would make it talk to a server."""
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
    """Predict what the question asks for; 0 whatever fits or not."""
    question = json.loads(sys.stdin.read())
    die_with_parent(int(question["parent"]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))
    from overnight.step import load_step

    step, card = load_step(question["step"]), Card.model_validate(question["card"])
    arguments = step.from_json(question["arguments"])
    folder = request.folder_of(step, arguments, card)
    with contextlib.suppress(DoesNotFit):
        request.ask(
            step, arguments, card, intervals.remembered(intervals.tracing, folder, intervals.version())
        )
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
