"""Memory requests by formulas, and by predictions calibrated with other micro-batches and the family."""

from dataclasses import replace

import pytest

from overnight import Artifact, Run, step
from overnight.data.entry import Entry
from overnight.data.file_set import DataFile
from overnight.memory import history, request
from overnight.memory.formulas import Formula
from overnight.memory.history import History
from overnight.memory.prediction import MemoryEstimate
from overnight.memory.request import calibrated
from overnight.memory.usage import Usage
from tasks.tabular.memory import joined
from tests.support.steps_sized import BUDGET, NetParams, PlainParams, card, ended, given, net

__all__ = ["card"]


# ---------------------------------------------------------------------- formulas


ROWS = Entry(
    name="rows",
    kind="table",
    reader="csv",
    options={"tables": {"rows": "rows.csv"}},
    files=[DataFile(path="rows.csv", bytes=2**20)],
)
REAL = {"uuid": "GPU-1", "total_mib": BUDGET + 1024}


@step(gpu=True, vram_mib=2048, peak=lambda _params, data: joined(data))
def tables(run: Run, params: PlainParams, data: Entry) -> Artifact:
    """Joined on the card where there is RAPIDS."""


def test_what_the_processor_computes_asks_for_nothing_of_the_card(card):
    tiny = card.model_copy(update={"budget_mib": 10})
    for found in (
        request.plan_request(tables, [PlainParams(), ROWS], tiny),
        request.plan_request(tables, [PlainParams(), ROWS], card.model_copy(update=REAL)),
    ):
        assert found == request.MemoryRequest(0, why="it runs on the processor here: nothing of the card")


@pytest.mark.parametrize(("low", "high", "mib"), [(1.0, 3.0, 64), (100.0, 300.0, 320), (0.0, 0.0, 0)])
def test_a_formula_decides_before_the_declared_amount(card, low, high, mib):
    @step(gpu=True, vram_mib=2048, peak=lambda _params: (low, high))
    def counted(run: Run, params: PlainParams) -> Artifact:
        """Never run here."""

    assert request.plan_request(counted, [PlainParams()], card).mib == mib
    unknown = Formula(needs="", unknown="not known")
    assert (
        request.plan_request(
            step(gpu=True, vram_mib=2048, peak=lambda _params: unknown)(counted.body), [PlainParams()], card
        ).mib
        == 2048
    )


# ---------------------------------------------------------------------- predictions and measurements


def prediction_and_need(off=1.0, more=0.0, margin=0.1):
    """A prediction of 20 MiB and 10 a sample, and the true need: that times `off`, and `more` MiB."""
    mid = lambda size: 20 + 10.0 * size

    def predict(size):
        low, high = mid(size) * (1 - margin), mid(size) * (1 + margin)
        return MemoryEstimate(micro_batch=size, mib=mid(size), low_mib=low, high_mib=high, needed_mib=high)

    return predict, lambda size: mid(size) * off + more


def nights(card, predict, need, first=None, count=6):
    """The micro-batches of some nights; the first may be given, as if granted the smallest amount."""
    found = []
    for _ in range(count):
        asked = first or request.plan_request(net, given(), card, predict)
        first = None
        ended(card, net, given(), asked, need(asked.micro_batch))
        found.append(asked.micro_batch)
    return found


@pytest.mark.parametrize(
    ("off", "more"), [(1.0, 0.0), (0.7, 0.0), (1.0, -10.0), (1.3, 0.0), (1.0, 60.0), (0.8, 40.0), (2.5, 0.0)]
)
@pytest.mark.parametrize("budget", [200, 400, 520, 900])
def test_nights_end_with_the_largest_that_fits_by_prediction_and_in_truth(card, off, more, budget):
    """An upper edge that is too high is believed; one that is too low is found out."""
    predict, need = prediction_and_need(off, more)
    tight = card.model_copy(update={"budget_mib": budget})
    sizes = (1, 2, 4, 8, 16, 32, 64)
    truth = max(n for n in sizes if max(need(n) * 1.09, predict(n).high_mib) < budget)
    found = nights(tight, predict, need)
    assert found[-1] >= truth
    assert need(found[-1]) <= budget


def test_a_neighbour_that_made_it_small_once_does_not_keep_it_small(card):
    """It was content with one sample, because others held the card: 64 MiB in place of 1,024."""
    predict, need = prediction_and_need(0.7)
    small = request.MemoryRequest(64, 1)
    assert nights(card, predict, need, first=small)[1:] == [64] * 5
    asked = request.plan_request(net, given(), card, predict)
    assert "measured" in asked.why
    assert nights(card, None, need, first=small, count=2)[1] == 64  # without any prediction as well


def test_a_stored_prediction_takes_the_place_of_a_trace(card):
    predict, _need = prediction_and_need()
    history.add_prediction(card, history.step_key(net, given()), predict(64))
    asked = request.plan_request(net, given(), card, pytest.fail)
    assert (asked.micro_batch, asked.mib, asked.why) == (64, 768, "predicted: 594 to 726 MiB")
    assert asked.usage() == {
        "asked_mib": 768,
        "predicted_mib": 660,
        "predicted_low_mib": pytest.approx(594),
        "predicted_high_mib": pytest.approx(726),
    }


def test_data_that_lay_on_the_card_for_speed_alone_are_asked_for_and_refuse_nothing(card):
    """At 32 samples 340 MiB of a training, and 150 of data that went where there was room."""
    predict, need = prediction_and_need()
    used = Usage(
        asked_micro_batch=32,
        micro_batch=32,
        cap_mib=1024,
        lease_mib=1024,
        peak_mib=need(32) + 150,
        predicted_mib=predict(32).mib,
        resident_mib=150,
    )
    history.record_usage(net, given(), card, used, finished=True)
    assert [run.prediction_error for run in History(card).family("net")] == [0]
    fixed = given(NetParams(batch=64, micro_batch=32))
    assert (
        request.plan_request(net, fixed, card, predict).mib == 576
    )  # 490, and room so that an equal run is not near its cap
    assert request.plan_request(net, fixed, card.model_copy(update={"budget_mib": 400}), predict).mib == 400
    asked = request.plan_request(net, given(), card.model_copy(update={"budget_mib": 750}), predict)
    assert (asked.micro_batch, asked.why) == (64, "predicted: 594 to 726 MiB")


# ---------------------------------------------------------------------- families

BAND = MemoryEstimate(mib=100, low_mib=80, high_mib=130, needed_mib=120)


def runs(card, *errors, predicted=100.0):
    for error in errors:
        used = Usage(cap_mib=9999, peak_mib=predicted * (1 + error), predicted_mib=predicted)
        history.record_usage(net, given(), card, used, finished=True)
    return History(card).family("net")


def test_the_errors_of_a_family_move_the_edges_outwards(card):
    assert calibrated(BAND, []) == BAND
    assert calibrated(BAND, runs(card, 0.01, -0.02)) == BAND
    worse = calibrated(BAND, runs(card, 0.5, -0.4))
    assert (worse.low_mib, worse.high_mib, worse.mib) == pytest.approx((59, 151, 100))
    assert worse.needed_mib == pytest.approx(
        BAND.needed_mib + 21
    )  # what cannot be cut smaller needs as much more
    context = replace(BAND, mib=700, low_mib=680, high_mib=730, needed_mib=720, parts={"context": 600.0})
    assert calibrated(context, History(card).family("net")).high_mib == pytest.approx(751)
    assert request.plan_request(net, given(), card, lambda _size: BAND).mib == 192


def test_the_errors_of_another_family_or_of_long_ago_move_nothing(card, monkeypatch):
    monkeypatch.setattr(history, "FAMILY_RUNS", 3)
    assert [round(run.prediction_error, 2) for run in runs(card, 0.9, 0.2, 0.3, 0.1)] == [0.2, 0.3, 0.1]
    assert History(card).family("other") == []
    assert history.family(net, NetParams()) == "net"


def test_a_finished_run_tells_its_family_what_was_predicted_and_measured(card):
    predict, need = prediction_and_need(1.1)
    asked = request.plan_request(net, given(), card, predict)
    assert asked.predicted.mib == 660
    ended(card, net, given(), asked, need(asked.micro_batch), **asked.usage())
    (run,) = History(card).family("net")
    assert (run.predicted_mib, round(run.peak_mib)) == (660, 726)
    ended(card, net, given(), asked, 10**6, **asked.usage())  # met its cap: how much it needs is not known
    assert len(History(card).family("net")) == 1
