"""What a data set should consist of, against what was read."""

from collections.abc import Mapping

from overnight.artifact import DataSpec
from overnight.data.content import Content, Graph, Tables
from overnight.errors import DataError


def check(name: str, expected: DataSpec, content: Content) -> None:
    """Raise DataError when counts, sizes or names of classes are not those that the entry gives."""
    counts = _counts(content, expected.counts)
    wrong = [
        f"{s}: {counts.get(s, 0)} (expected {n})"
        for s, n in expected.counts.items()
        if counts and counts.get(s, 0) != n
    ]
    sizes = {"nodes": content.nodes, "edges": content.edges.shape[1]} if isinstance(content, Graph) else {}
    wrong += [f"{s}: {n} (expected {e})" for s, n in sizes.items() if (e := getattr(expected, s)) and n != e]
    classes = () if isinstance(content, Tables) else tuple(content.classes)
    if expected.classes and classes and classes != expected.classes:
        wrong.append(f"classes: {', '.join(classes)} (expected {', '.join(expected.classes)})")
    if wrong:
        raise DataError(
            f"data set {name!r} is not what its entry expects: {'; '.join(wrong)}; get the whole set, or correct the entry"
        )


def _counts(content: Content, wanted: Mapping[str, int]) -> dict[str, int]:
    """Samples by split, or rows by table (of those wanted alone: they must be counted)."""
    if isinstance(content, Tables):
        import polars as pl

        frames = {name: frame for name, frame in content.frames.items() if name in wanted}
        return {name: int(frame.select(pl.len()).collect().item()) for name, frame in frames.items()}
    if isinstance(content, Graph):
        return {split: int(mask.sum()) for split, mask in content.masks.items()}
    return {split: len(items) for split, items in content.splits.items()}
