"""A small chat model asked on this machine, and large ones refused; bench/language.py prints it."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from bench._rows import bar, folder
from overnight import RecordingRun
from overnight.cli.main import main
from overnight.data.pretrained import load_entry
from overnight.memory.architectures.weights import weight_bytes
from tasks.llm import ask_memory, asking
from tasks.llm.ask import ModelParams, ask_model
from tasks.llm.endpoint import QuestionParams
from tasks.llm.gguf import as_transformers

PROMPTS = (
    "What is the capital of France?",
    "Hi",
    "Name three uses of a graphics card besides games.",
    "Write one sentence about the sea, in plain words, for a child of six years.",
)
TOKENS, OFF = 12, 0.05
FITS = {  # arguments of `overnight fit` -> exit code on a card of 12 GB
    "ask_7b": 0,
    "ask_13b": 0,
    "ask_13b model.quant=fp16": 3,
    "ask_13b weights=llama_70b": 3,
}


def ask_rows() -> dict[str, Any]:
    weights = load_entry("smollm2_135m")
    together, rates = _answers(len(PROMPTS))
    alone, _ = _answers(1)
    other = sum(one != two for one, two in zip(together, alone, strict=True))
    found: dict[str, Any] = {"rates": rates, "answers": together, "bytes_off": {}}
    met = [
        bar(f"ask: {len(PROMPTS)} answers of a batch that differ from those alone", other, "0", other == 0)
    ]
    shape = ask_memory.shape_of(weights)
    for quant in ("fp32", "bf16", "int8", "nf4"):
        held = asking.held_bytes(asking.loaded(as_transformers(weights), quant, torch.device("cpu")))
        found["bytes_off"][quant] = weight_bytes(shape, quant) / held - 1
    worst = max(map(abs, found["bytes_off"].values()))
    met.append(
        bar("ask: bytes of the weights by the formula, worst", f"{worst:.2%}", f"<= {OFF:.0%}", worst <= OFF)
    )
    codes = {config: _fit(config) for config in FITS}
    said = ", ".join(f"{config}: {code}" for config, code in codes.items())
    met.append(bar("ask: verdicts without weights, 12 GB", said, "0, 0, 3, 3", codes == FITS))
    return {**found, "codes": codes, "met": met}


def _answers(parallel: int) -> tuple[list[str], dict[str, float]]:
    place = folder()
    run, asked = RecordingRun(place), QuestionParams(prompts=PROMPTS, tokens=TOKENS, parallel=parallel)
    made = ask_model.body(run, ModelParams(quant="fp32", context=256), asked, load_entry("smollm2_135m"))
    lines = Path(made.path / "answers.jsonl").read_text().splitlines()
    shutil.rmtree(place)
    rates = {name: run.last(name) for name in ("prompt_tokens_per_s", "answer_tokens_per_s")}
    return [json.loads(line)["answer"] for line in lines], rates


def _fit(config: str) -> int:
    with contextlib.redirect_stdout(io.StringIO()):
        return int(main(["fit", *config.split(), "--card", "12"]))
