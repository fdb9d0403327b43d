"""`python -m bench.golden [--write] [--part PART]`: what refactoring must not change.

It compares with bench/golden.json, in one thread on the CPU, prints each difference, and then exits with 1.
losses: trainings of four recipes, each with and without injected out of memory;
predictions: what `overnight fit` says for a card of 12 GB;
demo: every score that `overnight run configs/demo.yaml` leaves in MLflow.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench._baselines import Injector, faulty, images, plain_net, tensors
from bench._rows import folder
from overnight.artifact import Artifact
from overnight.data.dataset import load_entry
from overnight.orchestration.checks import load
from overnight.paths import root
from overnight.run import RecordingRun
from overnight.training.loop import train
from overnight.training.recipe import Recipe
from tasks.detection.scenes import compose_scenes
from tasks.detection.yolo import yolo_recipe
from tasks.graphs.load import GraphParams, load_graph
from tasks.graphs.nodes import GnnParams, gnn_recipe
from tasks.graphs.tensors import GraphTensors
from tasks.vision.cnn import CnnParams, cnn_recipe
from tasks.vision.load import ImageParams, load_images

GOLDEN = Path(__file__).with_name("golden.json")
CONFIGS = (
    "vision",
    "detect",
    "graph",
    "etl",
    "agent",
    "cifar10",
    "bccd",
    "facebook",
    "cora",
    "fashion_speedrun",
    "cifar10_resnet18",
)
MODELS = (
    ("llama-2-7b", "--method", "infer", "--quant", "nf4"),
    ("llama-2-7b", "--method", "infer", "--quant", "fp16"),
    ("llama-2-7b", "--method", "qlora", "--sequence", "1024"),
    ("llama-2-13b", "--method", "infer", "--quant", "q4_k_m"),
    ("sd-1.5",),
    ("sdxl",),
)
FIGURES = (
    "step",
    "verdict",
    "mib",
    "low_mib",
    "high_mib",
    "lease_mib",
    "micro_batch",
    "largest_micro_batch",
    "parts",
    "peak",
)
FAULTS = {"forward": {2, 30}, "backward": {5}, "optimizer": {8}, "evaluation": {2}}
TIMED = ("samples_per_s", "tflops", "system/", "steps_per_s", "frames_per_s", "_s", "fps")


def curves(make: Callable[[], Recipe[Any]], data: Any, faults: bool) -> dict[str, list[float]]:
    """What a training logs of loss and of val, by name."""
    inject = Injector()
    inject.at = {phase: set(calls) for phase, calls in FAULTS.items()} if faults else {}
    run = RecordingRun(folder(), seed=3)
    torch.manual_seed(3)
    train(faulty(make(), inject), run, data)
    if faults and not inject.raised:
        raise RuntimeError("no fault was raised")
    names = ("train/loss", "train/lr", "val/accuracy", "val/loss", "val/map50")
    return {name: run.curve(name) for name in names if run.curve(name)}


def losses() -> dict[str, Any]:
    """Every recipe on embedded data."""
    digits, place = images("digits"), folder()
    small, plain = (
        CnnParams(epochs=2, batch=64, channels=8, blocks=1, lr=0.05),
        CnnParams(epochs=2, batch=64, lr=0.05, label_smoothing=0.0),
    )
    detect: Any = load(
        root() / "configs/detect.yaml",
        ["compose.train=64", "compose.val=16", "compose.test=16", "yolo.epochs=2"],
    )[1]
    pictures = load_images.body(RecordingRun(place / "a", seed=3), ImageParams(), load_entry("digits"))
    boxes: Artifact = compose_scenes.body(RecordingRun(place / "b", seed=3), detect.compose, pictures)
    karate = load_graph.body(RecordingRun(place / "c", seed=3), GraphParams(), load_entry("karate"))
    nodes = GnnParams(epochs=20)
    cases: dict[str, tuple[Callable[[], Recipe[Any]], Any]] = {
        "plain fp64": (lambda: plain_net(digits, plain, torch.float64), tensors(digits, 640)),
        "cnn": (lambda: cnn_recipe(small, digits.spec), tensors(digits, 640)),
        "yolo": (lambda: yolo_recipe(detect.yolo, boxes.spec), boxes.arrays()),
        "gnn": (
            lambda: gnn_recipe(nodes, karate.spec),
            GraphTensors(karate.arrays(), karate.spec, nodes.conv, "cpu"),
        ),
    }
    found = {f"{name}": curves(make, data, False) for name, (make, data) in cases.items()}
    split = {
        f"{name} with faults": curves(make, data, True)
        for name, (make, data) in cases.items()
        if name != "gnn"
    }
    return found | split


def overnight(*words: str, state: Path) -> str:
    """What the command prints, with nothing learned before."""
    environment = {**os.environ, "OVERNIGHT_CARD_DIR": str(state), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("overnight")), *words]
    done = subprocess.run(command, cwd=root(), env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def predictions() -> dict[str, Any]:
    """By `overnight fit`: of each step of the configs, and of models by name."""
    found, state = dict[str, Any](), folder()
    overnight("run", "configs/graph.yaml", state=folder())  # how many links it makes is known from a run
    for config in CONFIGS:
        steps = json.loads(overnight("fit", config, "--card", "12", "--json", state=state))["steps"]
        found[config] = [{name: step[name] for name in FIGURES} for step in steps]
    for words in MODELS:
        found[" ".join(words)] = json.loads(
            overnight("fit", "--model", *words, "--card", "12", "--json", state=state)
        )
    return found


def demo() -> dict[str, Any]:
    """Every metric of the demo's steps in MLflow that does not depend on speed: points, first and last."""
    overnight("run", "configs/demo.yaml", state=folder())
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root() / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    runs = list(
        client.search_runs(
            [experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=50
        )
    )
    whole = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    found = dict[str, Any]()
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id:
            names = sorted(name for name in run.data.metrics if not any(word in name for word in TIMED))
            points = {name: client.get_metric_history(run.info.run_id, name) for name in names}
            found[str(run.info.run_name)] = {n: [len(p), p[0].value, p[-1].value] for n, p in points.items()}
    return dict(sorted(found.items()))


def differences(was: Any, now: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, as lines."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [*was, *(name for name in now if name not in was)]
        return [line for name in names for line in differences(was.get(name), now.get(name), f"{at}/{name}")]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [
            line
            for i, (a, b) in enumerate(zip(was, now, strict=True))
            for line in differences(a, b, f"{at}[{i}]")
        ]
    return [] if was == now else [f"{at}: {was!r} -> {now!r}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="keep what is found as the new golden values")
    parser.add_argument(
        "--part", choices=["losses", "predictions", "demo"], action="append", help="only this part"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"losses": losses, "demo": demo, "predictions": predictions}  # shapes of the last run are used
    now = json.loads(json.dumps({name: parts[name]() for name in options.part or parts}))
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if options.write:
        GOLDEN.write_text(json.dumps({**kept, **now}, indent=1) + "\n")
    lines = differences({name: kept.get(name) for name in now}, now)
    if options.write:
        print(f"{len(lines)} values written to bench/golden.json")
        return 0
    print("\n".join(lines) or "equal to bench/golden.json")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
