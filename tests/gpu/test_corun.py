"""Steps on one card, each in a real child: those that fit run together, an exclusive one alone, and what they
took is learned.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight import Artifact, DataSpec, Params, Run, runtime_option, step
from overnight.gpu.card import Card
from overnight.gpu.ledger.ledger import Ledger
from overnight.memory import history, request
from overnight.orchestration import launcher
from overnight.orchestration.protocol import ChildSpec
from overnight.run import Json

BUDGET = 1024
IMAGES = Artifact(kind="images", path=Path("/made"), digest="d", spec=DataSpec(shape=(1, 2, 2)))


class MeetParams(Params):
    """A step that says that it is there, and goes on when it is told to."""

    place: Path
    name: str = "a"


class TakeParams(Params):
    """A step that needs a MiB for every sample on the card at once, and some for itself."""

    batch: int = 32
    micro_batch: int | None = runtime_option(None, "samples on the card at once")
    own_mib: int = 0
    fails: bool = runtime_option(False, "after it took them")


class Recipe:
    """As much of one as sizes look at."""

    def micro_batches(self, batch: Json, size: int) -> Iterator[Json]:
        """In parts."""
        for start in range(0, len(batch["samples"]), size):
            yield {"samples": batch["samples"][start : start + size]}


@step(gpu=True, vram_mib=448)
def meet(run: Run, params: MeetParams) -> Artifact:
    """Wait until the test has seen it."""
    (params.place / f"here-{params.name}").touch()
    while not (params.place / "go").exists():
        run.progress(0, 1)
        time.sleep(0.01)
    return run.save("met")


@step(gpu=True, recipe=lambda _params, _spec: Recipe(), vram_mib=128)
def take(run: Run, params: TakeParams, images: Artifact) -> Artifact:
    """Allocate as much as the micro-batch wants."""
    import torch

    size = params.micro_batch or params.batch
    held = torch.ones((params.own_mib + size) << 18)
    if params.fails:
        raise ValueError("a bug")
    return run.save(
        "took",
        meta={"micro_batch": params.micro_batch, "budget_mib": run.budget_mib, "mib": held.nbytes >> 20},
    )


@step(gpu=True, vram_mib=64, uncapped=True)
def elsewhere(run: Run, params: MeetParams) -> Artifact:
    """Take 300 MiB that no cap holds: what plays the other programs of the virtual card plays them."""
    import torch

    held = torch.ones(10 << 18)
    (params.place / "other_processes").write_text("300 a pool of its own")
    run.param("held", held.nbytes)
    return run.save("took")


@pytest.fixture
def card(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "cards"))
    return Card(uuid="virtual", name="virtual", total_mib=BUDGET, budget_mib=BUDGET, count=True)


class Child(threading.Thread):
    """A step that runs in a child, asked for and learned from as in a pipeline."""

    def __init__(self, card: Card, name: str, *arguments: object) -> None:
        super().__init__(daemon=True)
        self.card, self.step, self.arguments = card, globals()[name], list(arguments)
        self.asked = request.plan_request(self.step, self.arguments, card)
        self.events: list[Json] = []
        self.stop = launcher.Stop()
        self.folder = launcher.new_folder(name)
        self.start()

    def run(self) -> None:
        spec = ChildSpec(
            step=f"tests.gpu.test_corun:{self.step.name}",
            label=self.folder.name,
            experiment="x",
            arguments=[a.model_dump(mode="json") for a in self.arguments],
            seed=0,
            key="",
            parent=os.getpid(),
            card=self.card,
            request=self.asked,
            uncapped=self.step.uncapped,
        )
        self.result = launcher.run_child(
            self.folder, spec, 1, self.stop, self.events.append, lambda _line: None
        )
        history.record_usage(
            self.step, self.arguments, self.card, self.result, finished=self.result.code == 0
        )

    def end(self):
        self.join()
        return self.result


def until(condition, *running):
    while not (found := condition()):
        assert all(child.is_alive() for child in running), [
            getattr(child, "result", None) for child in running
        ]
        time.sleep(0.02)
    return found


def standing(card, holds):
    return [r for r in Ledger(card.folder, BUDGET).requests() if r.holds == holds]


def took(card, **values):
    child = Child(card, "take", TakeParams(**values), IMAGES)
    return child.asked, child.end()


# ------------------------------------------------------------ side by side


def test_steps_that_fit_run_at_the_same_moment(card, tmp_path):
    both = [Child(card, "meet", MeetParams(place=tmp_path, name=name)) for name in "ab"]
    until(lambda: (tmp_path / "here-a").exists() and (tmp_path / "here-b").exists(), *both)
    assert [r.mib for r in standing(card, True)] == [448, 448]
    (tmp_path / "go").touch()
    assert [child.end().code for child in both] == [0, 0]


def test_an_exclusive_step_runs_alone_with_its_own_amount(card, tmp_path):
    alone = Child(card, "meet", MeetParams(place=tmp_path, name="a", exclusive=True))
    until((tmp_path / "here-a").exists, alone)
    other = Child(card, "meet", MeetParams(place=tmp_path, name="b"))
    until(lambda: any(e["event"] == "log" and "waiting" in e["text"] for e in other.events), alone, other)
    (held,), (waits,) = standing(card, True), standing(card, False)
    assert (held.mib, held.exclusive, waits.mib) == (448, True, 448)
    (tmp_path / "go").touch()
    assert (alone.end().code, other.end().code) == (0, 0)
    assert (alone.result.exclusive, other.result.exclusive) == (True, False)
    assert other.result.wait_s > 0


# ------------------------------------------------------------ what is learned


def test_what_a_step_took_is_told_and_asked_for_next_time(card):
    first, result = took(card, own_mib=20)
    assert (first.mib, first.micro_batch) == (128, 32)
    assert (result.code, result.asked_mib, result.lease_mib, result.cap_mib, result.asked_micro_batch) == (
        0,
        128,
        128,
        128,
        32,
    )
    assert (result.hit_limit, result.out_of_memory) == (False, False)
    assert 52 <= result.peak_mib < 53
    again = request.plan_request(take, [TakeParams(own_mib=20), IMAGES], card)
    assert (again.mib, again.why) == (128, "measured: it needs 52 MiB")


def test_out_of_memory_raises_the_figure_until_it_is_enough(card):
    asked = [took(card, own_mib=200) for _ in range(2)]
    assert [result.code for _, result in asked] == [11, 0]
    assert [result.out_of_memory for _, result in asked] == [True, False]
    assert [ask.mib for ask, _ in asked] == [128, 320]
    assert asked[0][1].peak_mib <= 128 < 232 <= asked[1][1].peak_mib < 233
    assert (
        request.plan_request(take, [TakeParams(own_mib=200), IMAGES], card).why
        == "measured: it needs 232 MiB"
    )


def test_memory_that_no_cap_holds_is_measured_while_its_step_runs_alone(card):
    card.folder.mkdir(parents=True)
    child = Child(card, "elsewhere", MeetParams(place=card.folder))
    result = child.end()
    assert (result.code, child.asked.exclusive, result.exclusive) == (0, True, True)
    assert 300 <= result.device_peak_mib <= 310
    again = request.plan_request(elsewhere, [MeetParams(place=card.folder)], card)
    assert (again.exclusive, again.mib) == (False, 384)


def test_a_step_that_failed_is_told_and_lowers_nothing(card):
    first, result = took(card, fails=True)
    assert (result.code, result.asked_mib, result.lease_mib) == (1, 128, 128)
    assert 32 <= result.peak_mib < 33
    again, _ = took(card, fails=True)
    assert again == first


def test_a_card_that_does_not_count_measures_and_learns_nothing(card):
    plain = card.model_copy(update={"count": False})
    first, result = took(plain)
    assert (result.code, result.lease_mib, result.peak_mib) == (0, 128, None)
    assert took(plain)[0] == first


def test_the_micro_batch_is_that_of_what_was_granted(card):
    shrinks = card.model_copy(update={"policy": "shrink"})
    card.folder.mkdir(parents=True, exist_ok=True)
    (card.folder / "other_processes").write_text("940 ollama")
    asked, result = took(shrinks)
    assert (asked.mib, asked.micro_batch, asked.smaller) == (128, 32, ((64, 8),))
    assert (result.code, result.asked_mib, result.lease_mib, result.asked_micro_batch) == (0, 128, 64, 8)
    assert 8 <= result.peak_mib < 9
    fixed = Child(shrinks, "take", TakeParams(micro_batch=32), IMAGES)
    until(lambda: standing(card, False), fixed)
    (card.folder / "other_processes").unlink()
    assert (fixed.end().lease_mib, fixed.result.micro_batch) == (128, 32)
