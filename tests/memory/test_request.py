"""Memory requests: they converge to the need, never fall below what was too little, and give reasons."""

import random
from dataclasses import dataclass

import pytest

from overnight import DataSpec
from overnight.data.entry import Entry
from overnight.data.file_set import DataFile
from overnight.errors import DoesNotFit
from overnight.gpu.card import Card
from overnight.gpu.memory_limit import NEAR
from overnight.memory import history, request
from overnight.memory.prediction import MemoryEstimate
from overnight.memory.request import micro_batches
from overnight.memory.subprocess import splittable
from overnight.memory.usage import Usage
from tasks.shared.program import ProgramParams, run_program
from tests.support.steps_sized import (
    BUDGET,
    IMAGES,
    NetParams,
    PlainParams,
    card,
    cupy,
    ended,
    given,
    graph,
    net,
    plain,
    silent,
)

__all__ = ["card"]


def between(low, high):
    """A prediction with these edges, for every micro-batch."""
    return lambda size: MemoryEstimate(
        micro_batch=size, mib=high, low_mib=low, high_mib=high, needed_mib=high
    )


def in_proportion(size):
    """100 to 200 MiB a sample."""
    return between(100.0 * size, 200.0 * size)(size)


# ---------------------------------------------------------------------- what is asked


def test_without_knowledge_the_declared_amount_is_asked_for_the_whole_batch(card):
    asked = request.plan_request(net, given(), card)
    assert (asked.mib, asked.micro_batch, asked.exclusive, asked.smaller) == (2048, 64, False, ())
    assert "declared" in asked.why


def test_a_declared_amount_above_the_budget_shrinks_with_the_micro_batch(card):
    small = card.model_copy(update={"budget_mib": 1000})
    asked = request.plan_request(net, given(), small)
    assert asked.micro_batch == 16  # 2048 * (1/4 + 3/4 * 16/64) = 896; with 32 it would be 1280
    assert asked.mib == 896
    assert (
        request.plan_request(net, given(), card.model_copy(update={"budget_mib": 300})).mib == 300
    )  # perhaps: it is not known not to fit


def test_the_band_of_a_prediction_decides_before_the_declared_amount(card):
    asked = request.plan_request(net, given(), card, in_proportion)
    assert (asked.micro_batch, asked.mib) == (32, 6400)
    assert "predicted: 3,200 to 6,400" in asked.why
    assert (
        request.plan_request(net, given(spec=DataSpec()), card, in_proportion).mib == 2048
    )  # unknown data: nothing to predict from


def test_a_measurement_decides_before_a_prediction(card):
    assert ended(card, net, given(), request.plan_request(net, given(), card), 1000)
    asked = request.plan_request(net, given(), card, between(1.0, 2.0))
    assert (asked.mib, asked.micro_batch) == (1152, 64)
    assert NEAR * asked.mib > 1000  # an equal run does not come near its cap


@pytest.mark.parametrize(("batch", "sizes_"), [
    (64, [64, 32, 16, 8, 4, 2, 1]),
    (96, [96, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1]),
    (101, [101, 51, 26, 13, 7, 4, 2, 1]),
])  # fmt: skip
def test_also_a_batch_that_nothing_divides_has_micro_batches_to_choose_from(card, batch, sizes_):
    assert micro_batches(batch) == sizes_
    asked = request.plan_request(net, given(NetParams(batch=batch)), card, in_proportion)
    assert asked.micro_batch == max(n for n in sizes_ if 200 * n < BUDGET)


def test_a_training_that_went_on_with_the_larger_halves_says_which_failed(card):
    used = Usage(
        asked_micro_batch=101,
        micro_batch=26,
        cap_mib=2048,
        lease_mib=2048,
        peak_mib=2048,
        out_of_memory=True,
        hit_limit=True,
    )
    history.record_usage(net, given(NetParams(batch=101)), card, used, finished=True)
    tight = card.model_copy(update={"budget_mib": 2048})
    assert request.plan_request(net, given(NetParams(batch=101)), tight).micro_batch == 26


def test_a_micro_batch_that_a_user_set_is_never_changed(card):
    fixed = given(NetParams(batch=64, micro_batch=24))
    asked = request.plan_request(net, fixed, card.model_copy(update={"budget_mib": 1000}))
    assert (asked.micro_batch, asked.mib, asked.smaller) == (24, 1000, ())
    with pytest.raises(DoesNotFit, match="leave out micro_batch"):
        request.plan_request(net, fixed, card, between(9000.0, 9999.0))


def test_a_step_that_says_nothing_gets_the_whole_budget_until_it_is_measured(card):
    asked = request.plan_request(silent, [PlainParams()], card)
    assert (asked.mib, asked.micro_batch) == (BUDGET, None)
    ended(card, silent, [PlainParams()], asked, 500)
    assert request.plan_request(silent, [PlainParams()], card).mib == 576


def test_what_cannot_be_cut_has_no_micro_batch(card):
    assert [splittable(one.recipe(None, None)) for one in (net, graph)] == [True, False]
    whole = MemoryEstimate(micro_batch=64, mib=100, high_mib=100, needed_mib=100, whole=True)
    asked = request.plan_request(graph, given(), card, {64: whole}.__getitem__)
    assert (asked.mib, asked.micro_batch) == (128, None)
    history.add_prediction(card, history.step_key(graph, given()), whole)
    assert request.plan_request(graph, given(), card, pytest.fail) == asked


def test_what_is_known_not_to_fit_is_refused_with_what_to_change(card, monkeypatch):
    with pytest.raises(
        DoesNotFit, match=r"micro_batch 1 does not fit.*9,000.*budget is 8192.*bf16.*VIRTUAL_MIB higher"
    ):
        request.plan_request(net, given(), card, between(9000.0, 9999.0))
    with pytest.raises(DoesNotFit, match=r"plain does not fit.*2,048.*budget is 1000"):
        request.plan_request(plain, [PlainParams()], card.model_copy(update={"budget_mib": 1000}))
    monkeypatch.setenv("OVERNIGHT_BUDGET_MIB", "1000")
    with pytest.raises(DoesNotFit, match="set OVERNIGHT_BUDGET_MIB higher"):
        request.plan_request(plain, [PlainParams()], card.model_copy(update={"budget_mib": 1000}))
    monkeypatch.delenv("OVERNIGHT_BUDGET_MIB")
    with pytest.raises(DoesNotFit, match="set OVERNIGHT_RESERVE_MIB lower"):
        request.plan_request(
            plain, [PlainParams()], card.model_copy(update={"budget_mib": 1000, "uuid": "GPU-1"})
        )
    assert request.plan_request(net, given(), card, between(8000.0, 9999.0)) == request.MemoryRequest(
        8192, 1, why="predicted: 8,000 to 9,999 MiB"
    )
    for _ in range(3):  # 2048, 4160 and 8192 MiB
        ended(card, plain, [PlainParams()], request.plan_request(plain, [PlainParams()], card), 9000)
    with pytest.raises(DoesNotFit, match="measured: it needs 8,193 MiB or more"):
        request.plan_request(plain, [PlainParams()], card)


def test_with_the_policy_shrink_smaller_amounts_are_offered(card):
    asked = request.plan_request(net, given(), card.model_copy(update={"policy": "shrink"}))
    assert asked.smaller[:3] == ((1280, 32), (896, 16), (704, 8))
    assert sorted(asked.smaller, reverse=True) == list(asked.smaller)
    assert len({mib for mib, _ in asked.smaller}) == len(asked.smaller)


def test_the_figure_is_of_the_shapes_and_not_of_the_content_or_the_seed(card):
    ended(card, net, given(), request.plan_request(net, given(), card), 1000)
    assert request.plan_request(net, given(digest="other"), card).mib == 1152
    assert request.plan_request(net, given(NetParams(batch=64, exclusive=True)), card).mib == 1152
    assert request.plan_request(net, given(NetParams(batch=64, width=9)), card).mib == 2048
    assert (
        request.plan_request(net, given(spec=IMAGES.model_copy(update={"shape": (3, 9, 9)})), card).mib
        == 2048
    )
    one, other = (
        Entry(name="x", kind="table", reader="csv", files=[DataFile(path="a.csv", sha256=c * 64)])
        for c in "ab"
    )
    assert plain.memory_key([PlainParams(), one]) == plain.memory_key([PlainParams(), other])
    assert plain.memory_key([PlainParams(), one]) != plain.memory_key(
        [PlainParams(), one.model_copy(update={"name": "y"})]
    )


# ---------------------------------------------------------------------- history


@dataclass
class Night:
    """A step whose need is hidden from the planner."""

    card: Card
    needs: dict[int, int]  # micro-batch: MiB
    batch: int = 64

    def run(self, share=1.0):
        """(came through, micro-batch, cap) of one run that needs `share` of the most it ever needs."""
        arguments = given(NetParams(batch=self.batch))
        asked = request.plan_request(net, arguments, self.card)
        assert asked.mib <= self.card.budget_mib
        return (
            ended(self.card, net, arguments, asked, self.needs[asked.micro_batch] * share),
            asked.micro_batch,
            asked.mib,
        )


@pytest.mark.parametrize("seed", range(12))
def test_the_size_converges_to_the_need_whatever_it_is(card, seed):
    random_ = random.Random(seed)
    fixed, slope = random_.uniform(1, 3000), random_.uniform(1, 400)
    night = Night(card, {n: int(fixed + slope * n) for n in (1, 2, 4, 8, 16, 32, 64)})
    fits = max(n for n, need in night.needs.items() if need <= BUDGET)
    story = [night.run() for _ in range(25)]
    assert all(came_through for came_through, *_ in story[15:]), story
    _, size, mib = story[-1]
    assert len(set(story[-5:])) == 1
    assert mib >= night.needs[size]
    assert mib <= max(night.needs[size] * 1.25, night.needs[size] + 64) + 65
    assert size == fits or night.needs[size * 2] > 0.9 * BUDGET


@pytest.mark.parametrize("seed", range(12))
def test_no_sequence_of_runs_lets_a_cap_that_was_met_be_asked_again(card, seed):
    """The need varies from run to run, as with images of many sizes: failures are bounded, each raises it."""
    random_ = random.Random(seed)
    night, met = Night(card, dict.fromkeys((1, 2, 4, 8, 16, 32, 64), random_.randint(500, 7000))), 0
    failures = 0
    for _ in range(100):
        came_through, size, mib = night.run(random_.choice([0.1, 0.4, 0.5, 1.0, random_.uniform(0.1, 1)]))
        if size == 64:
            assert mib > met
            met = met if came_through else mib
        failures += not came_through
    assert failures <= 20  # from a tenth of the need to all of it, by 1/8 or more each time


def test_a_training_that_went_on_with_less_says_what_failed_and_what_fits(card):
    """It began with 64 samples and came through with 16."""
    used = Usage(
        asked_micro_batch=64,
        micro_batch=16,
        cap_mib=2048,
        lease_mib=2048,
        peak_mib=2048,
        out_of_memory=True,
        hit_limit=True,
    )
    history.record_usage(net, given(), card, used, finished=True)
    assert (
        request.plan_request(net, given(), card).micro_batch,
        request.plan_request(net, given(), card).mib,
    ) == (64, 4160)
    tight = card.model_copy(update={"budget_mib": 2048})
    assert (
        request.plan_request(net, given(), tight).micro_batch,
        request.plan_request(net, given(), tight).mib,
    ) == (16, 2048)
    ended(tight, net, given(), request.plan_request(net, given(), tight), 1000)
    assert (
        request.plan_request(net, given(), tight).micro_batch,
        request.plan_request(net, given(), tight).mib,
    ) == (16, 1152)


def test_a_training_that_came_through_as_it_began_is_not_refused_the_next_time(card):
    """Memory ran out in an evaluation, which was done again in slices."""
    tight = card.model_copy(update={"budget_mib": 8})
    used = Usage(
        asked_micro_batch=1,
        micro_batch=1,
        cap_mib=8,
        lease_mib=8,
        peak_mib=8,
        out_of_memory=True,
        hit_limit=True,
    )
    arguments = given(NetParams(batch=64, micro_batch=1))
    history.record_usage(net, arguments, tight, used, finished=True)
    assert (
        request.plan_request(net, arguments, tight).micro_batch,
        request.plan_request(net, arguments, tight).mib,
    ) == (1, 8)
    assert request.plan_request(net, arguments, card).mib > 8
    history.record_usage(net, arguments, tight, used, finished=False)
    with pytest.raises(DoesNotFit):
        request.plan_request(net, arguments, tight)


def test_a_training_that_resumed_with_less_measures_what_it_ran_with(card):
    used = Usage(asked_micro_batch=64, micro_batch=16, cap_mib=2048, lease_mib=2048, peak_mib=500)
    history.record_usage(net, given(), card, used, finished=True)
    assert "measured" not in request.plan_request(net, given(), card).why
    assert (
        "measured: it needs 500"
        in request.plan_request(net, given(NetParams(batch=64, micro_batch=16)), card).why
    )


def test_what_a_smaller_micro_batch_needs_a_larger_one_needs_as_well(card):
    used = Usage(asked_micro_batch=64, micro_batch=16, cap_mib=2048, lease_mib=2048, peak_mib=500)
    history.record_usage(net, given(), card, used, finished=True)
    assert (
        request.plan_request(net, given(), card, between(10.0, 20.0)).mib == 576
    )  # the prediction knows less than the measurement


def test_a_micro_batch_between_two_that_ran_is_tried_if_it_may_fit(card):
    """16 were too many for the card, 4 take 1000 MiB: 8 may take a share of what is declared."""
    cap = {"cap_mib": BUDGET, "lease_mib": BUDGET}
    arguments = given(NetParams(batch=16))
    history.record_usage(
        net,
        arguments,
        card,
        Usage(asked_micro_batch=16, micro_batch=16, out_of_memory=True, **cap),
        finished=False,
    )
    history.record_usage(
        net, arguments, card, Usage(asked_micro_batch=4, micro_batch=4, peak_mib=1000, **cap), finished=True
    )
    asked = request.plan_request(net, arguments, card)
    assert (asked.micro_batch, asked.mib) == (8, 1280)
    assert asked.why == "declared: 2,048 MiB for all 16 samples at once"


def test_a_run_that_came_near_its_cap_only_raises(card):
    before = request.plan_request(plain, [PlainParams()], card).mib
    ended(card, plain, [PlainParams()], request.plan_request(plain, [PlainParams()], card), 0.96 * before)
    assert request.plan_request(plain, [PlainParams()], card).mib >= 1.25 * before


def test_a_clean_run_lowers_and_the_largest_of_the_last_counts(card):
    for peak in (1500, 300, 300, 300, 300):
        ended(card, plain, [PlainParams()], request.plan_request(plain, [PlainParams()], card), peak)
        assert request.plan_request(plain, [PlainParams()], card).mib == 1728
    ended(card, plain, [PlainParams()], request.plan_request(plain, [PlainParams()], card), 300)
    assert request.plan_request(plain, [PlainParams()], card).mib == 384


def test_a_run_that_filled_the_whole_budget_takes_a_smaller_micro_batch_if_there_is_one(card):
    tight = card.model_copy(update={"budget_mib": 2048})
    ended(tight, net, given(), request.plan_request(net, given(), tight), 2000)
    assert request.plan_request(net, given(), tight).micro_batch == 32
    ended(tight, plain, [PlainParams()], request.plan_request(plain, [PlainParams()], tight), 2000)
    assert request.plan_request(plain, [PlainParams()], tight).mib == 2048


def test_a_run_that_failed_or_was_not_counted_lowers_nothing(card):
    asked = request.plan_request(plain, [PlainParams()], card)
    used = Usage(cap_mib=asked.mib, peak_mib=10.0)
    history.record_usage(plain, [PlainParams()], card, used, finished=False)
    history.record_usage(
        plain, [PlainParams()], card, used.model_copy(update={"peak_mib": None}), finished=True
    )
    history.record_usage(
        plain, [PlainParams()], card.model_copy(update={"count": False}), used, finished=True
    )
    assert request.plan_request(plain, [PlainParams()], card) == asked


def test_a_card_that_others_filled_does_not_raise_the_figure(card):
    real = Card(uuid="GPU-1", name="real", total_mib=BUDGET + 1024, budget_mib=BUDGET)
    used = Usage(
        cap_mib=1448, peak_mib=700.0, out_of_memory=True, hit_limit=True, other_processes_peak_mib=3000.0
    )
    history.record_usage(plain, [PlainParams()], real, used, finished=False)
    assert request.plan_request(plain, [PlainParams()], real).mib == 2048
    history.record_usage(
        plain,
        [PlainParams()],
        real,
        used.model_copy(update={"other_processes_peak_mib": 500.0}),
        finished=False,
    )
    assert request.plan_request(plain, [PlainParams()], real).mib > 2048


def test_memory_that_no_cap_holds_makes_a_step_run_alone_until_it_is_measured(card):
    first = request.plan_request(cupy, [PlainParams()], card)
    assert first.exclusive
    ended(card, cupy, [PlainParams()], first, 100, device_peak_mib=1500.0)
    assert request.plan_request(cupy, [PlainParams()], card) == request.MemoryRequest(
        1728, why="measured: the whole card held 1,500 MiB more while it ran alone"
    )
    ended(
        card,
        plain,
        [PlainParams()],
        request.plan_request(plain, [PlainParams()], card),
        100,
        uncapped=("cupy",),
    )
    assert request.plan_request(plain, [PlainParams()], card).exclusive  # found out while it ran


def test_a_program_declares_and_then_asks_for_what_it_took(card):
    asked = [ProgramParams(command="mine", vram_mib=2000)]
    first = request.plan_request(run_program, asked, card)
    assert (first.mib, first.exclusive) == (2000 + -2000 % request.ROUND_MIB, True)
    used = {"cap_mib": BUDGET, "lease_mib": 2000, "exclusive": True, "uncapped": ("the program",)}
    taken = Usage(**used, peak_mib=2600, device_peak_mib=2600)
    history.record_usage(run_program, asked, card, taken, finished=True)
    for declared in (2000, None, 5000):  # what was measured wins
        again = [ProgramParams(command="mine", vram_mib=declared)]
        assert request.plan_request(run_program, again, card) == request.MemoryRequest(
            2944, why="measured: it needs 2,600 MiB"
        )
    none = [ProgramParams(command="mine", vram_mib=0)]
    assert request.plan_request(run_program, none, card).mib == 0
    other = [ProgramParams(command="other")]
    assert request.plan_request(run_program, other, card).mib == BUDGET
    with pytest.raises(DoesNotFit, match="declared: 9,000 MiB"):
        request.plan_request(run_program, [ProgramParams(command="large", vram_mib=9000)], card)


def test_a_program_that_took_nothing_shares_the_card(card):
    asked = [ProgramParams(command="mine")]
    assert request.plan_request(run_program, asked, card).exclusive
    taken = Usage(cap_mib=BUDGET, peak_mib=0, device_peak_mib=0, exclusive=True, uncapped=("the program",))
    history.record_usage(run_program, asked, card, taken, finished=True)
    again = request.plan_request(run_program, asked, card)
    assert (again.mib, again.exclusive) == (request.LEAST_MARGIN_MIB, False)
