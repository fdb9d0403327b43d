"""Running text becomes numbers: characters, or pieces learnt from the training part alone."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params
from overnight.data.content import CleaningCounts, Texts
from overnight.data.dataset import Dataset
from overnight.data.entry import Entry
from overnight.errors import DataError
from overnight.run import Run
from overnight.step import step
from tasks.shared.tokens import SMALLEST, Characters, Pieces, Tokens

SPLITS = ("train", "val", "test")


class CorpusParams(Params):
    """How text becomes tokens."""

    tokens: Literal["characters", "bpe"] = Field(
        "characters", description="bpe: pieces of several bytes, learnt from train"
    )
    vocabulary: int | None = Field(
        None,
        ge=SMALLEST,
        le=2**17,
        description="how many pieces of bpe there are at most; 1024 when left out",
    )
    val: float = Field(
        0.1, gt=0, lt=0.5, description="share that is cut off the end of train for val when the set has none"
    )
    test: float = Field(
        0.1, gt=0, lt=0.5, description="share that is cut off the end of train for test when the set has none"
    )

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.tokens == "characters" and self.vocabulary is not None:
            raise ValueError("vocabulary is a value of tokens: bpe; characters are those of train")
        return self

    @property
    def pieces(self) -> int:
        """The `vocabulary` given, or its default."""
        return self.vocabulary or 1024


def corpus_spec(params: CorpusParams, data: Entry) -> DataSpec | None:
    """What load_corpus will hand on, as far as the entry tells: of characters, `expected.tokens`."""
    known = data.expected.tokens + 1 if data.expected.tokens else 0
    size = known if params.tokens == "characters" else params.pieces
    return DataSpec(tokens=size) if size else None


@step(spec=corpus_spec)
def load_corpus(run: Run, params: CorpusParams, data: Dataset) -> Artifact:
    """Encode running text.

    Out: artifact "corpus", {split}_tokens int32 (n,) for train, val and test, the text of test as test.txt,
    and how to encode more. Texts of a split follow one another, each on lines of its own. A missing test,
    then a missing val, is cut off the end of train. Raises DataError where a split has fewer than two tokens.
    """
    content = data.load_as(Texts)
    texts = {split: _joined(content.splits.get(split, ())) for split in SPLITS}
    for split, share in (("test", params.test), ("val", params.val)):
        if not texts[split]:
            end = len(texts["train"]) - round(len(texts["train"]) * share)
            texts["train"], texts[split] = texts["train"][:end], texts["train"][end:]
            run.log(
                f"data: no {split} split: the last {len(texts[split]):,} characters of train were cut for it"
            )
    tokens: Tokens = (
        Characters.learnt(texts["train"])
        if params.tokens == "characters"
        else Pieces.learnt([texts["train"]], params.pieces)
    )
    arrays = {split: tokens.encode(text) for split, text in texts.items()}
    for split, array in arrays.items():
        if len(array) < 2:
            raise DataError(
                f"data set {data.name!r}: {split} holds {len(array)} of the 2 tokens that it needs, "
                "so that there is one to predict; give more text"
            )
    cleaned = CleaningCounts(content.cleaned)
    if params.tokens == "characters":
        for split in ("val", "test"):
            cleaned[f"character of {split} that train lacks kept"] += int((arrays[split] == 0).sum())
    data.refuse(cleaned)
    run.cleaned(+cleaned)
    return _save(run, data.name, tokens, texts, arrays, cleaned)


def _joined(texts: Sequence[tuple[str, int]]) -> str:
    return "".join(text if text.endswith("\n") or len(texts) == 1 else f"{text}\n" for text, _ in texts)


def _save(
    run: Run,
    name: str,
    tokens: Tokens,
    texts: dict[str, str],
    arrays: dict[str, np.ndarray],
    cleaned: CleaningCounts,
) -> Artifact:
    sizes = {split: len(text.encode("utf-8", "replace")) for split, text in texts.items()}
    spec = DataSpec(tokens=tokens.size, counts={split: len(array) for split, array in arrays.items()})
    out = run.save(
        "corpus",
        spec,
        {f"{split}_tokens": array for split, array in arrays.items()},
        {"tokens": tokens.state(), "bytes": sizes},
        {"test.txt": lambda path: path.write_bytes(texts["test"].encode("utf-8", "replace"))},
    )
    run.data(name, out.digest, f"datasets/{name}.yaml", spec)
    run.metrics({f"data/{split}_tokens": len(array) for split, array in arrays.items()})
    per_token = sum(sizes.values()) / sum(map(len, arrays.values()))
    run.metric("data/bytes_per_token", per_token)
    said = (
        f"{name}: {sum(sizes.values()):,} bytes, {tokens.size:,} tokens known, {per_token:.2f} bytes a token"
    )
    run.note("; ".join(filter(None, (said, cleaned.sentence()))))
    return out
