"""Answers of a model of transformers to prompts in batches, timed by token."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overnight.artifact import Artifact
from overnight.data.pretrained import Pretrained
from overnight.errors import DataError, Stopped
from overnight.files import read_json
from overnight.run import Run
from overnight.training.evaluate import predict_in_batches
from tasks.llm import answers
from tasks.llm.answers import Asked
from tasks.llm.ask_params import ModelParams
from tasks.llm.base import DTYPES, load
from tasks.llm.chat_tokens import Format, format_of
from tasks.llm.client import Answer
from tasks.llm.endpoint import QuestionParams, prompts_of
from tasks.llm.generate import continued, cut
from tasks.llm.gguf import as_transformers
from tasks.llm.prompts import Prompt

MIB = 2**20
SHOWN = 5  # prompts in a message
QUANTISED = ("int8", "nf4")


def answer(run: Run, params: ModelParams, asked: QuestionParams, weights: Pretrained) -> Artifact:
    form, prompts = format_of(weights), prompts_of(asked)
    folder = as_transformers(weights)
    ids = _ids(form, prompts)
    check_lengths(folder, [len(one) for one in ids], params.context, asked.tokens)
    began = time.perf_counter()
    model = loaded(folder, params.quant, torch.device(run.device))
    run.metrics({"load_s": time.perf_counter() - began, "weights_mib": held_bytes(model) / MIB})
    run.param("quant", params.quant)
    torch.manual_seed(run.seed)
    batches = Batches(run, model, form, asked, prompts)
    found = batches.answer(ids)
    run.metrics(batches.rates())
    return answers.save(run, weights.name, found, Counter())


def loaded(folder: Path, quant: str, device: torch.device) -> Any:
    """Int8 and nf4 compute in bf16, or in fp16 on a card without it. Raises DataError."""
    if quant not in QUANTISED:
        return load(folder, DTYPES[quant], device).eval()
    cuda = device.type == "cuda"
    halves = torch.float16 if cuda and not torch.cuda.is_bf16_supported(False) else torch.bfloat16
    return load(folder, halves, device, quant).eval()


def held_bytes(model: nn.Module) -> int:
    """Of all weights, with the scales of few bits, which are no parameters."""
    found = dict[int, int]()
    for tensor in (*model.parameters(), *model.buffers()):
        for one in (tensor, *_scales(tensor)):
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _scales(weight: Any) -> list[Tensor]:
    state = getattr(weight, "quant_state", None)
    states = [one for one in (state, getattr(state, "state2", None)) if one is not None]
    held = [getattr(weight, "SCB", None), *(t for one in states for t in (one.absmax, one.code))]
    return [one for one in held if isinstance(one, Tensor)]


def check_lengths(folder: Path, lengths: Sequence[int], context: int, tokens: int) -> None:
    """Raises DataError with the prompts that leave no room, or a context beyond the model's own."""
    most = read_json(folder / "config.json").get("max_position_embeddings")
    if most and context > most:
        raise DataError(
            f"model.context is {context:,}, the model has {most:,} positions; set it to at most that"
        )
    wrong = [(number, n) for number, n in enumerate(lengths, 1) if n + tokens > context]
    if wrong:
        named = ", ".join(f"prompt {number} ({n:,} tokens)" for number, n in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise DataError(
            f"{named}{more}: with an answer of {tokens:,} tokens longer than model.context, {context:,}; "
            "shorten them, or set ask.tokens lower or model.context higher"
        )


def _ids(form: Format, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Raises DataError that names the prompt."""
    found = list[list[int]]()
    for number, prompt in enumerate(prompts, 1):
        try:
            found.append(form.ids(prompt, asks=True))
        except DataError as error:
            raise DataError(f"prompt {number}: {error}") from None
    return found


class _Clock:
    """When each token of a batch came; a streamer of transformers, whose first tokens are the prompts."""

    def __init__(self, run: Run, done: int, total: int) -> None:
        self.run, self.done, self.total = run, done, total
        self.times = list[float]()

    def put(self, _tokens: Tensor) -> None:
        """Raises Stopped."""
        if self.run.should_stop():
            raise Stopped(f"stopped at {self.done} of {self.total} prompts")
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Batches:
    """Out of memory makes the batches smaller; what is answered is kept in the step's folder meanwhile."""

    def __init__(
        self, run: Run, model: nn.Module, form: Format, asked: QuestionParams, prompts: Sequence[Prompt]
    ) -> None:
        self.run, self.model, self.form, self.asked, self.prompts = run, model, form, asked, prompts
        self.found = dict[int, Asked]()
        self.tokens, self.seconds = [0, 0], [0.0, 0.0]  # of prompts, of answers after their first token
        self.part = run.folder / "answers.jsonl"

    def answer(self, ids: Sequence[list[int]]) -> list[Asked]:
        """In the order of the prompts, which are computed by length."""
        self.part.unlink(missing_ok=True)
        order = torch.tensor(sorted(range(len(ids)), key=lambda i: len(ids[i])))
        device = next(self.model.parameters()).device

        def some(rows: Tensor) -> Tensor:
            chosen = [i for i in rows.tolist() if i not in self.found]
            if chosen:
                self._batch(chosen, [ids[i] for i in chosen], device)
            return rows

        with torch.inference_mode():
            predict_in_batches(some, order, device, self.asked.parallel)
        return [self.found[i] for i in range(len(ids))]

    def rates(self) -> dict[str, float]:
        """Tokens of all prompts of a batch a second."""
        names = ("prompt_tokens_per_s", "answer_tokens_per_s")
        rates = zip(names, self.tokens, self.seconds, strict=True)
        return {name: tokens / seconds for name, tokens, seconds in rates if tokens and seconds}

    def _batch(self, chosen: Sequence[int], ids: Sequence[list[int]], device: torch.device) -> None:
        clock = _Clock(self.run, len(self.found), len(self.prompts))
        ends, tokens = self.form.ends, self.asked.tokens
        began = time.perf_counter()
        rows = continued(self.model, ids, ends, tokens, device, self.asked.temperature, clock)
        times = [at - began for at in clock.times[1:]] or [time.perf_counter() - began]
        with self.part.open("a", encoding="utf-8") as file:
            for i, prompt, row in zip(chosen, ids, rows, strict=True):
                self.found[i] = Asked(self.prompts[i], self._answer(prompt, row, times))
                file.write(self.found[i].line())
        made = [self.found[i].answer.tokens for i in chosen]
        self.tokens[0] += sum(map(len, ids))
        self.tokens[1] += sum(made) - len(made)
        self.seconds[0] += times[0]
        self.seconds[1] += times[-1] - times[0]
        self.run.progress(len(self.found), len(self.prompts), "prompts")

    def _answer(self, prompt: Sequence[int], row: list[int], times: Sequence[float]) -> Answer:
        """Its tokens count the one that ends it."""
        one = cut(row, self.form.ends)
        text = self.form.tokenizer.decode(one.ids, skip_special_tokens=True)
        tokens = len(one.ids) + one.ended
        last = times[min(tokens, len(times)) - 1]
        return Answer(text, one.ended, tokens, len(prompt), times[0], last)
