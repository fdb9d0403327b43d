"""How a tuned model is merged, written and compared; merge.py has the step."""

import math
import os
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor, nn

from overnight.artifact import Artifact
from overnight.errors import DataError, OvernightError
from overnight.files import read_json
from overnight.run import Run
from tasks.llm import gguf_export
from tasks.llm.chat_tokens import Format
from tasks.llm.gguf import as_transformers
from tasks.llm.modelfile import CHAT, modelfile, pieces
from tasks.llm.server import Served, llama_cpp
from tasks.llm.tune_params import MergeParams
from tasks.llm.tuned import Tuned
from tasks.llm.tuning import by_chat

CPU = torch.device("cpu")
DTYPES = {"float32": "fp32", "float16": "fp16"}  # else bf16
WORSE = 1.01  # times the adapter's loss; more is refused
REFUSED = {"f16": 0.1, "q8_0": 1.0}  # nats of drift; beyond, something is computed otherwise
POSITIONS = 4  # of an answer, at which the next token is asked for
LIKELY = 0.05  # probability of the tokens that are compared
SHOWN = 20  # of the most probable tokens that llama.cpp names
ROOM = 64  # tokens of a conversation beside those of a chat


@dataclass(frozen=True)
class Question:
    """ids: tokens so far; likely: log probabilities of the likely next ones, at least of the most probable.

    first: nothing of the answer is given yet.
    """

    ids: list[int]
    likely: dict[int, float]
    first: bool


def merge(run: Run, params: MergeParams, model: Artifact, chats: Artifact) -> Artifact:
    tuned = Tuned.read(model.path)
    tuned.check(chats)
    base, form = tuned.params.base, tuned.form()
    config = read_json(as_transformers(base) / "config.json")
    if params.formats:
        gguf_export.check(config)
    data = _chosen(chats, params.chats)
    merged = _merged(run, tuned, config, data)
    work = run.folder / "merged"
    shutil.rmtree(work, ignore_errors=True)
    merged.save_pretrained(work / "transformers")
    form.tokenizer.save_pretrained(work / "transformers")
    weights, asked = dict(merged.named_parameters()), _questions(merged, data)
    for number, kind in enumerate(params.formats, 1):
        run.progress(number, len(params.formats) + 1, f"GGUF {kind}")
        file = work / f"{base.name}-{kind}.gguf"
        tokenizer = base.locate() if base.form == "gguf" else None
        gguf_export.write(file, kind, work / "transformers", weights, tokenizer, list(form.ends))
        _compare(run, kind, file, form, asked)
    if params.formats:
        _modelfile(run, work, form, f"{base.name}-{params.formats[-1]}.gguf")
    files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
    meta = {"base": base.name, "base_digest": tuned.digest, "ends": list(form.ends)}
    return run.save(
        "merged", chats.spec, None, meta, {name: partial(shutil.move, work / name) for name in files}
    )


def _modelfile(run: Run, work: Path, form: Format, gguf: str) -> None:
    (work / "Modelfile").write_text(modelfile(form, gguf), encoding="utf-8")
    if pieces(form) is None:
        run.note("the Modelfile has no TEMPLATE: the model's own cannot be written in Ollama's language")


def _chosen(chats: Artifact, count: int) -> dict[str, Tensor]:
    """The first chats of val, else of train, as the split "val"."""
    arrays = {name: torch.from_numpy(array) for name, array in chats.arrays().items()}
    split = "val" if len(arrays["val_lengths"]) else "train"
    lengths = arrays[f"{split}_lengths"][:count]
    total = int(lengths.sum())
    parts = {name: arrays[f"{split}_{name}"][:total] for name in ("tokens", "answers")}
    return {"val_lengths": lengths, **{f"val_{name}": part for name, part in parts.items()}}


def _merged(run: Run, tuned: Tuned, config: dict[str, Any], data: dict[str, Tensor]) -> Any:
    """Raises OvernightError where merging changes the loss."""
    precision = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "bf16")
    if tuned.params.method == "qlora":
        run.metric("as_tuned/loss", _loss(tuned.model(CPU, "fp32"), data))
    model = tuned.model(CPU, precision, bits="").eval()
    before = _loss(model, data)
    merged = model if tuned.params.method == "full" else model.merge_and_unload()
    after = _loss(merged, data)
    run.metrics({"adapter/loss": before, "merged/loss": after})
    if not after <= WORSE * before + 1e-4:
        raise OvernightError(
            f"merged into the base in {precision} the loss is {after:.4f}, with the adapter beside it "
            f"{before:.4f}: more than 1 % worse; take a base of more bits"
        )
    return merged


@torch.inference_mode()
def _loss(model: nn.Module, data: dict[str, Tensor]) -> float:
    nats, tokens = by_chat(model.eval(), data, "val").sum(0).tolist()
    return float(nats / tokens)


@torch.inference_mode()
def _questions(merged: Any, data: dict[str, Tensor]) -> list[Question]:
    """At the first tokens of each answer; in float32 where the host has room."""
    room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    model = merged.float() if 4 * sum(p.numel() for p in merged.parameters()) < room / 2 else merged
    lengths = data["val_lengths"].tolist()
    tokens, answers = (torch.split(data[f"val_{name}"], lengths) for name in ("tokens", "answers"))
    found = list[Question]()
    for ids, marks in zip(tokens, answers, strict=True):
        begin = int(marks.int().argmax())
        logits: Tensor = model(input_ids=ids[None].long()).logits[0].float().log_softmax(-1)
        for at in islice((i for i in range(begin, len(ids)) if marks[i]), POSITIONS):
            top = logits[at - 1].topk(SHOWN // 2)
            likely = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            kept = {token: value for token, value in likely if value >= math.log(LIKELY)}
            kept = kept or {int(top.indices[0]): float(top.values[0])}
            found.append(Question(ids[:at].tolist(), kept, at == begin))
    return found


def _compare(run: Run, kind: str, file: Path, form: Format, asked: list[Question]) -> None:
    """Ask llama.cpp the same. Raises OvernightError where it reads or computes otherwise."""
    context = max(len(question.ids) for question in asked) + ROOM
    with llama_cpp(file, run.folder, context) as served:
        _check_template(served, form, file.name)
        _check_tokens(served, form, file.name, asked)
        drifts = [_drift(served, question) for question in asked]
    at_first = max(one for one, question in zip(drifts, asked, strict=True) if question.first)
    run.metrics({f"drift/{kind}": at_first, f"drift_within/{kind}": max(drifts)})
    run.note(
        f"{file.name}: log probabilities of llama.cpp differ by at most {at_first:.4f} nats for the first "
        f"token of an answer, {max(drifts):.4f} for the first {POSITIONS}"
    )
    if not max(drifts) <= REFUSED[kind]:
        raise OvernightError(
            f"{file.name}: llama.cpp gives next tokens other log probabilities, by up to {max(drifts):.3f} "
            f"nats ({REFUSED[kind]:g} are allowed): it computes this model otherwise; nothing is handed on"
        )


def _drift(served: Served, question: Question) -> float:
    body = {"prompt": question.ids, "n_predict": 1, "n_probs": SHOWN, "temperature": 0, "cache_prompt": True}
    answer = _post(served, "completion", body)
    top = answer["completion_probabilities"][0]["top_logprobs"]
    found = {int(one["id"]): float(one["logprob"]) for one in top}
    return max(abs(found.get(one, -math.inf) - value) for one, value in question.likely.items())


def _check_tokens(served: Served, form: Format, name: str, asked: list[Question]) -> None:
    """Raises OvernightError where llama.cpp cuts the texts of the chats otherwise than the tokenizer."""
    texts = [form.tokenizer.decode(question.ids) for question in asked if question.first]
    for text in texts:
        body = {"content": text, "add_special": False, "parse_special": True}
        if _post(served, "tokenize", body)["tokens"] != form.encoded(text):
            raise OvernightError(
                f"{name}: llama.cpp makes other tokens of {text[-80:]!r} than the tokenizer; nothing is "
                "handed on"
            )


def _check_template(served: Served, form: Format, name: str) -> None:
    """Raises OvernightError."""
    chat = _accepted(form)
    ours = form.text(chat, asks=True)
    theirs = _post(served, "apply-template", {"messages": chat})["prompt"]
    body = {"content": ours, "add_special": False, "parse_special": True}
    tokens = _post(served, "tokenize", body)["tokens"]
    if theirs != ours or tokens != form.encoded(ours):
        what = "another prompt" if theirs != ours else "other tokens"
        raise OvernightError(
            f"{name}: llama.cpp makes {what} of the same chat; nothing is handed on. It has {theirs!r}, "
            f"the tokenizer {ours!r}"
        )


def _accepted(form: Format) -> list[dict[str, str]]:
    """Some templates refuse a system message."""
    try:
        form.text(CHAT, asks=True)
    except DataError:
        return CHAT[1:]
    return CHAT


def _post(served: Served, path: str, body: dict[str, Any]) -> Any:
    url = f"{served.url.removesuffix('/v1')}/{path}"
    headers = {"Authorization": f"Bearer {served.key}"}
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=600, trust_env=False)
        response.raise_for_status()
        return response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise OvernightError(f"llama.cpp's server does not answer {path}: {error}") from None
