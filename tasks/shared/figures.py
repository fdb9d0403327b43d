"""Pictures for a run's page: matplotlib figures for any number of classes and any script."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, ACCENT = "#1f2933", "#9aa5b1", "#1f6feb"
COLOURS = (ACCENT, "#d9480f", "#2b8a3e", "#862e9c", "#e67700", "#0b7285")
FALLBACKS = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Noto Sans Devanagari", "Noto Sans Thai",
    "Noto Sans Bengali", "Noto Sans Tamil", "Arial Unicode MS", "Unifont",
)  # fmt: skip
LONGEST = 18  # characters of a name


def confusion(
    labels: np.ndarray,
    predictions: np.ndarray,
    classes: Sequence[str],
    title: str = "",
    last_is_none: bool = False,
) -> "Figure":
    """Confusion matrix: truth by row with its accuracy, prediction by column, colour by share of the row.

    last_is_none: the last class stands for no object, and has no accuracy.
    """
    n = len(classes)
    counts = np.bincount(np.asarray(labels) * n + np.asarray(predictions), minlength=n * n).reshape(n, n)
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    side = min(max(4.0, 0.42 * n + 2), 16.0)
    figure, axes = _canvas(side + 1.5, side)
    image = axes.imshow(
        np.sqrt(shares), cmap="Blues", vmin=0, vmax=1
    )  # the root makes a confusion of 1 % visible
    image.set_rasterized(True)
    if n <= 25:
        _cells(axes, counts, shares)
    shown = names(classes)
    share = [f"{s:.0%}" if t else "none" for s, t in zip(shares.diagonal(), totals, strict=True)]
    share[-1] = "" if last_is_none else share[-1]
    _class_ticks(axes, shown, [f"{name}  {s}".rstrip() for name, s in zip(shown, share, strict=True)], side)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("truth", color=INK)
    right = f"{counts.trace() / max(totals.sum(), 1):.1%} of {totals.sum()} right"
    axes.set_title(title or right, color=INK, loc="left", fontsize=11)
    return figure


def _cells(axes: "Axes", counts: np.ndarray, shares: np.ndarray) -> None:
    size = 9 if len(counts) <= 12 else 6
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.35 else INK
        axes.text(
            column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour
        )


def _class_ticks(axes: "Axes", across: list[str], down: list[str], side: float) -> None:
    """Every class where the names have room, else every second, third ..."""
    every = max(1, math.ceil(len(across) / (side * 7)))
    at = range(0, len(across), every)
    size = 9 if len(across) <= 25 else 6
    style: dict[str, Any] = {"fontsize": size, "family": fonts(), "parse_math": False, "color": INK}
    axes.set_xticks(at, [across[i] for i in at], rotation=90 if max(map(len, across)) > 2 else 0, **style)
    axes.set_yticks(at, [down[i] for i in at], **style)
    axes.tick_params(length=0)


def grid(images: np.ndarray, titles: Sequence[str] = (), columns: int = 8, title: str = "") -> "Figure":
    """Images (N, C, H, W), uint8 or 0..1, side by side with a caption each; N may be 0."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    lines = max((t.count("\n") + 1 for t in titles), default=0)
    figure, _ = _canvas(1.5 * columns, (1.35 + 0.17 * lines) * rows + 0.4, axes=False)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < len(images):
            axes.imshow(
                _displayed(images[i]),
                cmap="gray",
                interpolation="nearest" if images.shape[-1] < 100 else None,
            )
        if i < min(len(images), len(titles)):
            axes.set_title(
                drawable(titles[i]), fontsize=7.5, family=fonts(), parse_math=False, color=INK, pad=3
            )
    figure.suptitle(title or ("" if len(images) else "nothing to show"), color=INK, fontsize=11)
    return figure


def _displayed(image_CHW: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) as uint8, so that no stretch of contrast hides what the model saw."""
    pixels = image_CHW if image_CHW.dtype == np.uint8 else (np.clip(image_CHW, 0, 1) * 255).astype(np.uint8)
    return np.repeat(pixels.transpose(1, 2, 0), 3, axis=2) if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    across: str,
    up: str,
    title: str = "",
    bands: Mapping[str, Sequence[float]] | None = None,
    levels: Mapping[str, float] | None = None,
) -> "Figure":
    """Named lines (x, y), each with a band of +- its `bands`, and dashed horizontal `levels`."""
    figure, axes = _canvas(7, 4)
    for (name, (x, y)), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        axes.plot(
            x,
            y,
            color=colour,
            label=drawable(name),
            linewidth=1.8,
            marker="o" if len(x) < 40 else None,
            markersize=3 if len(x) > 1 else 8,
        )
        if bands and name in bands:
            low, high = (np.asarray(y) + sign * np.asarray(bands[name]) for sign in (-1, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for name, level in (levels or {}).items():
        axes.axhline(level, color=SOFT, linestyle="--", linewidth=1, label=f"{drawable(name)} {level:.4g}")
    _frame(axes, across, up, title)
    axes.legend(frameon=False, fontsize=9, prop={"family": fonts(), "size": 9}) if lines or levels else None
    return figure


def _canvas(width: float, height: float, axes: bool = True) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots() if axes else None


def _frame(axes: "Axes", across: str, up: str, title: str) -> None:
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    axes.set_title(drawable(title), color=INK, loc="left", fontsize=11)
    axes.grid(visible=True, color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


# ------------------------------------------------------------------------------------------------ names in
# any script


def names(classes: Sequence[str]) -> list[str]:
    """Class names as they can be drawn here.

    Shortened, and by their number where no installed font has the glyphs.
    """
    known = _glyphs()
    return [
        _short(name) if name.strip() and _known(name, known) else f"#{i}"
        for i, name in enumerate(map(str, classes))
    ]


def drawable(text: str) -> str:
    """The text with a box for each character that no installed font has."""
    known = _glyphs()
    return "".join(c if c == "\n" or ord(c) in known else "\u25a1" for c in text)


def _short(name: str) -> str:
    flat = " ".join(name.split())
    return flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 1]}\u2026"


def _known(name: str, known: frozenset[int]) -> bool:
    return all(ord(c) in known or c.isspace() for c in name)


@lru_cache(maxsize=1)
def fonts() -> tuple[str, ...]:
    """The families that are installed, in the order in which a glyph is looked for."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FALLBACKS if name in there)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    known = set[int]()
    for family in fonts():
        known |= FT2Font(findfont(FontProperties(family=family))).get_charmap().keys()
    return frozenset(known)
