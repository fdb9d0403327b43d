"""Usage as events of a run and in the table: a value that was not measured is never a number."""

import json

import pytest

from overnight.events import readable
from overnight.gpu.card import Card
from overnight.memory import usage
from overnight.memory.prediction import MemoryEstimate
from overnight.memory.request import MemoryRequest
from overnight.orchestration.protocol import StepResult
from overnight.orchestration.terminal import memory

CARD = Card(uuid="virtual", name="virtual", total_mib=8192, budget_mib=8192)
TOOK = StepResult(
    code=0,
    asked_mib=2048,
    lease_mib=1024,
    cap_mib=400,
    overhead_mib=624,
    peak_mib=300.4,
    wait_s=3,
    asked_micro_batch=64,
    micro_batch=16,
    hit_limit=True,
    out_of_memory=True,
    uncapped=("cupy", "jax"),
    host_peak_mib=1234.5,
)


def logged(result):
    """(metrics, params) of the events."""
    events = usage.usage_metrics(result)
    assert [readable(json.dumps(e)) for e in events] == events
    return events[0]["values"], {e["name"]: e["value"] for e in events if e["event"] == "param"}


def test_a_run_holds_what_was_asked_granted_and_taken():
    metrics, params = logged(TOOK)
    taken = {"overhead_mib": 624, "peak_mib": 300.4, "host_peak_mib": 1234.5, "wait_s": 3}
    flags = {"hit_limit": 1, "out_of_memory": 1}
    # MLflow's group of system metrics holds what has one part after system/.
    assert metrics == {f"system/usage_{name}": value for name, value in (taken | flags).items()}
    asked = {"asked_mib": "2048", "lease_mib": "1024", "cap_mib": "400", "micro_batch": "16"}
    assert {name: params[f"usage/{name}"] for name in asked} == asked
    assert params["usage/exclusive"] == "False"
    assert params["usage/asked_micro_batch"] == "64"
    assert params["usage/uncapped"] == "cupy, jax"
    assert params["usage/peak_mib"] == "300.4"


def test_what_was_not_measured_is_no_zero():
    metrics, params = logged(TOOK.model_copy(update={"peak_mib": None, "other_processes_peak_mib": None}))
    assert not {"system/usage_peak_mib", "system/usage_other_processes_peak_mib"} & metrics.keys()
    assert params["usage/peak_mib"] == "not measured"


def test_a_step_without_a_lease_has_its_times_and_the_host_alone():
    metrics, params = logged(StepResult(code=1, run_s=2.0, host_peak_mib=50.0))
    assert (metrics["system/usage_run_s"], metrics["system/usage_host_peak_mib"], params) == (2.0, 50.0, {})


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "924 of 1,024 MiB"),
        ({"peak_mib": None}, "not measured, of 1,024 MiB"),
        ({"peak_mib": 0.0, "overhead_mib": 0}, "0 of 1,024 MiB"),
        ({"lease_mib": 0}, "1,234 MiB of the host"),
        ({"lease_mib": 0, "host_peak_mib": 0.0}, ""),
    ],
)
def test_the_table_says_how_much_of_what(changes, shown):
    assert memory(TOOK.model_copy(update=changes)) == shown


def test_what_is_asked_is_said_with_its_reason():
    log, why = MemoryRequest(2048, 64, exclusive=True, why="declared: 2,048 MiB").events()
    assert log["text"] == "asks for 2,048 MiB of the card, alone (micro-batch 64, declared: 2,048 MiB)"
    assert why["value"] == "declared: 2,048 MiB"


def test_what_was_predicted_stands_beside_what_was_measured():
    predicted = MemoryEstimate(micro_batch=64, mib=100, low_mib=90, high_mib=120, needed_mib=120)
    asked = MemoryRequest(2048, 64, why="predicted: 90 to 120 MiB", predicted=predicted)
    clean = {"micro_batch": 64, "hit_limit": False, "out_of_memory": False, "peak_mib": 103.0}
    metrics, params = logged(TOOK.model_copy(update={**asked.usage(), **clean}))
    wanted = {
        "predicted_low_mib": 90,
        "predicted_mib": 100,
        "predicted_high_mib": 120,
        "prediction_error": pytest.approx(0.03),
    }
    assert {name: metrics[f"system/usage_{name}"] for name in wanted} == wanted
    assert params["usage/predicted_mib"] == "100"
    for other in (
        {"micro_batch": 16},
        {"hit_limit": True},
        {"peak_mib": None},
    ):  # then the two say nothing of each other
        metrics, _ = logged(TOOK.model_copy(update={**asked.usage(), **clean, **other}))
        assert "system/usage_prediction_error" not in metrics
    assert MemoryRequest(512).usage() == {"asked_mib": 512}


def test_what_is_not_predicted_says_why():
    unknown = MemoryEstimate(micro_batch=64, unknown="it reads a value")
    request = MemoryRequest(2048, 64, why="declared: 2,048 MiB", predicted=unknown)
    events = request.events()
    assert [e["text"] for e in events if e["event"] == "log"][1:] == [
        "its memory is not predicted: it reads a value"
    ]
    assert {e["name"]: e["value"] for e in events if e["event"] == "param"}["usage/not_predicted"].endswith(
        "it reads a value"
    )
    assert request.usage() == {"asked_mib": 2048}


def test_what_a_lease_was_too_small_for_may_fit_the_card():
    small = TOOK.model_copy(update={"code": 12, "error": "one sample does not fit"})
    found = small.judged_for(CARD)
    assert found.code == 11
    assert "1024 of the card's 8192 MiB; the next run asks for more" in found.error
    whole = small.model_copy(update={"lease_mib": 8192})
    assert whole.judged_for(CARD) == whole
