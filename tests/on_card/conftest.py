"""The card of these tests: a real one, with a ledger of its own."""

from pathlib import Path

import pytest

from overnight.gpu import card as cards
from overnight.gpu.card import Card


@pytest.fixture(autouse=True)
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """The first real card. This process makes no context on it."""
    if not cards.real():
        pytest.skip("there is no CUDA card here")
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "cards"))
    return cards.find()
