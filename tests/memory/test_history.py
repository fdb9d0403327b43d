"""The history of a card: what decides is never lost, what is torn or odd is passed over."""

import os
import random

import pytest

from overnight.memory import history, request
from overnight.memory.history import History
from overnight.memory.prediction import MemoryEstimate
from overnight.memory.usage import Usage
from overnight.orchestration.protocol import StepResult
from tests.support.steps_sized import PlainParams, card, ended, plain

__all__ = ["card"]


def lines_of(card):
    return (card.folder / "history.jsonl").read_bytes().split(b"\n")[1:]


ODD = [
    b"x",
    b"7",
    b"[]",
    b'{"step":',
    b'{"step":"s","family":"f","used":{"cap_mib":"much"}}',
    b'{"step":"s","family":"f","used":{"cap_mib":-9,"out_of_memory":true}}',
    b'{"step":"s","version":"v","estimate":{"mib":NaN}}',
    b'{"step":"s","version":"v","estimate":{"mib":1e300}}',
    b"[" * 9999,
    b"\xff\x00",
]


def test_torn_and_odd_lines_are_passed_over(card):
    asked = request.plan_request(plain, [PlainParams()], card)
    ended(card, plain, [PlainParams()], asked, 1000)
    step = history.step_key(plain, [PlainParams()]).encode()
    (line,) = lines_of(card)
    with (card.folder / "history.jsonl").open("ab") as file:
        for odd in [*(odd.replace(b'"s"', b'"%s"' % step) for odd in ODD), line[:-9]]:
            file.write(b"\n" + odd)
    assert request.plan_request(plain, [PlainParams()], card).mib == 1152
    ended(card, plain, [PlainParams()], request.plan_request(plain, [PlainParams()], card), 1100)
    assert request.plan_request(plain, [PlainParams()], card).mib > 1152
    assert len(History(card).lines) == 2


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_is_no_figure_poisons_nothing(card, odd):
    history.add_prediction(card, "step", MemoryEstimate(micro_batch=1, mib=odd))
    used = Usage(cap_mib=512).model_copy(update={"peak_mib": odd})
    history.record_usage(plain, [PlainParams()], card, used, finished=True)
    assert History(card).lines == []
    assert request.plan_request(plain, [PlainParams()], card).mib == 2048


def test_a_prediction_is_found_again_by_the_code_that_made_it(card, monkeypatch):
    known = MemoryEstimate(64, 10.25, 9.5, 20.5, 20.5, parts={"weights": 1.5})
    history.add_prediction(card, "step", known)
    history.add_prediction(card, "step", MemoryEstimate(micro_batch=1, unknown="it reads a value"))
    assert History(card).prediction("step", 64) == known
    assert History(card).prediction("step", 1).unknown == "it reads a value"
    assert History(card).prediction("step", 2) is None
    assert History(card).prediction("other", 64) is None
    with monkeypatch.context() as patched:
        patched.setattr(history, "version", lambda: "newer")
        assert History(card).prediction("step", 64) is None


def test_a_long_history_keeps_what_decides(card, monkeypatch):
    """A cap that was too small, long ago, for a step that still runs; steps that do not run go first."""
    monkeypatch.setattr(history, "LIMIT_BYTES", 20_000)
    for rows in range(100, 200):
        ended(card, plain, [PlainParams(rows=rows)], request.MemoryRequest(512), 10)
    ended(card, plain, [PlainParams()], request.MemoryRequest(2000), 9999)
    for _ in range(300):
        ended(card, plain, [PlainParams()], request.MemoryRequest(4000), 100)
    assert (card.folder / "history.jsonl").stat().st_size < 21_000
    assert request.plan_request(plain, [PlainParams()], card).mib > 2000
    assert History(card).runs(history.step_key(plain, [PlainParams(rows=100)])) == []
    assert request.plan_request(plain, [PlainParams(rows=199)], card).mib == 128


def at_once(card, write):
    """Three processes that record runs of one step."""
    children = []
    for seed in range(3):
        if not (pid := os.fork()):
            for number in range(40):
                write(random.Random(100 * seed + number))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 3
    return History(card).runs(history.step_key(plain, [PlainParams()]))


def test_processes_that_write_at_once_lose_no_line(card):
    def write(draw):
        ended(card, plain, [PlainParams()], request.MemoryRequest(512), draw.randint(1, 400))

    assert len(at_once(card, write)) == 120


def test_nor_do_they_lose_what_decides_while_the_file_is_written_anew(card, monkeypatch):
    monkeypatch.setattr(history, "LIMIT_BYTES", 9000)

    def write(draw):
        ended(card, plain, [PlainParams()], request.MemoryRequest(draw.randint(100, 5000)), 2500)

    kept = at_once(card, write)
    assert len(kept) < 60
    assert max(run.cap_mib for run in kept if run.out_of_memory) == max(
        cap
        for cap in (random.Random(100 * seed + n).randint(100, 5000) for seed in range(3) for n in range(40))
        if cap < 2500
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_is_thrown_away_lowers_no_figure_to_a_cap_that_was_too_small(card, monkeypatch, seed):
    monkeypatch.setattr(history, "LIMIT_BYTES", 16_000)
    draw, highest = random.Random(seed), 0
    for _ in range(150):
        cap = draw.randint(100, 4000)
        need = draw.choice([cap * 0.5, cap * 0.5, cap, cap * 2])
        came_through = ended(card, plain, [PlainParams()], request.MemoryRequest(cap), need)
        highest = highest if came_through else max(highest, cap)
        assert request.plan_request(plain, [PlainParams()], card).mib > highest
    assert (card.folder / "history.jsonl").stat().st_size < 17_000


def test_the_result_of_a_step_is_recorded_without_what_is_no_usage(card):
    took = StepResult(code=0, ticket=10**12, error="x", cap_mib=2048, peak_mib=1000, run_s=3.5)
    history.record_usage(plain, [PlainParams()], card, took, finished=True)
    assert History(card).runs(history.step_key(plain, [PlainParams()])) == [
        Usage(cap_mib=2048, peak_mib=1000, run_s=3.5, finished=True)
    ]
    assert request.plan_request(plain, [PlainParams()], card).mib == 1152
