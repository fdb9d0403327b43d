"""Cutting a part off the training data: seeded, and with the classes in proportion."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from overnight.data.content import (
    Boxes,
    BoxItem,
    Chats,
    CleaningCounts,
    Content,
    ImageItem,
    Images,
    Pairs,
    Texts,
)
from overnight.errors import DataError

Item = ImageItem | BoxItem


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
    """With the splits that are missing cut off train; one whose share is 0 is there, and empty.

    Samples of one group stay in one split, so shares are of groups where there are some.
    """
    if not isinstance(content, Images | Boxes | Texts | Chats | Pairs):
        return content
    key, label = _key(content), _label if isinstance(content, Images | Boxes | Texts) else _no_label
    for name, fraction in splits.items():
        if content.splits.get(name) or not content.splits.get("train"):
            continue
        train: Sequence[object] = content.splits["train"]
        groups = grouped([key(item) for item in train])
        units = set(stratified([label(train[group[0]]) for group in groups], fraction, seed))
        chosen = {i for unit, group in enumerate(groups) if unit in units for i in group}
        parts = {
            **content.splits,
            "train": [item for i, item in enumerate(train) if i not in chosen],
            name: [item for i, item in enumerate(train) if i in chosen],
        }
        content = replace(content, splits=parts)  # type: ignore[arg-type]
    return content


def _key(content: Content) -> Callable[[Any], str]:
    """What samples have in common that stay in one split: a text; a question, whatever its answers."""
    if isinstance(content, Texts | Pairs):
        return lambda item: str(item[0])
    if isinstance(content, Chats):
        return lambda chat: repr(chat[:-1] or chat)
    return lambda item: str(item.group)


def _no_label(_item: object) -> int:
    return 0


def grouped(groups: Sequence[str]) -> list[list[int]]:
    """Indices by group, in the order of the first of each; an empty name is a group of one."""
    found = dict[str | int, list[int]]()
    for i, group in enumerate(groups):
        found.setdefault(group or i, []).append(i)
    return list(found.values())


def with_groups(content: Content, pattern: str = "") -> Content:
    """Images whose bytes are equal, or in whose names the pattern finds the same, as one group.

    pattern: a regular expression; its first bracket, else the match, names the group. Copies are counted.
    """
    if isinstance(content, Texts | Pairs):
        lines = [(s, text, label) for s, some in content.splits.items() for text, label in some]
        _count_copies(lines, content.cleaned)
        return content
    if isinstance(content, Chats):
        chats = [(s, repr(chat), None) for s, some in content.splits.items() for chat in some]
        _count_copies(chats, content.cleaned)
        return content
    if not isinstance(content, Images | Boxes):
        return content
    items: list[tuple[str, Item]] = [(s, item) for s, some in content.splits.items() for item in some]
    digests = _digests([item for _, item in items])
    rows = [(s, digest, _labelled(item)) for (s, item), digest in zip(items, digests, strict=True)]
    _count_copies(rows, content.cleaned)
    groups = _groups([item.name for _, item in items], digests, pattern)
    often = Counter(groups)
    parts: dict[str, list[Item]] = {split: [] for split in content.splits}
    for (split, item), group in zip(items, groups, strict=True):
        parts[split].append(replace(item, group=group) if often[group] > 1 else item)
    return replace(content, splits=parts)  # type: ignore[arg-type]


def _digests(items: Sequence[Item]) -> list[str]:
    """Of what is stored of each; empty where nothing can be equal: only files of one size are read."""
    sizes = [item.stored.stat().st_size if isinstance(item.stored, Path) else None for item in items]
    often = Counter(sizes)
    return [
        "" if size is not None and often[size] == 1 else _digest(item.stored)
        for item, size in zip(items, sizes, strict=True)
    ]


def _digest(stored: Path | Callable[[], bytes] | None) -> str:
    if stored is None:
        return ""
    try:
        data = stored.read_bytes() if isinstance(stored, Path) else stored()
    except (OSError, DataError):  # whatever opens the item says so
        return ""
    return blake2b(data, digest_size=16).hexdigest() if data else ""


def _groups(names: Sequence[str], digests: Sequence[str], pattern: str) -> list[str]:
    """The name of each one's group, empty for none; a copy has that of the first of its kind."""
    found, first = list[str](), dict[str, str]()
    for name, digest in zip(names, digests, strict=True):
        match = re.search(pattern, name) if pattern else None
        own = digest
        if match:
            own = (match[1] or "") if match.re.groups else match[0]
        found.append(first.setdefault(digest, own) if digest else own)
    return found


def _count_copies(rows: Iterable[tuple[str, str, object]], cleaned: CleaningCounts) -> None:
    """rows: split, what copies have in common (empty: it is none), and how it is labelled."""
    splits, labels = dict[str, Counter[str]](), dict[str, set[object]]()
    for split, key, label in rows:
        if key:
            splits.setdefault(key, Counter())[split] += 1
            labels.setdefault(key, set()).add(label)
    for key, counts in splits.items():
        if counts.total() == 1:
            continue
        first = next(iter(counts))
        for split, count in counts.items():
            cleaned[f"copy of another sample of {split} kept"] += count - 1
            cleaned[f"sample of {split} that {first} has too kept"] += count if split != first else 0
        cleaned["copy that is labelled in another way kept"] += counts.total() if len(labels[key]) > 1 else 0


def _labelled(item: Item) -> object:
    if isinstance(item, ImageItem):
        return item.label
    return item.labels.tobytes(), item.boxes.tobytes()


def _label(item: object) -> int:
    if isinstance(item, tuple):
        return max(int(item[1]), 0)
    label = getattr(item, "label", None)
    return int(label) if label is not None else int(len(item.labels) > 0)  # type: ignore[attr-defined]
