"""Cutting a part off the training data: seeded, and with the classes in proportion."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from overnight.data.content import Boxes, Content, Images, Texts

T = TypeVar("T")


def stratified(labels: Sequence[int], fraction: float, seed: int = 0) -> list[int]:
    """Indices of the part cut off, in order: `fraction` of each class, rounded so that the whole is right.

    Label -1 is never in it. A class of one sample stays in the training part.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    values = np.asarray(labels, dtype=np.int64)
    order = generator.permutation(len(values))
    cut: list[int] = []
    remainder = 0.0
    for label in sorted(set(values[values >= 0].tolist())):
        mine = order[values[order] == label]
        remainder += len(mine) * fraction
        take = min(int(remainder + 0.5), max(len(mine) - 1, 0))
        remainder -= take
        cut += mine[:take].tolist()
    return sorted(cut)


def cut(content: Content, splits: Mapping[str, float], seed: int = 0) -> Content:
    if not isinstance(content, Images | Boxes | Texts):
        return content
    for name, fraction in splits.items():
        if content.splits.get(name) or not content.splits.get("train"):
            continue
        train: Sequence[object] = content.splits["train"]
        chosen = set(stratified([_label(item) for item in train], fraction, seed))
        parts = {
            **content.splits,
            "train": [item for i, item in enumerate(train) if i not in chosen],
            name: [item for i, item in enumerate(train) if i in chosen],
        }
        content = replace(content, splits=parts)  # type: ignore[arg-type]
    return content


def _label(item: object) -> int:
    if isinstance(item, tuple):
        return max(int(item[1]), 0)
    label = getattr(item, "label", None)
    return int(label) if label is not None else int(len(item.labels) > 0)  # type: ignore[attr-defined]
