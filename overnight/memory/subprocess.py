"""Predict in a process of its own: a trace changes operators of the whole process, and a crash costs no step.

`python -m overnight.memory.subprocess` reads {step, arguments, card} from its standard input and stores a
prediction for each micro-batch that the planner looks at in the card's history. What it leaves out when it
ends early is unknown: the step requests what it declares, and logs why.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.errors import FAILURES, DoesNotFit, OvernightError, Stopped, one_line
from overnight.gpu.card import Card
from overnight.gpu.memory_limit import expands
from overnight.memory import history, request
from overnight.memory.prediction import Constants, MemoryEstimate, predict
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
    """request.plan_request, with predictions made in a process of their own. Raises DoesNotFit, Stopped."""
    if _missing(step, arguments, card):
        question = {
            "step": step.address,
            "arguments": [a.model_dump(mode="json") if hasattr(a, "model_dump") else a for a in arguments],
            "card": card.model_dump(mode="json"),
            "parent": os.getpid(),
        }
        why = run(question, COMMAND, should_stop, limit_s)
        for micro_batch in _missing(step, arguments, card):
            unknown = MemoryEstimate(micro_batch=micro_batch, unknown=why or "the process made no prediction")
            history.add_prediction(card, history.step_key(step, arguments), unknown)
    return request.plan_request(step, arguments, card)


def _missing(step: "Step[Any, Any]", arguments: Sequence[Any], card: Card) -> list[int]:
    found = list[int]()
    with contextlib.suppress(DoesNotFit):
        request.plan_request(step, arguments, card, found.append)
    return found


def run(
    question: Mapping[str, Any], command: Sequence[str], should_stop: Callable[[], bool], limit_s: float
) -> str:
    """Why the command failed with the question as its input, or nothing. Raises Stopped."""
    until = time.monotonic() + limit_s
    given: bytes | None = json.dumps(question).encode()
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    output = None
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, **pipes, cwd=root(), env=environment, process_group=0) as process:
        try:
            while output is None:
                if should_stop():
                    raise Stopped("stopped while its memory was predicted")
                if time.monotonic() > until:
                    return f"the prediction was not there after {limit_s:g} s"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(given, timeout=POLL_S)
                given = None  # it is taken once
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode < 0:
        return f"the process that predicts was ended by signal {-process.returncode}"
    last = (output.decode(errors="replace").strip().splitlines() or [""])[-1][:300]
    return f"the process that predicts ended with {process.returncode}: {last}" if process.returncode else ""


def main() -> int:
    question = json.loads(sys.stdin.read())
    die_with_parent(int(question["parent"]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))
    from overnight.step import load_step

    step, card = load_step(question["step"]), Card.model_validate(question["card"])
    arguments = step.from_json(question["arguments"])
    key = history.step_key(step, arguments)

    def predict_once(micro_batch: int) -> MemoryEstimate:
        found = _predicted(step, arguments, card, micro_batch)
        history.add_prediction(card, key, found)
        return found

    with contextlib.suppress(DoesNotFit):
        request.plan_request(step, arguments, card, predict_once)
    return 0


def _predicted(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, micro_batch: int
) -> MemoryEstimate:
    assert step.recipe is not None
    try:
        recipe: Any = step.recipe(arguments[0], request.spec_of(arguments))
    except (OvernightError, ArithmeticError, *FAILURES) as error:  # the step itself will report it
        return MemoryEstimate(micro_batch, unknown=f"its recipe cannot be built: {one_line(error)}")
    constants = Constants(context_mib=0.0, expandable=expands(card))
    found = predict(recipe, micro_batch, "cpu" if card.virtual else "cuda", constants=constants)
    return replace(found, whole=not splittable(recipe))


def splittable(recipe: Any) -> bool:
    import torch

    with contextlib.suppress(KeyError):  # it splits by more than the number of samples
        return len(list(recipe.micro_batches({"samples": torch.empty(2, 1)}, 1))) > 1
    return True


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
