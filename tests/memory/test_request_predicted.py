"""Memory requests by formulas, and by predictions calibrated with other micro-batches and the family."""

import pytest

from overnight import Artifact, Run, step
from overnight.data.entry import DataFile, Entry
from overnight.memory import history, intervals, request, usage
from overnight.memory.formulas import Formula, joined
from overnight.memory.usage import Usage
from tests.support.steps_sized import BUDGET, NetParams, PlainParams, card, ended, given, net, plain

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


# ---------------------------------------------------------------------- predictions that measurements correct


def prediction_and_need(off=1.0, more=0.0, margin=0.5):
    """A wide prediction of 20 MiB and 10 a sample, and the true need: that times `off`, and `more` MiB."""
    mid = lambda size: 20 + 10.0 * size

    def predict(_recipe, size, _card):
        return intervals.PredictionInterval(
            mid(size) * (1 - margin), mid(size) * (1 + margin), mid(size), mid(size) * (1 + margin)
        )

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
def test_from_the_second_night_on_the_largest_that_fits_is_chosen(card, off, more, budget):
    predict, need = prediction_and_need(off, more)
    tight = card.model_copy(update={"budget_mib": budget})
    truth = max(n for n in (1, 2, 4, 8, 16, 32, 64) if need(n) * 1.09 < budget)
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


def test_a_band_too_wide_for_the_card_is_corrected_by_what_ran(card):
    """64 samples were predicted to take up to 990 MiB; one took 21 where 30 were predicted."""
    predict, need = prediction_and_need(0.7)
    tight = card.model_copy(update={"budget_mib": 600})
    first = request.plan_request(net, given(), tight, predict)
    assert (first.micro_batch, first.predicted.mid) == (32, 340)
    usage.record_usage(
        net,
        given(),
        card,
        Usage(asked_micro_batch=1, micro_batch=1, cap_mib=64, lease_mib=64, peak_mib=need(1)),
        finished=True,
    )
    asked = request.plan_request(net, given(), tight, predict)
    assert asked.micro_batch == 64  # 462 MiB in truth
    assert "corrected by what micro-batch 1 took" in asked.why


def test_what_cannot_be_cut_smaller_is_not_corrected_by_an_evaluation_that_was_smaller():
    """One sample: 48 MiB predicted, nearly all an evaluation of few samples; 16 still train in 49."""
    one, sixteen = intervals.PredictionInterval(16, 58, 48, 24), intervals.PredictionInterval(49, 59, 49, 59)
    assert intervals.calibrated_by_runs(sixteen, {1: one}, {1: 36.0}) == (49, 49)
    assert intervals.calibrated_by_runs(sixteen, {1: one}, {1: 12.0}) == pytest.approx(
        (49 * 12 / 16,) * 2
    )  # even the training took less than predicted
    assert intervals.calibrated_by_runs(sixteen, {1: one}, {1: 1.0}) == pytest.approx(
        (49 / 2,) * 2
    )  # a reading lowers it by no more than that
    assert intervals.calibrated_by_runs(sixteen, {1: one}, {1: 480.0}) == (98, 49 + 480 - 48)
    assert intervals.calibrated_by_runs(sixteen, {}, {1: 36.0}) is None


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_is_no_figure_poisons_nothing(card, tmp_path, odd):
    history.add_outcome(tmp_path / "step", 0, history.CLEAN, odd)
    intervals.add_error(card, "net", odd, 10.0)
    intervals.add_error(card, "net", 10.0, odd)
    intervals.store_interval(tmp_path / "step", "v", 1, intervals.PredictionInterval(1.0, odd, 1.0, 1.0))
    assert (history.read_outcomes(tmp_path / "step"), intervals.read_errors(card, "net")) == ([], [])
    assert isinstance(intervals.read_interval(tmp_path / "step", "v", 1), intervals.Unknown)
    ended(card, plain, [PlainParams()], request.MemoryRequest(512), odd if odd == odd else 0.0)
    assert request.plan_request(plain, [PlainParams()], card).mib >= 64


def test_data_that_lay_on_the_card_for_speed_alone_are_asked_for_and_refuse_nothing(card):
    """At 32 samples 340 MiB of a training, and 150 of data that went where there was room."""
    predict, need = prediction_and_need()
    kept = intervals.stored(predict, request.folder_of(net, given(), card), intervals.version())
    assert kept(None, 32, card)
    used = Usage(
        asked_micro_batch=32,
        micro_batch=32,
        cap_mib=1024,
        lease_mib=1024,
        peak_mib=need(32) + 150,
        resident_mib=150,
    )
    usage.record_usage(net, given(), card, used, finished=True)
    (error,) = intervals.read_errors(card, "net")
    assert error.share == 0
    fixed = given(NetParams(batch=64, micro_batch=32))
    assert (
        request.plan_request(net, fixed, card, kept).mib == 576
    )  # 490, and room so that an equal run is not near its cap
    assert request.plan_request(net, fixed, card.model_copy(update={"budget_mib": 400}), kept).mib == 400
    asked = request.plan_request(net, given(), card.model_copy(update={"budget_mib": 750}), kept)
    assert (asked.micro_batch, asked.why) == (
        64,
        "predicted: 660 to 660 MiB, corrected by what micro-batch 32 took",
    )


# ---------------------------------------------------------------------- families

BAND = intervals.PredictionInterval(80, 130, 100, 120)


def runs(card, *shares, predicted=100.0):
    for share in shares:
        intervals.add_error(card, "net", predicted, predicted * (1 + share))
    return intervals.read_errors(card, "net")


def test_the_errors_of_a_family_move_the_edges(card):
    assert intervals.calibrated(BAND, []) == BAND
    worse = intervals.calibrated(BAND, runs(card, 0.5))
    assert (worse.low, worse.high, worse.mid) == (80, pytest.approx(151), 100)
    assert worse.needed == pytest.approx(BAND.needed + 21)  # what cannot be cut smaller needs as much more
    assert intervals.calibrated(BAND, runs(card, *[0.02] * 3)).high == pytest.approx(
        151
    )  # four runs narrow nothing


def test_five_good_runs_narrow_the_edges_and_never_to_nothing(card):
    assert intervals.calibrated(BAND, runs(card, 0.0, 0.01, 0.02, 0.0)) == BAND
    good = intervals.calibrated(BAND, runs(card, 0.0))
    assert (good.low, good.high) == (90, 115)
    assert intervals.calibrated(BAND, runs(card, 0.2, -0.18))[:2] == pytest.approx((81, 121))
    far = BAND._replace(low=800, high=1300, mid=1000, needed=1200)
    assert intervals.calibrated(far, intervals.read_errors(card, "net")) == far  # ten times what was tested


def test_errors_of_a_family_are_described(card):
    assert intervals.describe_errors(100, []) == "no run of its family was measured: outside the tested range"
    seen = runs(card, -0.012, 0.034)
    assert intervals.describe_errors(390, seen) == "2 runs of its family measured, -1.2 % to +3.4 %"
    assert (
        intervals.describe_errors(410, seen)
        == "2 runs of its family measured, -1.2 % to +3.4 %; outside the tested range of 100 to 100 MiB"
    )
    assert intervals.family(net, NetParams()) == "net"


def test_runs_of_a_family_are_numbered_bounded_and_odd_files_are_passed_over(card, monkeypatch):
    monkeypatch.setattr(intervals, "MOST_RUNS", 3)
    runs(card, 0.1)
    (card.folder / "families" / "net" / "notes.txt").write_text("somebody's")
    (card.folder / "families" / "net" / "9-0-5").touch()
    assert [round(e.share, 2) for e in runs(card, 0.2, 0.3, 0.4, 0.5)] == [0.3, 0.4, 0.5]
    assert (card.folder / "families" / "net" / "notes.txt").exists()


def test_a_finished_run_tells_its_family_what_was_predicted_and_measured(card):
    predict, need = prediction_and_need(1.1)
    values, folder = given(), request.folder_of(net, given(), card)
    asked = request.plan_request(net, values, card, intervals.stored(predict, folder, intervals.version()))
    assert asked.predicted.mid == 660
    ended(card, net, values, asked, need(asked.micro_batch))
    (error,) = intervals.read_errors(card, "net")
    assert (error.predicted_mib, round(error.measured_mib)) == (660, 726)
    ended(card, net, values, asked, 10**6)  # met its cap: how much it needs is not known
    assert len(intervals.read_errors(card, "net")) == 1
