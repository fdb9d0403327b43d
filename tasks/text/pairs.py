"""Pairs of texts: a sentence and its translation, or an article and its summary."""

from functools import partial

from pydantic import Field

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params
from overnight.data.content import CleaningCounts, Pairs
from overnight.data.dataset import Dataset
from overnight.data.entry import Entry
from overnight.data.splits import cut
from overnight.errors import DataError
from overnight.run import Run
from overnight.step import step
from tasks.text.load import SPLITS, texts_of, write_texts

__all__ = ["SPLITS", "PairParams", "load_pairs", "pairs_of", "pairs_spec"]


class PairParams(Params):
    """How pairs are split."""

    val: float = Field(0.05, gt=0, lt=1, description="share of train for val when the set has none")
    test: float = Field(0.05, gt=0, lt=1, description="share of train for test when the set has none")


def pairs_spec(_params: PairParams, data: Entry) -> DataSpec | None:
    """What load_pairs will hand on, as far as the entry tells."""
    return DataSpec(counts=data.expected.counts) if data.expected.counts else None


@step(spec=pairs_spec)
def load_pairs(run: Run, params: PairParams, data: Dataset) -> Artifact:
    """Read pairs of texts.

    Out: artifact "pairs", {split}.json for train, val and test, a list of [source, target]. A missing test,
    then a missing val, is cut from train; pairs of equal sources stay in one split. Raises DataError where a
    split is left without a pair.
    """
    content = data.load_as(Pairs)
    for split, share in (("test", params.test), ("val", params.val)):
        if not content.splits.get(split):
            found = cut(content, {split: share}, run.seed)
            assert isinstance(found, Pairs)  # what goes in comes out
            content = found
            run.log(f"data: no {split} split: {len(content.splits[split])} pairs of train were cut for it")
    empty = [split for split in SPLITS if not content.splits.get(split)]
    if empty:
        raise DataError(f"data set {data.name!r}: no pair for {', '.join(empty)}; give more pairs")
    cleaned = CleaningCounts(content.cleaned)
    run.cleaned(+cleaned)
    counts = {split: len(content.splits[split]) for split in SPLITS}
    rows = {split: [list(pair) for pair in content.splits[split]] for split in SPLITS}
    spec = DataSpec(counts=counts)
    out = run.save(
        "pairs", spec, None, {}, {f"{split}.json": partial(write_texts, some) for split, some in rows.items()}
    )
    run.data(data.name, out.digest, f"datasets/{data.name}.yaml", spec)
    run.metrics({f"data/{split}_pairs": count for split, count in counts.items()})
    parts = ", ".join(f"{split} {count}" for split, count in counts.items())
    run.note("; ".join(filter(None, (f"{data.name}: pairs, {parts}", cleaned.sentence()))))
    return out


def pairs_of(artifact: Artifact, split: str) -> list[tuple[str, str]]:
    """(source, target) of each."""
    return [(source, target) for source, target in texts_of(artifact, split)]
