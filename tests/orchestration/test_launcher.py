"""A training goes on in a fresh process: after out of memory in the optimizer, and when others want the card."""

import os
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from overnight.errors import DoesNotFit, RestartProcess, Stopped
from overnight.gpu.card import Card
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.monitor import PreemptionPolicy
from overnight.memory.request import MemoryRequest
from overnight.orchestration.launcher import Stop, run_child, run_to_end
from overnight.orchestration.protocol import ChildSpec, StepResult
from overnight.run import RecordingRun
from overnight.training.loop import train
from overnight.training.resume import acquire_checkpoints
from tests.support.steps_checkpointed import LastingParams, lasting_recipe, points
from tests.support.steps_leased import events, notes

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300


@pytest.fixture
def card(checkout, monkeypatch) -> Card:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Card(uuid="virtual", name="virtual", total_mib=1000, budget_mib=1000, policy="yield")


class Parent:
    """Starts the children of one step, as a run does."""

    def __init__(self, folder: Path, card: Card, **values: object) -> None:
        self.folder, self.asked = folder, list[ChildSpec]()
        folder.mkdir()
        params = LastingParams(epochs=4, batch=32, folder=str(folder), **values)
        self.params = params
        self.spec = ChildSpec(
            step="tests.support.steps_checkpointed:lasts", label="lasts", experiment="test",
            arguments=[params.model_dump(mode="json")], seed=5, key="k",
            parent=os.getpid(), card=card, request=MemoryRequest(800, 32),
        )  # fmt: skip
        self.result: StepResult | None = None

    def start(self, spec: ChildSpec) -> StepResult:
        self.asked.append(spec)
        return run_child(self.folder, spec, 1, Stop(), lambda _event: None, lambda _line: None)

    def run(self) -> None:
        self.result = run_to_end(self.start, self.spec)

    def ended_as_undisturbed(self, tmp_path: Path) -> bool:
        plain, run = (
            self.params.model_copy(update={"full_at": 0, "pause_at": 0}),
            RecordingRun(tmp_path, seed=5),
        )
        expected = train(lasting_recipe(plain), run, points()).model.state_dict()
        logged = [
            e["values"]["train/loss"] for e in events(self.folder, "metrics") if "train/loss" in e["values"]
        ]
        assert logged == pytest.approx(run.curve("train/loss"), rel=0, abs=1e-12)
        found = torch.load(self.folder / "weights.pt")
        return all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-12) for name in expected)


def doubled(folder: Path) -> list[tuple[str, int]]:
    """Metrics of the training that came twice for a step."""
    seen = Counter(
        (name, e["step"])
        for e in events(folder, "metrics")
        for name in e["values"]
        if name.startswith(("train/", "val/"))
    )
    return [
        point
        for point, times in seen.items()
        if times > 1 and not point[0].startswith(("train/samples", "train/tflops"))
    ]


@pytest.mark.parametrize(
    ("checkpoint_s", "resumed"),
    [(0, True), (1000, False)],
    ids=["checkpoints", "before the first checkpoint"],
)
def test_out_of_memory_inside_the_optimizer_goes_on_in_a_fresh_child(card, tmp_path, checkpoint_s, resumed):
    parent = Parent(tmp_path / "step", card, full_at=8, checkpoint_s=checkpoint_s)
    parent.run()
    first, second = parent.asked
    assert parent.result.code == 0, parent.result.error
    assert (first.request.micro_batch, second.request.micro_batch) == (32, 16)
    assert first.ticket is None
    assert second.ticket == parent.result.ticket > 0
    assert parent.result.out_of_memory
    assert (parent.result.asked_micro_batch, parent.result.micro_batch) == (32, 16)
    assert any("goes on in a fresh process" in text for text in notes(parent.folder))
    assert any("goes on after optimizer step 7 of 20" in text for text in notes(parent.folder)) == resumed
    assert doubled(parent.folder) == []
    assert parent.ended_as_undisturbed(tmp_path)


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_step_yields_to_other_programs_and_goes_on_at_its_place_when_they_are_gone(card, tmp_path):
    parent = Parent(tmp_path / "step", card, pause_at=9, checkpoint_s=1000)
    ledger, foreign = Ledger(card.folder, card.budget_mib), card.folder / "other_processes"
    done = threading.Event()
    step = threading.Thread(target=parent.run)
    waiter = threading.Thread(target=_wait_in_line, args=(ledger, done))
    step.start()
    try:
        wait_for((parent.folder / "paused").exists)
        (holder,) = ledger.requests()
        waiter.start()
        wait_for(lambda: len(ledger.requests()) == 2)
        foreign.write_text("500 a game\n")
        wait_for(lambda: len(parent.asked) == 2 and len([r for r in ledger.requests() if not r.holds]) == 2)
        line = ledger.requests()
        assert [r.ticket == holder.ticket for r in line] == [True, False]
        assert ledger.held_mib() == 0
    finally:
        done.set()
        foreign.unlink(missing_ok=True)
        step.join(PATIENCE_S)
        waiter.join(PATIENCE_S)
    assert parent.result.code == 0, parent.result.error
    assert not parent.result.out_of_memory
    written = notes(parent.folder)
    assert any("other programs use 500 of the card's 1000 MiB" in text for text in written)
    assert any("goes on after optimizer step 9 of 20" in text for text in written)
    assert doubled(parent.folder) == []
    assert parent.ended_as_undisturbed(tmp_path)


def _wait_in_line(ledger: Ledger, done: threading.Event) -> None:
    with suppress(Stopped):
        ledger.acquire(700, {"step": "another"}, should_stop=done.is_set, overuse=lambda: 500).release()


@pytest.mark.slow
def test_a_training_whose_optimizer_never_has_room_ends(tmp_path):
    """In processes that follow each other, each with what the one before left: not for ever."""
    params, sizes = LastingParams(epochs=1, batch=32, folder=str(tmp_path)), []

    def attempt(size):
        recipe = lasting_recipe(params.model_copy(update={"micro_batch": size}))

        class Full(torch.optim.SGD):
            def step(self, closure=None):
                raise torch.OutOfMemoryError("made up")

        run = RecordingRun(tmp_path, seed=5)
        run.restarts, run.checkpoints = True, tmp_path / "checkpoints"
        recipe = type(recipe)(**{**vars(recipe), "optimizer": lambda model: Full(model.parameters(), lr=0.1)})
        try:
            train(recipe, run, points())
        finally:
            sizes.append(run.micro_batch)

    for _ in range(6):
        with pytest.raises(RestartProcess):
            attempt(sizes[-1] if sizes else 32)
    with pytest.raises(DoesNotFit, match="one sample at a time"):
        attempt(sizes[-1])
    assert sizes == [16, 8, 4, 2, 1, 1, 1]


def test_what_one_child_left_the_next_begins_with():
    request = MemoryRequest(800, 32, smaller=((500, 16), (300, 8)))
    spec = ChildSpec.model_construct(request=request, ticket=None)
    asked = spec.after(StepResult(code=RestartProcess.child_code, ticket=77, micro_batch=16))
    assert (asked.ticket, asked.request) == (77, MemoryRequest(800, 16, smaller=((300, 8),)))


def test_what_both_children_took_is_the_step_s():
    before = StepResult(
        code=15,
        wait_s=1,
        run_s=2,
        peak_mib=30,
        asked_micro_batch=32,
        out_of_memory=True,
        hit_limit=True,
        uncapped=("cupy",),
    )
    after = StepResult(
        code=0, wait_s=10, run_s=20, peak_mib=20, asked_micro_batch=16, micro_batch=16, device_peak_mib=5
    )
    both = before.followed_by(after)
    assert (both.code, both.wait_s, both.run_s, both.peak_mib, both.device_peak_mib) == (0, 11, 22, 30, 5)
    assert (both.asked_micro_batch, both.micro_batch, both.out_of_memory, both.hit_limit, both.uncapped) == (
        32,
        16,
        True,
        True,
        ("cupy",),
    )


def test_checkpoints_stay_for_a_fresh_process_also_before_the_first(checkout, tmp_path):
    run = RecordingRun(tmp_path)

    def leaves():
        with acquire_checkpoints(run, "key", "a step"):
            (run.checkpoints / "0").mkdir()
            (run.checkpoints / "0" / "plan").touch()
            raise RestartProcess("made up")

    with pytest.raises(RestartProcess):
        leaves()
    assert (run.checkpoints / "0" / "plan").exists()


def request(ticket: int, mib: int) -> Request:
    return Request(Path("/nowhere"), True, ticket, mib, 1)


def test_who_came_last_goes_first_and_only_after_a_while(card):
    held = [request(1, 400), request(2, 300)]

    def yields(ticket, foreign, samples=3):
        preemption = PreemptionPolicy(card, ticket, samples=3)
        for _ in range(samples):
            preemption.observe(held, foreign)
        return bool(preemption.reason)

    assert not yields(2, 300)  # it all fits
    assert yields(2, 301)
    assert not yields(1, 301)
    assert not yields(1, 600)
    assert yields(1, 601)
    assert not yields(2, 301, samples=2)


def test_a_moment_is_no_reason_to_go(card):
    preemption = PreemptionPolicy(card, 1, samples=3)
    for foreign in (900, 900, 0, 900, 900, None, 0):
        preemption.observe([request(1, 400)], foreign)
    assert not preemption.reason
