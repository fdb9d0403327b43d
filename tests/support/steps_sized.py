"""Steps that request memory and record usage without being run, for tests/memory/test_request*.py."""

import pytest

from overnight import Artifact, DataSpec, Params, Run, step
from overnight.gpu.card import Card
from overnight.memory import history
from overnight.memory.usage import Usage
from overnight.training.batches import split_by_sample
from overnight.training.recipe import TrainParams

BUDGET = 8192
IMAGES = DataSpec(shape=(3, 8, 8), counts={"train": 9})


class NetParams(TrainParams):
    width: int = 8


class PlainParams(Params):
    rows: int = 3


class Bare:
    """As much of a Recipe as the planner reads."""

    def __init__(self, micro_batches=split_by_sample):
        self.micro_batches = micro_batches


def whole(batch, _size):
    yield batch


@step(gpu=True, recipe=lambda _params, _spec: Bare(), vram_mib=2048)
def net(run: Run, params: NetParams, images: Artifact) -> Artifact:
    """Never run here."""


@step(gpu=True, recipe=lambda _params, _spec: Bare(whole), vram_mib=2048)
def graph(run: Run, params: NetParams, images: Artifact) -> Artifact:
    """Cannot be cut."""


@step(gpu=True, vram_mib=2048)
def plain(run: Run, params: PlainParams) -> Artifact:
    """Has no Recipe."""


@step(gpu=True)
def silent(run: Run, params: PlainParams) -> Artifact:
    """Says nothing of its memory."""


@step(gpu=True, vram_mib=1024, uncapped=True)
def cupy(run: Run, params: PlainParams) -> Artifact:
    """Takes memory that no cap holds."""


@pytest.fixture
def card(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    return Card(uuid="virtual", name="virtual", total_mib=BUDGET, budget_mib=BUDGET, count=True)


def given(params=None, spec=IMAGES, digest="d"):
    return [params or NetParams(batch=64), Artifact(kind="images", path="/made", digest=digest, spec=spec)]


def ended(card, step, arguments, ask, peak, cap=None, **more):
    """A run that would hold `peak` MiB: below its cap it comes through, else it meets out of memory."""
    cap = cap or ask.mib
    used = Usage(
        asked_micro_batch=ask.micro_batch,
        micro_batch=ask.micro_batch,
        cap_mib=cap,
        lease_mib=ask.mib,
        peak_mib=min(peak, cap),
        out_of_memory=peak > cap,
        hit_limit=peak >= 0.95 * cap,
        exclusive=ask.exclusive,
        **more,
    )
    history.record_usage(step, arguments, card, used, finished=peak <= cap)
    return peak <= cap
