"""How a model that makes one text of another is trained, scored and saved; translate.py has the step."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.artifact import Artifact, DataSpec
from overnight.predictor import Column, Interface
from overnight.run import Run
from overnight.training.batches import Batch, Batches
from overnight.training.evaluate import predict_in_batches
from overnight.training.loop import train
from overnight.training.recipe import Recipe, Scores, cosine
from tasks.shared.muon import MuonAdam
from tasks.shared.threads import one_thread
from tasks.shared.tokens import END, PAD, RESERVED, START, Pieces
from tasks.text.alignment import IGNORED, aligned
from tasks.text.pairs import SPLITS, pairs_of
from tasks.text.reading import Ragged, bucketed
from tasks.text.seq2seq import Seq2Seq, beam_search
from tasks.text.text_scores import corpus_scores, text_losses
from tasks.text.translate_params import TranslateParams
from tasks.text.word_table import WordTable, first_sentences

Data = dict[str, Tensor]
Pairs = Sequence[tuple[str, str]]
SIDES = ("source", "target")
EVAL_BATCH = 64  # pairs at once
SMALL = 2**18  # values of a layer below which a second thread costs more than it brings
WORST = 50  # texts in the table
TABLE_RATE = 0.15  # times lr: the rate of the table and the norms
TABLED = 50_000  # pairs of train that the table of words is learnt from


def recipe(params: TranslateParams, _spec: DataSpec) -> Recipe[Data]:
    def example(n: int) -> Batch:
        tokens = torch.full((n, params.longest), START, dtype=torch.int64)
        mask = torch.ones(tokens.shape, dtype=torch.bool)
        found = {"source": tokens, "source_mask": mask, "target": tokens.clone(), "target_mask": mask.clone()}
        return found | ({"aligned": torch.zeros_like(tokens)} if params.guided else {})

    def eval_example() -> Data:
        side = Ragged.of([([START] * params.longest, [0] * params.longest)] * EVAL_BATCH)
        return side.data("val_source") | side.data("val_target")

    return Recipe(
        build=partial(Seq2Seq, params, params.vocabulary),
        example_batch=example,
        batches=partial(batches, params),
        steps_per_epoch=lambda data: -(-(len(data["train_source_starts"]) - 1) // params.batch),
        loss=partial(_loss, params.label_smoothing, params.guided),
        optimizer=partial(_optimizer, params),
        schedule=cosine(params.warmup),
        evaluate=_evaluate,
        eval_example=eval_example,
        params=params,
        monitor="-loss",
        clip=params.clip,
    )


def _sides(data: Data, split: str) -> tuple[Ragged, Ragged]:
    return Ragged.back(data, f"{split}_source", PAD), Ragged.back(data, f"{split}_target", PAD)


def _batch(sides: tuple[Ragged, Ragged], lengths: Sequence[Tensor], chosen: Tensor) -> Batch:
    found = Batch()
    for name, side, length in zip(SIDES, sides, lengths, strict=True):
        one = side.batch(chosen, int(length[chosen].max()))
        found |= {name: one["tokens"], f"{name}_mask": one["mask"]}
    return found


def batches(params: TranslateParams, data: Data, generator: torch.Generator) -> Batches:
    sides = _sides(data, "train")
    lengths = [side.lengths for side in sides]
    order = bucketed(lengths[0] + lengths[1], params.batch, generator)
    places = Ragged.back(data, "train_aligned", IGNORED) if params.guided else None

    def made(chosen: Tensor, _: torch.Generator) -> Batch:
        found = _batch(sides, lengths, chosen)
        if places is not None:
            found["aligned"] = places.batch(chosen, int(lengths[1][chosen].max()))["tokens"]
        return found

    return Batches(order, made, generator)


def _loss(label_smoothing: float, guided: float, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of the tokens of the targets and their ends; guided: as Chen et al. 2016 (arXiv:1607.01628)."""
    logits, looks = model(batch["source"], batch["source_mask"], batch["target"][:, :-1], guided > 0)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    counted = batch["target_mask"][:, 1:]
    wanted = torch.where(counted, batch["target"][:, 1:], IGNORED)
    loss = functional.cross_entropy(
        logits.flatten(0, 1),
        wanted.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if looks is not None:
        places = batch["aligned"][:, 1:].flatten()
        loss = loss + guided * functional.nll_loss(
            looks.flatten(0, 1), places, ignore_index=IGNORED, reduction="sum"
        )
    return loss, counted.sum()


def _optimizer(params: TranslateParams, model: nn.Module) -> torch.optim.Optimizer:
    """The table and the norms do not decay and have a rate of their own."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embedding" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embedding" in name]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": params.lr, "weight_decay": params.weight_decay, "orthogonal": True},
        {"params": rest, "lr": TABLE_RATE * params.lr},
    ]
    return MuonAdam(groups)


def _evaluate(model: nn.Module, data: Data, split: str) -> Scores:
    device, sides = next(model.parameters()).device, _sides(data, split)
    lengths = [side.lengths for side in sides]
    order = (lengths[0] + lengths[1]).argsort(stable=True)

    def score(chosen: Tensor) -> Tensor:
        batch = {name: t.to(device) for name, t in _batch(sides, lengths, chosen.cpu()).items()}
        loss, count = _loss(0.0, 0.0, model, batch)
        return torch.stack([loss, count.to(loss.dtype)])

    total, count = torch.stack(predict_in_batches(score, order, device, EVAL_BATCH)).double().sum(0).tolist()
    return {"loss": total / count}


# ------------------------------------------------------------------------------------------------ the step


def fit(run: Run, params: TranslateParams, artifact: Artifact) -> Artifact:
    spec = artifact.expect("pairs").spec
    pairs = {split: pairs_of(artifact, split) for split in SPLITS}
    pieces = Pieces.learnt((text for pair in pairs["train"] for text in pair), params.vocabulary, RESERVED)
    data = Data()
    for split, rows in pairs.items():
        for name, numbers in read(pieces, rows, params.longest).items():
            data |= numbers.data(f"{split}_{name}")
    if params.guided:
        data |= aligned(*_sides(data, "train")).data("train_aligned")
    made = replace(recipe(params, spec), build=partial(Seq2Seq, params, pieces.size))
    with one_thread(params.batch * params.longest * params.width < SMALL):
        fitted = train(made, run, data)
        assert isinstance(fitted.model, Seq2Seq)
        sources = [source for source, _ in pairs["test"]]
        found = translated(fitted.model, pieces, sources, params, params.beams)
        greedy = translated(fitted.model, pieces, sources, params, 1)
    _report(run, params, pairs, found, greedy)
    interface = Interface(
        kind="texts",
        about=f"{params.task}s: {params.layers} layers of {params.width} that read, as many that write",
        inputs=(Column(name="source", type="string"),),
        outputs=(Column(name="target", type="string"),),
        options={"beams": float(params.beams)},
        example=({"source": sources[0]},),
    )
    config = {"tokens": pieces.state(), "params": params.model_dump(mode="json")}
    state = fitted.model.state_dict()
    return run.save_model("tasks.text.translate_predictor:predictor", state, config, spec, interface)


def read(pieces: Pieces, pairs: Pairs, longest: int) -> dict[str, Ragged]:
    """Both sides as numbers, what is too long cut: the source with its end, the target between its marks."""
    sources = [[*pieces.encode(source)[: longest - 1].tolist(), END] for source, _ in pairs]
    targets = [[START, *pieces.encode(target)[: longest - 2].tolist(), END] for _, target in pairs]
    return {
        name: Ragged.of([(row, [0] * len(row)) for row in rows])
        for name, rows in zip(SIDES, (sources, targets), strict=True)
    }


def translated(
    model: Seq2Seq, pieces: Pieces, sources: Sequence[str], params: TranslateParams, beams: int
) -> list[str]:
    """The target of each source; of a blank source it is empty."""
    asked = [i for i, source in enumerate(sources) if source.strip()]
    if not asked:
        return [""] * len(sources)
    device = next(model.parameters()).device
    side = read(pieces, [(sources[i], "") for i in asked], params.longest)["source"]
    lengths = side.lengths
    order = lengths.argsort(stable=True)

    def write(chosen: Tensor) -> Tensor:
        own = lengths[chosen.cpu()]
        batch = side.batch(chosen.cpu(), int(own.max()))
        limits = (2 * own + 8).clamp(max=params.longest).to(device)
        text = beam_search(model, batch["tokens"].to(device), batch["mask"].to(device), beams, limits)
        return functional.pad(text, (0, params.longest + 1 - text.shape[1]), value=PAD)

    rows = torch.cat(predict_in_batches(write, order, device, EVAL_BATCH)).tolist()
    found = [""] * len(sources)
    for place, row in zip(order.tolist(), rows, strict=True):
        found[asked[place]] = pieces.decode(row).strip()
    return found


def _report(
    run: Run,
    params: TranslateParams,
    pairs: dict[str, list[tuple[str, str]]],
    found: Sequence[str],
    greedy: Sequence[str],
) -> None:
    sources, wanted = ([pair[i] for pair in pairs["test"]] for i in (0, 1))
    scores, signatures = corpus_scores(found, wanted)
    run.metrics({f"test/{name}": value for name, value in scores.items()})
    run.metric("test/bleu_greedy", corpus_scores(greedy, wanted)[0]["bleu"])
    for name, signature in signatures.items():
        run.param(f"signature.{name}", signature)
    if params.task == "translate":
        table = WordTable(pairs["train"][:TABLED])
        plain, main, beside = [table.translate(source) for source in sources], "bleu", "words"
    else:
        targets = [target for _, target in pairs["train"]]
        plain, main, beside = first_sentences(sources, targets), "rouge_l", "first"
    baseline = corpus_scores(plain, wanted)[0]
    run.metrics({f"test/{name}_{beside}": value for name, value in baseline.items()})
    losses = text_losses(found, wanted)
    path = run.folder / "worst.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["source", "wanted", "written", "chrF"])
        for i in np.argsort(-losses, kind="stable")[:WORST]:
            rows.writerow([sources[i], wanted[i], found[i], f"{100 * (1 - losses[i]):.1f}"])
    run.publish(path)
    what = {"words": "word by word", "first": "the first sentences"}[beside]
    run.note(f"{main} {scores[main]:.1f} on {len(wanted)} test pairs, {what} {baseline[main]:.1f}")
