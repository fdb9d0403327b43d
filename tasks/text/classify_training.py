"""How a classifier of texts is trained, scored and saved; classify.py has the step."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.artifact import Artifact, DataSpec
from overnight.errors import DataError
from overnight.predictor import Column, Interface, class_columns
from overnight.run import Run
from overnight.training.batches import Batch, Batches
from overnight.training.evaluate import predict_in_batches
from overnight.training.loop import train
from overnight.training.recipe import Recipe, Scores, cosine
from tasks.shared.threads import one_thread
from tasks.shared.tokens import PAD, RESERVED, Pieces
from tasks.text.classify_params import ClassifyParams
from tasks.text.classify_report import report
from tasks.text.encoder import Classifier, build, config_of, load_body
from tasks.text.load import SPLITS, texts_of
from tasks.text.reading import Encode, Ragged, bucketed, by_pieces, by_tokenizer, tokenizer_in

Data = dict[str, Tensor]
EVAL_BATCH = 64  # texts at once
SMALL = 2**18  # values of a layer below which a second thread costs more than it brings


def recipe(params: ClassifyParams, spec: DataSpec) -> Recipe[Data]:
    pad = pad_of(params)

    def example(n: int) -> Batch:
        shape = (n, params.longest)
        tokens = {"tokens": torch.full(shape, pad + 1), "kinds": torch.zeros(shape, dtype=torch.int64)}
        mask = {"mask": torch.ones(shape, dtype=torch.bool)}
        return tokens | mask | {"labels": torch.zeros(n, dtype=torch.int64)}

    def eval_example() -> Data:
        row = ([pad + 1] * params.longest, [0] * params.longest)
        labels = {"val_labels": torch.zeros(EVAL_BATCH, dtype=torch.int64)}
        return Ragged.of([row] * EVAL_BATCH, pad).data("val") | labels

    return Recipe(
        build=partial(build, params, params.vocabulary, len(spec.classes)),
        example_batch=example,
        batches=partial(batches, params, pad),
        steps_per_epoch=lambda data: -(-len(data["train_labels"]) // params.batch),
        loss=partial(_loss, params.label_smoothing),
        optimizer=partial(_optimizer, params),
        schedule=cosine(params.warmup),
        evaluate=partial(_evaluate, pad),
        eval_example=eval_example,
        params=params,
        clip=params.clip,
    )


def pad_of(params: ClassifyParams) -> int:
    """The number that fills a batch; it is masked, whatever it means elsewhere."""
    if params.weights is None:
        return PAD
    return int(config_of(params.weights).get("pad_token_id") or 0)


def batches(params: ClassifyParams, pad: int, data: Data, generator: torch.Generator) -> Batches:
    texts, labels = Ragged.back(data, "train", pad), data["train_labels"]
    lengths = texts.lengths

    def batch(chosen: Tensor, _: torch.Generator) -> Batch:
        found = texts.batch(chosen, int(lengths[chosen].max()))
        return found | {"labels": labels[chosen.to(labels.device)]}

    return Batches(bucketed(lengths, params.batch, generator), batch, generator)


def _loss(label_smoothing: float, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    labels = batch["labels"]
    logits = model(batch["tokens"], batch["kinds"], batch["mask"])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return loss, torch.tensor(len(labels))


def _optimizer(params: ClassifyParams, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); norms, biases and tables do not decay."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    learnt = [p for p in model.parameters() if p.requires_grad]
    decays = [p for p in learnt if p.ndim > 1 and id(p) not in tables]
    rest = [p for p in learnt if p.ndim < 2 or id(p) in tables]
    groups: list[dict[str, Any]] = [
        {"params": decays, "weight_decay": params.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=params.lr)


def logits_of(model: nn.Module, texts: Ragged) -> Tensor:
    """float32 (n, classes) on the host; texts of about equal length are read together."""
    device, lengths = next(model.parameters()).device, texts.lengths
    order = lengths.argsort(stable=True)

    def score(chosen: Tensor) -> Tensor:
        chosen = chosen.cpu()
        batch = texts.batch(chosen, int(lengths[chosen].max()))
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        logits: Tensor = model(**moved)
        return logits.float()

    found = torch.cat(predict_in_batches(score, order, device, EVAL_BATCH))
    return found[order.argsort()]


def _evaluate(pad: int, model: nn.Module, data: Data, split: str) -> Scores:
    labels = data[f"{split}_labels"].cpu()
    logits = logits_of(model, Ragged.back(data, split, pad))
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "loss": float(functional.cross_entropy(logits, labels)),
    }


# ------------------------------------------------------------------------------------------------ the step


def fit(run: Run, params: ClassifyParams, artifact: Artifact) -> Artifact:
    spec = artifact.expect("texts").spec
    texts = {split: texts_of(artifact, split) for split in SPLITS}
    pieces, folder = None, None
    if params.weights is None:
        whole = [sentence for text in texts["train"] for sentence in text]
        pieces = Pieces.learnt(whole, params.vocabulary, RESERVED)
    else:
        folder = params.weights.locate()
        _check_longest(params)
    encode = reader(params, pieces, folder)
    pad = pad_of(params)
    read = {split: Ragged.of(encode(rows), pad) for split, rows in texts.items()}
    data = {name: torch.from_numpy(array) for name, array in artifact.arrays().items()}
    for split, ragged in read.items():
        data |= ragged.data(split)
    _tell_cut(run, read["train"], params.longest)
    made = recipe(params, spec)
    if pieces is not None:
        made = replace(made, build=partial(build, params, pieces.size, len(spec.classes)))
    start = made.build if folder is None else partial(_pretrained, made.build, folder)
    with one_thread(folder is None and params.batch * params.longest * params.width < SMALL):
        fitted = train(replace(made, build=start), run, data)
        found = probabilities_of(fitted.model, read["test"])
    labels = {split: data[f"{split}_labels"].numpy() for split in SPLITS}
    report(run, spec.classes, texts, labels, found, fitted)
    return _save(run, params, spec, fitted.model, pieces, folder, texts["test"][0])


def reader(params: ClassifyParams, pieces: Pieces | None, folder: Path | None) -> Encode:
    """How a text becomes numbers: by what was learnt from train, or as the weights in the folder read."""
    if pieces is not None:
        return by_pieces(pieces, params.longest)
    assert folder is not None  # there is either
    return by_tokenizer(tokenizer_in(folder), params.longest)


def _pretrained(make: Any, folder: Path) -> nn.Module:
    net = make()
    assert isinstance(net, Classifier)
    return load_body(net, folder)


def _check_longest(params: ClassifyParams) -> None:
    assert params.weights is not None
    most = config_of(params.weights).get("max_position_embeddings")
    if most is not None and params.longest > most:
        raise DataError(
            f"longest is {params.longest}, {params.weights.name} reads {most} tokens at most; set it lower"
        )


def _tell_cut(run: Run, read: Ragged, longest: int) -> None:
    share = float((read.lengths >= longest).double().mean())
    run.metric("data/share_cut", share)
    if share > 0.01:
        run.note(f"{share:.0%} of the training texts fill {longest} tokens; what is longer is cut")


def _save(
    run: Run,
    params: ClassifyParams,
    spec: DataSpec,
    model: nn.Module,
    pieces: Pieces | None,
    folder: Path | None,
    example: Sequence[str],
) -> Artifact:
    names = ["text"] if len(example) == 1 else ["first", "second"]
    what = params.weights.name if params.weights else f"{params.layers} layers of {params.width}"
    interface = Interface(
        kind="texts",
        about=f"{what}: {len(spec.classes)} classes of texts",
        inputs=tuple(Column(name=name, type="string") for name in names),
        outputs=class_columns(spec.classes),
        example=(dict(zip(names, example, strict=True)),),
    )
    config: dict[str, Any] = {"classes": list(spec.classes), "params": params.model_dump(mode="json")}
    if folder is None:
        assert pieces is not None
        config["tokens"] = pieces.state()
    else:
        assert params.weights is not None
        config |= {"config": config_of(params.weights), "tokenizer": tokenizer_in(folder).to_str()}
    state = model.state_dict()
    return run.save_model("tasks.text.classify_predictor:predictor", state, config, spec, interface)


@torch.inference_mode()
def probabilities_of(model: nn.Module, rows: Ragged) -> np.ndarray:
    """(n, classes)."""
    found: np.ndarray = logits_of(model, rows).softmax(1).numpy()
    return found
