"""docs/what-fits.md is up to date: cheap rows here, all by `python -m bench.what_fits --check`."""

from itertools import chain
from pathlib import Path

import pytest

from bench import what_fits

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "what-fits.md").read_text(encoding="utf-8")
CHEAP = dict(chain(what_fits.answering(), what_fits.answering_transformers()))
TRACED = dict(chain(what_fits.images(), what_fits.others()))
SLOW = dict(what_fits.tuning())


@pytest.mark.parametrize("name", CHEAP)
def test_a_row_by_arithmetic(name):
    assert what_fits.line(name, CHEAP[name]()) in PAGE.splitlines()


@pytest.mark.parametrize(
    "name",
    [
        "ResNet-18, 32 px, batch 128, fp32",
        "DQN on Atari, buffer of 1,000,000 steps on the card, each screen once",
    ],
)
def test_a_row_by_a_trace(name):
    assert what_fits.line(name, TRACED[name]()) in PAGE.splitlines()


@pytest.mark.slow
def test_a_row_of_a_language_model():
    pytest.importorskip("transformers", reason="the extra llm is not installed")
    name = "DistilBERT in full, mixed precision, 32 x 128 tokens"
    assert what_fits.line(name, SLOW[name]()) in PAGE.splitlines()


def test_the_page_has_every_row_and_says_that_nothing_was_measured():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows if "---" not in row] == [
        name for section in what_fits.sections().values() for name in section
    ]
    assert "Predicted, not measured" in PAGE


def test_what_is_unknown_never_fits():
    from overnight.memory import MemoryEstimate

    assert "yes" not in what_fits.line("a net", MemoryEstimate(1, unknown="it reads a value"))
