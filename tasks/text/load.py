"""Labelled texts, of one sentence or two, as a data set has them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params
from overnight.data.content import CleaningCounts, Texts
from overnight.data.dataset import Dataset
from overnight.data.entry import Entry
from overnight.data.splits import cut
from overnight.errors import DataError
from overnight.run import Run
from overnight.step import step

SPLITS = ("train", "val", "test")


class TextParams(Params):
    """How labelled texts are split."""

    val: float = Field(
        0.1, gt=0, lt=1, description="share of train that is cut for val when the set has none"
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="share of train that is cut for test when the set has none"
    )


def texts_spec(_params: TextParams, data: Entry) -> DataSpec | None:
    """What load_texts will hand on, as far as the entry tells."""
    return data.expected if data.expected.classes else None


@step(spec=texts_spec)
def load_texts(run: Run, params: TextParams, data: Dataset) -> Artifact:
    """Read labelled texts.

    Out: artifact "texts", {split}_labels int64 (n,) for train, val and test, and {split}.json, a list of the
    sentences of each text. A missing test, then a missing val, is cut from train, the same share of every
    class; equal texts stay in one split. Raises DataError: fewer than two classes, or a split without a text.
    """
    content = data.load_as(Texts)
    labelled = {split: [row for row in rows if row[1] >= 0] for split, rows in content.splits.items()}
    content = replace(content, splits=labelled)
    for split, share in (("test", params.test), ("val", params.val)):
        if not content.splits.get(split):
            found = cut(content, {split: share}, run.seed)
            assert isinstance(found, Texts)  # what goes in comes out
            content = found
            run.log(f"data: no {split} split: {len(content.splits[split])} texts of train were cut for it")
    if len(content.classes) < 2:
        raise DataError(
            f"data set {data.name!r}: texts need two classes to tell apart, there are "
            f"{list(content.classes)}; see datasets/{data.name}.yaml"
        )
    empty = [split for split in SPLITS if not content.splits.get(split)]
    if empty:
        raise DataError(f"data set {data.name!r}: no text for {', '.join(empty)}; give more texts")
    return _save(run, data.name, content)


def _save(run: Run, name: str, content: Texts) -> Artifact:
    cleaned = CleaningCounts(content.cleaned)
    run.cleaned(+cleaned)
    rows = {
        split: [text.split("\n") if content.sentences > 1 else [text] for text, _ in content.splits[split]]
        for split in SPLITS
    }
    labels = {
        f"{split}_labels": np.array([i for _, i in content.splits[split]], np.int64) for split in SPLITS
    }
    counts = {split: len(texts) for split, texts in rows.items()}
    spec = DataSpec(classes=content.classes, counts=counts)
    files = {f"{split}.json": partial(write_texts, texts) for split, texts in rows.items()}
    out = run.save("texts", spec, labels, {"sentences": content.sentences}, files)
    run.data(name, out.digest, f"datasets/{name}.yaml", spec)
    run.metrics({f"data/{split}_texts": count for split, count in counts.items()})
    parts = ", ".join(f"{split} {count}" for split, count in counts.items())
    run.note(
        "; ".join(filter(None, (f"{name}: {len(content.classes)} classes, {parts}", cleaned.sentence())))
    )
    return out


def write_texts(texts: list[list[str]], path: Path) -> None:
    """As `texts_of` reads them."""
    path.write_text(json.dumps(texts), encoding="utf-8")


def texts_of(artifact: Artifact, split: str) -> list[tuple[str, ...]]:
    """The sentences of each text."""
    path: Path = artifact.path / f"{split}.json"
    return [tuple(row) for row in json.loads(path.read_text(encoding="utf-8"))]
