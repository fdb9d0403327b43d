"""A step in a real child, killed with signal 9 at a given moment of its training and started again under the same key."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.artifact import Artifact, digest
from overnight.child import Spec
from overnight.gpu.device import Card
from tasks.cnn import CnnParams

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


@dataclass
class Whole:
    """What a training gives that nobody disturbs."""

    weights: str
    losses: list[tuple[int, float]]
    trained_s: float


def start(folder: Path, images: Artifact, params: CnnParams) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True)
    card = Card(uuid="virtual", name="virtual", total_mib=1024, budget_mib=1024)
    spec = Spec(
        step="tasks.cnn:train_cnn",
        label=folder.parent.name,
        experiment="bench",
        arguments=[params.model_dump(mode="json"), images.model_dump(mode="json")],
        seed=7,
        key=f"bench-{folder.parent.name}",
        parent=os.getpid(),
        card=card,
        ask_mib=0,
        mlflow_run=f"bench-{folder.parent.name}",
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    state = folder.parent / "root"
    state.mkdir(exist_ok=True)
    environment = {**os.environ, "OVERNIGHT_ROOT": str(state), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, "-P", "-m", "overnight.child", str(folder)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def events(folder: Path) -> list[Row]:
    """The whole lines of a spool, but for those of the monitor."""
    path = folder / "events.jsonl"
    lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(found: list[Row]) -> list[tuple[int, float]]:
    return [(e["step"], e["values"]["train/loss"]) for e in found if e["event"] == "metrics" and "train/loss" in e["values"]]


def undisturbed(folder: Path, images: Artifact, params: CnnParams) -> Whole:
    code = start(folder / "0", images, params).wait()
    if code:
        raise SystemExit((folder / "0" / "log.txt").read_text())
    found = events(folder / "0")
    times = [e["at"] for e in found if e["event"] == "progress"]
    return Whole(weights(folder / "0"), losses(found), times[-1] - times[0])


def weights(folder: Path) -> str:
    return digest(folder / "out" / "model")


def killed(folder: Path, images: Artifact, params: CnnParams, after_s: float) -> bool:
    """Whether the signal came before the end."""
    child = start(folder, images, params)
    while not losses(events(folder)) and child.poll() is None:
        time.sleep(0.02)
    until = time.monotonic() + after_s
    while time.monotonic() < until and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


def kill_and_resume(folder: Path, images: Artifact, params: CnnParams, whole: Whole, after_s: float) -> Row:
    """One kill, `after_s` seconds of training after the first optimiser step; earlier when it had come to its end before."""
    shutil.rmtree(folder, ignore_errors=True)
    if not killed(folder / "0", images, params, after_s):
        return kill_and_resume(folder, images, params, whole, after_s / 2)
    code = start(folder / "1", images, params).wait()
    before, again = events(folder / "0"), events(folder / "1")
    notes = [e["text"] for e in again if e["event"] == "note" and e["text"].startswith("goes on after optimiser step")]
    step = int(notes[0].split()[5]) if notes else 0
    done = losses(before)
    began = next(e["at"] for e in before if e["event"] == "metrics" and "train/loss" in e["values"])
    kept = [e["at"] for e in before if e["event"] == "metrics" and "train/loss" in e["values"] and e["step"] <= step]
    last = max(e["at"] for e in before)
    return {
        "killed_after_s": round(after_s, 2),
        "code": code,
        "at_step": done[-1][0] if done else 0,
        "resumed_at": step,
        "lost_s": round(last - (kept[-1] if kept else began), 2),
        "weights_equal": code == 0 and weights(folder / "1") == whole.weights,
        "losses_equal": done + losses(again) == whole.losses,
    }
