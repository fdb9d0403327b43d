"""Pictures hold what they say, for any number of classes and any script, without a warning."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks.shared import figures


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def made(n: int, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n, size)
    return labels, np.where(rng.random(size) < 0.8, labels, rng.integers(0, n, size))


def test_confusion_shows_every_count() -> None:
    labels, guesses = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    axes = figures.confusion(labels, guesses, ["cat", "dog", "never"]).axes[0]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "2"),
        ((1, 0), "1"),
        ((1, 1), "2"),
    }
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat  67%", "dog  100%", "never  none"]
    assert axes.get_title("left") == "80.0% of 5 right"


@pytest.mark.parametrize("n", [2, 30, 100, 1000])
def test_confusion_of_many_classes_draws(n: int, tmp_path: Path) -> None:
    figure = figures.confusion(*made(n), [f"class {i}" for i in range(n)])
    figure.savefig(tmp_path / "c.png")
    assert 2 <= len(figure.axes[0].get_xticks()) <= 112


def test_names_in_any_script_draw(tmp_path: Path) -> None:
    odd = [
        "猫",
        "собака",
        "قط",
        "हिन्दी",
        "$x_1$",
        "",
        "  ",
        "a name that is much longer than others",
        "two\nlines",
        "🦊",
    ]
    figures.confusion(*made(len(odd)), odd).savefig(tmp_path / "c.png")
    figures.grid(np.zeros((len(odd), 1, 8, 8), np.uint8), odd, title="$").savefig(tmp_path / "g.png")
    figures.curves({name: ([0, 1], [1, 2]) for name in odd if name.strip()}, "x", "y", odd[0]).savefig(
        tmp_path / "l.png"
    )


def test_names_stay_apart_where_no_font_has_them() -> None:
    private = "\ue000"  # of the private use area: no font here has it
    assert figures.names(["a", private, private * 2, ""]) == ["a", "#1", "#2", "#3"]
    assert figures.drawable(f"is {private}") == "is \u25a1"


@pytest.mark.parametrize(("count", "channels"), [(0, 3), (1, 1), (13, 3)])
def test_grid_draws_any_number_of_images(count: int, channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, 8, 8)).astype(np.uint8)
    figure = figures.grid(images, ["is a\nsaid b"] * count)
    figure.savefig(tmp_path / "g.png")
    drawn = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert len(drawn) == count
    for image, shown in zip(images, drawn, strict=True):
        assert (
            np.asarray(shown) == image.transpose(1, 2, 0)
        ).all()  # grey too: three equal channels, no stretch of contrast


def test_curves_keep_their_points_and_levels() -> None:
    axes = figures.curves(
        {"mine": ([1, 2, 3], [4, 5, 6])}, "x", "y", bands={"mine": [1, 1, 1]}, levels={"random": 2.0}
    ).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 4], [2, 5], [3, 6]]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["mine", "random 2"]
