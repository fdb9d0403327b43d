"""A small chat model tuned on made-up facts, killed, merged and asked as a GGUF; bench/language.py prints it.

`python -m bench._language_tune FOLDER STEP` is a training that kills itself in that optimizer step.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench._rows import bar, folder
from flows.merge import Merge
from overnight import Artifact, RecordingRun, paths
from overnight.data.dataset import load_entry
from overnight.data.pretrained import load_entry as load_weights
from tasks.llm import base as bases
from tasks.llm.chats import load_chats
from tasks.llm.client import Client, Sampling
from tasks.llm.gguf import as_transformers
from tasks.llm.merge import merge_llm
from tasks.llm.server import llama_cpp
from tasks.llm.tune import tune_llm

LOSS_BAR, CPU_BAR = 0.5, 300.0  # nats a token of the answers; CPU-s of the step
KILLS, TOKENS = 10, 512
WORSE = {"int8": 0.03, "nf4": 0.10}  # nats above fp32
DRIFT = {"f16": 0.01, "q8_0": 0.3}  # nats, of the next token of 20 prompts
RIGHT = 18  # of 20 facts
ROOM = 64 << 10  # bytes of a checkpoint beside its tensors


def tune_rows() -> dict[str, Any]:
    """Of configs/chat_merged.yaml: tune, merge, ask."""
    config = Merge.load(paths.configs() / "chat_merged.yaml")
    place = folder()
    chats = load_chats.body(_run(place / "chats"), config.chats, config.data, config.tune.base)
    run, began = _run(place / "tune"), time.process_time()
    model = tune_llm.body(run, config.tune, chats)
    cpu_s, loss = time.process_time() - began, run.last("after/loss")
    met = [
        bar("tune: QLoRA, 20 facts in other words, nats", f"{loss:.3f}", f"<= {LOSS_BAR}", loss <= LOSS_BAR),
        bar("tune: CPU-s of the step", f"{cpu_s:.0f}", f"<= {CPU_BAR:.0f}", cpu_s <= CPU_BAR),
    ]
    found = {"cpu_s": cpu_s, "loss": loss, "before": run.last("before/loss"), "test": run.last("test/loss")}
    merging = _run(place / "merge")
    merged = merge_llm.body(merging, config.merge, model, chats)
    names = ("as_tuned/loss", "adapter/loss", "merged/loss", *(f"drift/{kind}" for kind in DRIFT))
    found |= {name: merging.last(name) for name in (*names, *(f"drift_within/{kind}" for kind in DRIFT))}
    for kind, most in DRIFT.items():
        drift = found[f"drift/{kind}"]
        met.append(
            bar(f"merge: GGUF {kind}, nats of 20 prompts", f"{drift:.4f}", f"<= {most}", drift <= most)
        )
    worse = found["merged/loss"] / found["adapter/loss"] - 1
    met.append(bar("merge: loss above the adapter's", f"{worse:+.2%}", "<= 1 %", worse <= 0.01))
    for kind in DRIFT:
        found[f"right/{kind}"] = right = _right(config, merged, kind, place)
        met.append(bar(f"merge: facts over HTTP, {kind}", f"{right} of 20", f">= {RIGHT}", right >= RIGHT))
    shutil.rmtree(place)
    return {"tune": found, "met": met}


def _run(place: Path) -> RecordingRun:
    place.mkdir(parents=True)
    return RecordingRun(place)


def _right(config: Merge, merged: Artifact, kind: str, place: Path) -> int:
    """Questions of train that llama.cpp's server answers with the very words of the fact."""
    content = config.data.load()
    asked = list(content.splits["train"])[:20]  # type: ignore[union-attr]
    right = 0
    file = next(merged.path.glob(f"*{kind}.gguf"))
    with llama_cpp(file, place, 256, name="facts") as served, Client(served.url, served.key) as client:
        client.wait_until_ready(60)
        for chat in asked:
            (_, question), (_, fact) = chat
            prompt = [{"role": "user", "content": question}]
            right += client.chat("facts", prompt, Sampling(tokens=32)).text.strip() == fact
    return right


# ------------------------------------------------------------------------------------------------ killed


class Suicidal(RecordingRun):
    """Ends its process, as a power cut does, when the loss of a step is logged."""

    at = 0

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        if "train/loss" in values and step >= self.at > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().metrics(values, step)


def kill_rows(kills: int = KILLS) -> dict[str, Any]:
    """Of 20 steps; the killed training goes on from where it was killed each time."""
    place = folder()
    steps = sorted(random.Random(0).sample(range(2, 20), kills))
    whole = _trained(place / "whole", 0)
    for step in steps:
        code = _child(place / "killed", step)
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the training that was to kill itself in step {step} ended with {code}")
    files = list((place / "killed" / "checkpoints").rglob("*.pt"))
    largest = max(file.stat().st_size for file in files)
    resumed = _trained(place / "killed", 0)
    ours, theirs = (load_file(model.path / "weights.safetensors") for model in (resumed, whole))
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    adapter = sum(tensor.nbytes for tensor in ours.values())
    most = 3 * 3 * adapter + ROOM  # of the adapter and its two moments
    met = [
        bar(f"killed at {len(steps)} random steps", "bit-equal" if equal else "differs", "bit-equal", equal),
        bar(
            "checkpoint, of adapter and moments", f"{largest / 3 / adapter:.2f} x", "<= 3 x", largest <= most
        ),
    ]
    shutil.rmtree(place)
    return {"kills": {"steps": steps, "checkpoint": largest, "adapter": adapter}, "met": met}


def _child(place: Path, step: int) -> int:
    command = [sys.executable, "-m", "bench._language_tune", str(place), str(step)]
    return subprocess.run(command, check=False, capture_output=True).returncode


def _trained(place: Path, step: int) -> Artifact:
    config = Merge.load(paths.configs() / "chat_merged.yaml")
    values = {"epochs": 2, "batch": 4, "prompts": 0, "rank": 8, "checkpoint_s": 0.0}
    params = config.tune.model_copy(update=values)
    shutil.rmtree(place / "run", ignore_errors=True)
    chats = load_chats.body(_run(place / "run"), config.chats, config.data, params.base)
    run = Suicidal(place / "run")
    run.at, run.checkpoints = step, place / "checkpoints"
    return tune_llm.body(run, params, chats)


# ------------------------------------------------------------------------------------------------ bits


@torch.inference_mode()
def bits_rows() -> dict[str, Any]:
    """Of SmolLM2, on the first tokens of tiny shakespeare."""
    base = load_weights("smollm2_135m")
    text = load_entry("tinyshakespeare").load().splits["train"][0][0][:4000]  # type: ignore[union-attr]
    ids = torch.tensor([bases.tokenizer_of(base)(text)["input_ids"][:TOKENS]])
    place, cpu = as_transformers(base), torch.device("cpu")
    losses = {
        bits or "fp32": float(bases.load(place, torch.float32, cpu, bits).eval()(ids, labels=ids).loss)
        for bits in ("", *WORSE)
    }
    met = []
    for bits, most in WORSE.items():
        more = losses[bits] - losses["fp32"]
        met.append(
            bar(f"{bits} above fp32, nats of {TOKENS} tokens", f"{more:+.3f}", f"<= {most}", more <= most)
        )
    return {"bits": losses, "met": met}


if __name__ == "__main__":
    _trained(Path(sys.argv[1]), int(sys.argv[2]))
