"""Six trainings on a card of 12 GB: `python -m bench._fit_gpu predict`, and `... run CASE MICRO` measures.

The predictions lie in tests/gpu/fit_predicted.json, made before any of these ran. The allocator's cap is 12
GiB less a context, whatever the size of the card that plays it. Needs torch and what overnight.training.loop
needs; neither Prefect nor MLflow nor Polars.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench._fit_recipes import LmParams, NetParams, atari_recipe, boxes, graph, images, lm_recipe
from bench._measure import shortened, whole_batch
from overnight.errors import OvernightError
from overnight.memory.prediction import Constants, predict
from overnight.run import RecordingRun
from overnight.training.batches import Batch
from overnight.training.loop import train
from overnight.training.recipe import Recipe

MIB, CONTEXT_MIB = 2**20, 600
CAP_MIB = 12 * 1024 - CONTEXT_MIB
PREDICTED = Path(__file__).resolve().parent.parent / "tests" / "on_card" / "fit_predicted.json"
LM = {"vocabulary": 32_768, "context": 1024, "width": 768, "heads": 12, "layers": 12}
Make = Callable[[int], Recipe[Any]]
CASES: dict[
    str, tuple[Make, tuple[int, int]]
] = {  # name -> recipe of a batch, and two micro-batches: one that fits, one that does not
    "resnet18 224 px": (lambda n: images((3, 224, 224), arch="resnet18", batch=n), (512, 1536)),
    "resnet20 w64 32 px": (lambda n: images((3, 32, 32), channels=64, blocks=2, batch=n), (4096, 12288)),
    "yolo 640 px": (lambda n: boxes(640, width_multiplier=1.0, batch=n), (64, 160)),
    "gcn 1 M edges": (
        lambda h: graph(200_000, 1_000_000, 128, hidden=h),
        (2048, 8192),
    ),  # of hidden values: a graph is not cut
    "transformer 12x768": (lambda n: lm_recipe(LmParams(batch=n, **LM)), (10, 40)),
    "dqn nets": (lambda n: atari_recipe(NetParams(batch=n)), (24_576, 65_536)),
}


def recipe_of(case: str, number: int) -> tuple[Recipe[Any], int]:
    """The recipe, and the micro-batch to train it with."""
    recipe = CASES[case][0](number)
    return recipe, 5000 if case.startswith("gcn") else number


def write() -> None:
    """Predict every case; MiB of the allocator, without the context."""
    found = dict[str, dict[str, Any]]()
    for case, (_, numbers) in CASES.items():
        for number in numbers:
            recipe, micro = recipe_of(case, number)
            one = predict(recipe, micro, "cuda", constants=Constants(context_mib=0.0))
            assert not one.unknown, (case, one.unknown)
            verdict = one.verdict(CAP_MIB)
            found[f"{case} | {number}"] = {
                "mib": round(one.mib),
                "high_mib": round(one.high_mib),
                "needed_mib": round(one.needed_mib),
                "verdict": verdict,
            }
            print(case, number, found[f"{case} | {number}"], flush=True)
    PREDICTED.write_text(json.dumps(found, indent=1) + "\n")


def run(case: str, number: int) -> dict[str, Any]:
    """Train two short epochs under the cap; MiB by torch and by the driver, and whether memory ran out."""
    before = _device_mib()
    torch.zeros(1, device="cuda")
    context = _device_mib() - before - torch.cuda.memory_reserved() / MIB
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CAP_MIB * MIB / total)
    recipe, micro = recipe_of(case, number)
    made: list[Batch] = [whole_batch(recipe, micro)]
    with tempfile.TemporaryDirectory() as folder:
        recorded = RecordingRun(Path(folder), device="cuda", budget_mib=CAP_MIB)
        error = ""
        try:
            train(
                shortened(recipe, micro, made),
                recorded,
                recipe.eval_example() if recipe.eval_example else None,
            )
        except (OvernightError, RuntimeError) as problem:  # what ends it is what is measured
            error = f"{type(problem).__name__}: {problem}"[:300]
    reserved, live = torch.cuda.max_memory_reserved() / MIB, torch.cuda.max_memory_allocated() / MIB
    return {
        "reserved_mib": reserved,
        "live_mib": live,
        "device_mib": _device_mib() - before,
        "context_mib": context,
        "out_of_memory": recorded.out_of_memory,
        "error": error,
        "card": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
    }


def _device_mib() -> float:
    """What the whole card holds, by the driver."""
    import pynvml

    pynvml.nvmlInit()
    return float(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used) / MIB


if __name__ == "__main__":
    if sys.argv[1] == "predict":
        torch.set_num_threads(1)
        write()
    else:
        print(json.dumps(run(sys.argv[2], int(sys.argv[3]))))
