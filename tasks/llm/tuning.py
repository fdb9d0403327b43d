"""How a language model is tuned, scored and saved; tune.py has the step."""

import itertools
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.artifact import Artifact, DataSpec
from overnight.errors import DataError
from overnight.predictor import Column, Interface
from overnight.run import Run
from overnight.training.acceleration import Precision, to_device
from overnight.training.batches import Batch, Batches
from overnight.training.evaluate import evaluate, predict_in_batches
from overnight.training.loop import TrainResult, train
from overnight.training.recipe import Recipe, Scores, cosine
from tasks.llm import base as bases
from tasks.llm import tune_report
from tasks.llm.generate import generate
from tasks.llm.tune_params import TuneParams
from tasks.llm.tune_report import Questions, Taken

Data = dict[str, Tensor]
IGNORED = -100  # a label that is no answer's token
ROUND = 8  # tokens to which batches are filled up: few shapes for a compiler
CHUNK = 32  # batches among whose chats those of like length are put together
EVAL_TOKENS = 1024  # at once in an evaluation: the scores of each token are as many as the vocabulary
CLIP = 1.0


def recipe(params: TuneParams, spec: DataSpec) -> Recipe[Data]:
    (longest,) = spec.shape

    def example(n: int) -> Batch:
        whole = (n, _rounded(longest))
        return {
            "ids": torch.zeros(whole, dtype=torch.int64),
            "attention": torch.zeros(whole, dtype=torch.bool),
            "labels": torch.zeros(whole, dtype=torch.int64),
        }

    return Recipe(
        build=lambda: bases.outline(params, longest),
        example_batch=example,
        batches=partial(batches, params.batch),
        steps_per_epoch=lambda data: -(-len(data["train_lengths"]) // params.batch),
        loss=loss,
        optimizer=partial(optimizer, params),
        schedule=cosine(params.warmup),
        evaluate=scores,
        params=params,
        monitor="-loss",
        clip=CLIP,
    )


def optimizer(params: TuneParams, model: nn.Module) -> torch.optim.Optimizer:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=params.lr, weight_decay=params.weight_decay)


def batches(size: int, data: Data, generator: torch.Generator) -> Batches:
    """One epoch: chats in a new order, those of like length together; each once."""
    lengths = data["train_lengths"].cpu()
    order = torch.randperm(len(lengths), generator=generator)
    sorted_order = torch.cat([part[lengths[part].argsort()] for part in torch.split(order, CHUNK * size)])
    found = list(torch.split(sorted_order, size))
    shuffled = [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
    make = Gather(data, "train")
    return Batches(shuffled, lambda rows, _generator: make(rows), generator)


class Gather:
    """Batches of the chats of a split, filled up to the longest of each; sizes are chosen on the host."""

    def __init__(self, data: Data, split: str) -> None:
        self.tokens, self.answers = data[f"{split}_tokens"], data[f"{split}_answers"]
        lengths = data[f"{split}_lengths"]
        self.lengths, self.starts = lengths, lengths.cumsum(0) - lengths
        self.host_lengths, answers = lengths.cpu(), self.answers.cpu()
        first = [int(part.int().argmax()) for part in torch.split(answers, self.host_lengths.tolist())]
        self.first_answers = torch.tensor(first, dtype=torch.int64)

    def __call__(self, rows: Tensor) -> Batch:
        """Ids and attention (n, tokens); labels (n, kept): the next token at the last `kept` places."""
        host = rows.cpu()
        width = _rounded(int(self.host_lengths[host].max()))
        kept = _rounded(width - int(self.first_answers[host].min()) + 1, width)
        rows = rows.to(self.lengths.device)
        places = torch.arange(width, device=rows.device)
        lengths, starts = self.lengths[rows, None], self.starts[rows, None]
        attention = places < lengths
        flat = (starts + places).clamp(max=len(self.tokens) - 1)
        ids = torch.where(attention, self.tokens[flat], 0).long()
        labels = torch.where(attention & self.answers[flat], ids, IGNORED)
        following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        return {"ids": ids, "attention": attention, "labels": following[:, width - kept :].contiguous()}


def _rounded(tokens: int, most: int | None = None) -> int:
    found = -(-tokens // ROUND) * ROUND
    return found if most is None else min(found, most)


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """(n, kept) nats of each token of the answers, 0 elsewhere."""
    labels = batch["labels"]
    out: Any = model(
        input_ids=batch["ids"], attention_mask=batch["attention"], logits_to_keep=labels.shape[1]
    )
    logits = out.logits.flatten(0, 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    flat = functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view_as(labels)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return losses(model, batch).sum(), (batch["labels"] != IGNORED).sum()


def by_chat(model: nn.Module, data: Data, split: str) -> Tensor:
    """(n, 2) float64: nats of each chat's answers, and their tokens."""
    lengths = data[f"{split}_lengths"].cpu()
    device, make = next(model.parameters()).device, Gather(data, split)
    order = lengths.argsort()

    def measured(rows: Tensor) -> Tensor:
        batch = {name: tensor.to(device) for name, tensor in make(rows).items()}
        counts = (batch["labels"] != IGNORED).sum(1)
        return torch.stack([losses(model, batch).sum(1), counts.float()], 1)

    size = max(1, EVAL_TOKENS // _rounded(int(lengths.max())))
    found = torch.cat(predict_in_batches(measured, order, device, size)).double()
    return torch.empty_like(found).index_copy_(0, order, found)


def scores(model: nn.Module, data: Data, split: str) -> Scores:
    if not len(data[f"{split}_lengths"]):
        return {}
    nats, tokens = by_chat(model, data, split).sum(0).tolist()
    return {
        "loss": nats / tokens,
        "bits_per_byte": nats / math.log(2) / max(1, int(data[f"{split}_bytes"].sum())),
    }


@dataclass
class Timed:
    """Tokens of the batches that a training made, and its seconds outside of evaluations."""

    tokens: int = 0
    paused_s: float = 0.0

    def counted(self, made: Batches) -> Batches:
        plain = made.make

        def make(rows: Tensor, generator: torch.Generator) -> Batch:
            batch = plain(rows, generator)
            self.tokens += batch["ids"].numel()
            return batch

        made.make = make
        return made

    def parts(self, params: TuneParams) -> dict[str, Any]:
        """Of a recipe."""
        return {
            "batches": lambda data, generator: self.counted(batches(params.batch, data, generator)),
            "evaluate": self.paused,
        }

    def paused(self, model: nn.Module, data: Data, split: str) -> Scores:
        began = time.perf_counter()
        found = scores(model, data, split)
        self.paused_s += time.perf_counter() - began
        return found


def fit(run: Run, params: TuneParams, chats: Artifact) -> Artifact:
    meta = chats.expect("chats").meta()
    if meta["base_digest"] != bases.digest_of(params.base):
        raise DataError(
            f"the chats were formatted for {meta['base']}, and {params.base.name} is another base, or has "
            "changed; run the flow again"
        )
    data = {name: torch.from_numpy(array) for name, array in chats.arrays().items()}
    device = torch.device(run.device)
    precision = Precision(params.precision, device)
    base = bases.Base(params, precision.name, device)
    exam = Exam(run, recipe(params, chats.spec), data, precision, questions(params, meta["ends"], data))
    before = exam.take(base.build(), "before")
    timed = Timed()
    began = time.perf_counter()
    fitted = train(replace(exam.recipe, build=base.build, **timed.parts(params)), run, data)
    spent_s = time.perf_counter() - began - timed.paused_s
    run.metric("tokens_per_s", timed.tokens / max(spent_s, 1e-9))
    after = exam.take(fitted.model, "after")
    tune_report.report(run, bases.tokenizer_of(params.base), exam.questions, before, after)
    _tell(run, params, fitted, before, after)
    return _saved(run, params, chats, fitted.model)


@dataclass(frozen=True)
class Exam:
    """The same chats and prompts before and after a training."""

    run: Run
    recipe: Recipe[Data]
    data: Data
    precision: Precision
    questions: Questions

    def take(self, model: nn.Module, when: str) -> Taken:
        """Log WHEN/loss, WHEN/bits_per_byte and WHEN/ended_share; test/ is of the tuned model alone."""
        model = to_device(model, self.precision_device).eval()
        found = {
            split: evaluate(self.recipe, model, self.data, split, self.precision) for split in ("val", "test")
        }
        test = "test/loss" if when == "after" else "test/base_loss"
        self.run.metrics({f"{when}/{name}": value for name, value in found["val"].items()})
        self.run.metrics({test: found["test"]["loss"]} if found["test"] else {})
        with self.precision.cast():
            answers = generate(model, self.questions.prompts, self.questions.ends, self.questions.tokens)
        if answers:
            share = sum(answer.ended for answer in answers) / len(answers)
            self.run.metric("ended_share" if when == "after" else f"{when}/ended_share", share)
        return Taken(found["val"], answers)

    @property
    def precision_device(self) -> torch.device:
        return torch.device(self.precision.device)


def questions(params: TuneParams, ends: list[int], data: Data) -> Questions:
    """The first chats of val, else of train, up to their first answer."""
    split = "val" if len(data["val_lengths"]) else "train"
    lengths = data[f"{split}_lengths"].tolist()
    prompts, truths = list[list[int]](), list[list[int]]()
    parts = zip(
        *(torch.split(data[f"{split}_{name}"], lengths) for name in ("tokens", "answers")), strict=True
    )
    for tokens, answers in itertools.islice(parts, params.prompts):
        begin = int(answers.int().argmax())
        count = int((answers[begin:].int()).cumprod(0).sum())
        prompts.append(tokens[:begin].tolist())
        truths.append(tokens[begin : begin + count].tolist())
    return Questions(prompts, truths, ends, params.answer_tokens)


def _tell(run: Run, params: TuneParams, fitted: TrainResult, before: Taken, after: Taken) -> None:
    losses = [taken.scores["loss"] for taken in (before, after) if taken.scores]
    said = f"loss of the answers of val {losses[0]:.3f} before, {losses[1]:.3f} after; " if losses else ""
    run.note(f"{params.base.name}, {params.method}: {said}best epoch {fitted.epoch} of {params.epochs}")


def _saved(run: Run, params: TuneParams, chats: Artifact, model: Any) -> Artifact:
    meta = chats.meta()
    if params.method == "full":
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
    else:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(model)
    config = {
        "params": params.model_dump(mode="json"),
        **{name: meta[name] for name in ("base_digest", "template", "ends")},
    }
    interface = Interface(
        kind="texts",
        about=f"{params.base.name} tuned on chats ({params.method}): answers prompts",
        inputs=(Column(name="prompt", type="string"),),
        outputs=(
            Column(name="answer", type="string"),
            Column(name="ended", type="boolean"),
            Column(name="tokens", type="long"),
        ),
        options={"tokens": 256.0},
        example=({"prompt": "What is the capital of France?"},),
    )
    return run.save_model("tasks.llm.tuned:predictor", weights, config, chats.spec, interface)
