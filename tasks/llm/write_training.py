"""How a language model is trained, scored and saved; write.py has the step."""

import math
import resource
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.artifact import Artifact, DataSpec
from overnight.errors import DataError
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.predictor import Column, Interface
from overnight.run import Run
from overnight.training.batches import Batch, Batches, origin
from overnight.training.evaluate import predict_in_batches
from overnight.training.loop import TrainResult, train
from overnight.training.out_of_memory import KINDS, free
from overnight.training.recipe import Recipe, Scores, cosine
from tasks.llm.gpt import Gpt
from tasks.llm.ngrams import count_losses
from tasks.llm.write_params import WriteParams
from tasks.shared import figures
from tasks.shared.threads import one_thread
from tasks.shared.tokens import Characters, Tokens, load_tokens

Data = dict[str, Tensor]
EVAL_TOKENS = 8192  # at once
SMALL = 2**18  # values of a layer below which a second thread costs more than it brings
COUNTED = 5_000_000  # tokens of train that the baselines count, its last ones
TIMED = 3  # steps before the training, to say how long it will take


def recipe(params: WriteParams, spec: DataSpec) -> Recipe[Data]:
    def example(n: int) -> Batch:
        return {"tokens": torch.zeros((n, params.context + 1), dtype=torch.int64)}

    def eval_example() -> Data:
        return {"val_tokens": torch.zeros(EVAL_TOKENS + 1, dtype=torch.int32), "val_bytes": torch.tensor(1)}

    return Recipe(
        build=partial(build, params, spec.tokens),
        example_batch=example,
        batches=partial(batches, params),
        steps_per_epoch=partial(_steps, params),
        loss=_loss,
        optimizer=partial(_optimizer, params),
        schedule=cosine(params.warmup),
        evaluate=partial(_evaluate, params.context),
        eval_example=eval_example,
        params=params,
        monitor="-loss",
        clip=params.clip,
        sample_tokens=params.context,
    )


def build(params: WriteParams, vocabulary: int) -> Gpt:
    """The untrained net."""
    return Gpt(vocabulary, params.context, params.layers, params.heads, params.width, params.dropout)


def _windows(params: WriteParams, data: Data) -> int:
    return (len(data["train_tokens"]) - 1) // params.context


def _steps(params: WriteParams, data: Data) -> int:
    return params.epoch_steps or max(1, _windows(params, data) // params.batch)


def batches(params: WriteParams, data: Data, generator: torch.Generator) -> Batches:
    """Windows side by side in a random order, from a place of its own in each epoch.

    Where an epoch has more steps than there are windows, they come again in another order.
    """
    tokens, windows = data["train_tokens"], _windows(params, data)
    wanted = _steps(params, data) * params.batch
    orders = [torch.randperm(windows, generator=generator) for _ in range(-(-wanted // windows))]
    spare = len(tokens) - 1 - windows * params.context
    shift = int(torch.randint(spare + 1, (), generator=generator))
    within = torch.arange(params.context + 1)

    def batch(chosen: Tensor, _: torch.Generator) -> Batch:
        places = chosen[:, None] * params.context + shift + within
        return {"tokens": tokens[places.to(tokens.device)].long()}

    return Batches(list(torch.cat(orders)[:wanted].view(-1, params.batch)), batch, generator)


def _loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    nats = _nats(model, batch["tokens"])
    return nats.sum(), torch.tensor(nats.numel())


def _nats(model: nn.Module, tokens_NT: Tensor) -> Tensor:
    """Of each token after the first, given those before it: (N, T - 1)."""
    logits = model(tokens_NT[:, :-1])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found = functional.cross_entropy(logits.flatten(0, 1), tokens_NT[:, 1:].flatten(), reduction="none")
    return found.view(len(tokens_NT), -1)


def _optimizer(params: WriteParams, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); the embedding and the norms do not decay."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embedding" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embedding" in name]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=params.lr, betas=(0.9, 0.99))


def text_nats(model: nn.Module, tokens: Tensor, context: int) -> Tensor:
    """Of each token after the first, in windows side by side: float32 (n - 1,) on the host.

    tokens: (n,); a window's first tokens have few before them, as in training.
    """
    device = next(model.parameters()).device
    whole = (len(tokens) - 1) // context
    windows = (
        tokens[: whole * context + 1].unfold(0, context + 1, context) if whole else tokens.new_zeros((0, 2))
    )

    def score(part: Tensor) -> Tensor:
        return _nats(model, part.long())

    found = predict_in_batches(score, windows, device, max(1, EVAL_TOKENS // context))
    rest = tokens[whole * context :][None]
    found += predict_in_batches(score, rest, device, 1) if rest.shape[1] > 1 else []
    return torch.cat([part.flatten() for part in found])


def _evaluate(context: int, model: nn.Module, data: Data, split: str) -> Scores:
    return _scores(text_nats(model, data[f"{split}_tokens"], context), data[f"{split}_bytes"])


def _scores(nats: Tensor, size: Tensor) -> Scores:
    """size: of the text in bytes."""
    total = float(nats.double().sum())
    return {"loss": total / len(nats), "bits_per_byte": total / math.log(2) / float(size)}


# ------------------------------------------------------------------------------------------------ writing


@torch.inference_mode()
def continued(
    model: Gpt, tokens_NT: Tensor, length: int, temperature: float, seed: int, banned: tuple[int, ...] = ()
) -> Tensor:
    """The tokens that follow, (N, length); the model sees the last `context` of those before.

    temperature: 0 takes the most probable token; banned: tokens that are never written.
    """
    generator = torch.Generator().manual_seed(seed)
    text_NT = tokens_NT
    for _ in range(length):
        logits = model(text_NT[:, -model.context :])[:, -1].float().cpu()
        logits[:, list(banned)] = -math.inf
        if temperature > 0:
            chosen = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)
        else:
            chosen = logits.argmax(1, keepdim=True)
        text_NT = torch.cat([text_NT, chosen.to(text_NT.device)], 1)
    return text_NT[:, tokens_NT.shape[1] :]


def banned_of(tokens: Tokens) -> tuple[int, ...]:
    """What stands for an unknown character is never written."""
    return (0,) if isinstance(tokens, Characters) else ()


@dataclass
class _Epochs:
    """A recipe whose evaluation also writes samples."""

    run: Run
    recipe: Recipe[Data]
    params: WriteParams
    tokens: Tokens
    epoch: int = 0
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.run.folder / "samples"
        self.folder.mkdir(parents=True, exist_ok=True)

    def watched(self) -> Recipe[Data]:
        return replace(self.recipe, batches=self._batches, evaluate=self._evaluate)

    def _batches(self, data: Data, generator: torch.Generator) -> Batches:
        _, self.epoch = origin(generator)
        return batches(self.params, data, generator)

    def _evaluate(self, model: nn.Module, data: Data, split: str) -> Scores:
        found = self.recipe.evaluate(model, data, split)
        assert isinstance(model, Gpt)
        text = written(model, self.tokens, self.params)
        path = self.folder / f"epoch-{self.epoch + 1:03}.txt"
        path.write_text(f"epoch {self.epoch + 1}, val/loss {found['loss']:.4f}\n\n{text}\n", encoding="utf-8")
        self.run.publish(path, "samples")
        return found


def written(model: Gpt, tokens: Tokens, params: WriteParams) -> str:
    """Its samples, below one another; equal for equal weights."""
    begin = torch.from_numpy(tokens.encode(params.prompt)).long().to(next(model.parameters()).device)
    found = continued(
        model,
        begin.repeat(params.samples, 1),
        params.sample_tokens,
        params.temperature,
        0,
        banned_of(tokens),
    )
    return "\n----\n".join(params.prompt + tokens.decode(one.tolist()) for one in found)


# ------------------------------------------------------------------------------------------------ the step


def fit(run: Run, params: WriteParams, corpus: Artifact) -> Artifact:
    spec, meta = corpus.expect("corpus").spec, corpus.meta()
    tokens = load_tokens(meta["tokens"])
    data = {name: torch.from_numpy(array) for name, array in corpus.arrays().items()}
    data |= {f"{split}_bytes": torch.tensor(size) for split, size in meta["bytes"].items()}
    if len(data["train_tokens"]) <= params.context:
        raise DataError(
            f"train has {len(data['train_tokens'])} tokens, a window of {params.context} and its next token "
            "do not fit in; give more text, or a smaller context"
        )
    made = recipe(params, spec)
    with one_thread(params.batch * params.context * params.width < SMALL):
        run.note(beforehand(run, made, params, data))
        free()
        fitted = train(_Epochs(run, made, params, tokens).watched(), run, data)
        _report(run, params, fitted, data, spec.tokens)
    prompt = Column(name="prompt", type="string")
    interface = Interface(
        kind="texts",
        about=f"continues a text: {params.layers} layers of {params.width}, sees {params.context} tokens",
        inputs=(prompt,),
        outputs=(Column(name="continuation", type="string"),),
        options={"temperature": params.temperature, "tokens": float(params.sample_tokens), "seed": 0.0},
        example=({"prompt": params.prompt},),
    )
    config = {"tokens": tokens.state(), "params": params.model_dump(mode="json")}
    return run.save_model(
        "tasks.llm.write_predictor:predictor", fitted.model.state_dict(), config, spec, interface
    )


def beforehand(run: Run, made: Recipe[Data], params: WriteParams, data: Data) -> str:
    """How long the training will take and how much memory, from a few steps of a net that is then dropped."""
    batch = min(params.batch, params.micro_batch or params.batch)
    steps = params.epochs * _steps(params, data)
    weights = sum(p.numel() for p in made.build().parameters())
    begin = f"{weights:,} weights, {steps:,} steps of {params.batch} x {params.context} tokens"
    try:
        took_s, mib = _tried(run, made, batch)
    except KINDS as error:
        if not is_out_of_memory(error):
            raise
        return f"{begin}: how long is not known, since {batch} x {params.context} at once do not fit"
    rate = batch * params.context / took_s
    evaluated = params.epochs * len(data["val_tokens"]) / TIMED  # without a backward pass
    minutes = (steps * params.batch * params.context + evaluated) / rate / 60
    where = "of the card" if run.device == "cuda" else "of the host with Python and its libraries"
    return f"{begin}: about {minutes:.1f} minutes at {rate:,.0f} tokens a second, {mib:,.0f} MiB {where}"


def _tried(run: Run, made: Recipe[Data], batch: int) -> tuple[float, float]:
    """Seconds of a step, the fastest of a few, and the most MiB that were held."""
    device = torch.device(run.device)
    model = made.build().to(device).train()
    optimizer = made.optimizer(model)
    example = {name: tensor.to(device) for name, tensor in made.example_batch(batch).items()}
    taken = []
    for _ in range(TIMED):
        began = time.perf_counter()
        total, count = made.loss(model, example)
        (total / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float(next(model.parameters()).detach().sum())  # waits for a card
        taken.append(time.perf_counter() - began)
    if run.device == "cuda":
        return min(taken), torch.cuda.max_memory_allocated(device) / 2**20
    return min(taken), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _report(run: Run, params: WriteParams, fitted: TrainResult, data: Data, vocabulary: int) -> None:
    """The scores of test beside those of counts, and the curve beside published ones."""
    with torch.inference_mode():
        nats = text_nats(fitted.model, data["test_tokens"], params.context)
    found = _scores(nats, data["test_bytes"])
    counted = count_losses(data["train_tokens"][-COUNTED:].numpy(), data["test_tokens"].numpy(), vocabulary)
    run.metrics({f"test/{name}": value for name, value in found.items()})
    run.metrics({f"test/loss_{name}": value for name, value in counted.items()})
    per_epoch = _steps(params, data) * params.batch * params.context
    val = [scores["loss"] for scores in fitted.history]
    line = {"val": ([per_epoch * (i + 1) for i in range(len(val))], val)}
    run.picture(
        "curve", figures.curves(line, "tokens seen", "nats a token", "Loss on val", levels=params.published)
    )
    beside = ", ".join(f"{name} {value:.2f}" for name, value in counted.items())
    kept = f"epoch {fitted.epoch} of {params.epochs} is kept, val/loss {fitted.scores['loss']:.3f}"
    run.note(
        f"test: {found['loss']:.3f} nats a token, {found['bits_per_byte']:.3f} bits a byte; "
        f"by counts of train: {beside}; {kept}"
    )
