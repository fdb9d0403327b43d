"""The prediction is made in its own process: a crash there costs no step, and each is made once."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from overnight import Artifact, DataSpec, Run, step
from overnight.errors import Stopped
from overnight.gpu.card import Card
from overnight.memory import history
from overnight.memory import subprocess as prediction_process
from overnight.training.batches import split_by_sample
from overnight.training.recipe import TrainParams

DIGITS = DataSpec(shape=(1, 8, 8), classes=tuple("0123456789"), counts={"train": 90, "val": 30, "test": 30})
HERE = [sys.executable, "-c"]


class Bare:
    """As much of a Recipe as sizes look at."""

    micro_batches = staticmethod(split_by_sample)


def hidden():
    """A step that no other process can import."""

    @step(gpu=True, recipe=lambda _params, _spec: Bare(), vram_mib=512)
    def inside(run: Run, params: TrainParams, images: Artifact) -> Artifact:
        """Never run."""

    return inside


@pytest.fixture
def card(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    return Card(uuid="virtual", name="virtual", total_mib=8192, budget_mib=8192, count=True)


def never():
    return False


def given(params):
    return [params, Artifact(kind="images", path="/made", digest="d", spec=DIGITS)]


def ends_with(code, limit_s=60.0, should_stop=never):
    return prediction_process.run({}, [*HERE, code], should_stop, limit_s)


def test_whatever_ends_it_is_a_reason():
    assert ends_with("") == ""
    assert (
        ends_with("import os; os.kill(os.getpid(), 11)") == "the process that predicts was ended by signal 11"
    )
    assert (
        ends_with("raise MemoryError('no room')")
        == "the process that predicts ended with 1: MemoryError: no room"
    )
    assert ends_with("import time; time.sleep(600)", 0.2) == "the prediction was not there after 0.2 s"


def test_a_stop_ends_it_at_once(tmp_path):
    began = tmp_path / "began"
    hang = f"import os, time; open({str(began)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(Stopped):
        ends_with(hang, should_stop=lambda: began.exists() and began.read_text() != "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)


def test_a_crash_costs_the_prediction_alone_and_happens_once(card):
    made, values = hidden(), given(TrainParams(batch=8))
    first = prediction_process.plan_request(made, values, card, never)
    assert (first.mib, first.micro_batch) == (512, 8)
    assert first.predicted.unknown.startswith("the process that predicts ended with 1: AttributeError")
    second = prediction_process.plan_request(
        made, values, card, pytest.fail
    )  # called while a process is awaited
    assert (second, second.predicted) == (first, first.predicted)
    stored = history.History(card).prediction(history.step_key(made, values), 8)
    assert stored == first.predicted


PARENT = """
    import json
    import sys
    from overnight.artifact import Artifact, DataSpec
    from overnight.gpu.card import Card
    from overnight.memory import subprocess
    from overnight.orchestration import attempt
    from tasks.graphs.nodes import GnnParams, train_gnn
    from tasks.vision.cnn import CnnParams, train_cnn

    uuid, spec, command = sys.argv[1:]
    subprocess.COMMAND = json.loads(command) or subprocess.COMMAND
    card = Card(uuid=uuid, name="made", total_mib=9216, budget_mib=8192, count=True, capability=8.9)
    given = Artifact(kind="images", path="/made", digest="d", spec=DataSpec.model_validate_json(spec))
    step = train_gnn if given.spec.nodes else train_cnn
    values = [GnnParams(hidden=8) if given.spec.nodes else CnnParams(batch=16, channels=8, blocks=1), given]
    attempt.parts(step, 1, values, card)
    first = subprocess.plan_request(step, values, card, lambda: False)
    second = subprocess.plan_request(step, values, card, lambda: sys.exit("asked again"))
    print(json.dumps([first.why, first.predicted.unknown, first.micro_batch, first == second, "torch" in sys.modules]))
"""
GRAPH = DataSpec(shape=(16,), classes=tuple("abc"), nodes=90, edges=200)


def flow(uuid, spec, command=()):
    """What the process of a flow asks for on that card, and whether torch is loaded in it then."""
    arguments = [uuid, spec.model_dump_json(), json.dumps(command)]
    done = subprocess.run(
        [*HERE, textwrap.dedent(PARENT), *arguments], capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout)


def test_no_torch_is_loaded_where_the_flow_runs(card):
    why, unknown, micro_batch, same, has_torch = flow("GPU-1", DIGITS, ["false"])
    assert why.startswith("declared: ")
    assert (unknown, micro_batch) == ("the process that predicts ended with 1: ", 16)
    assert (same, has_torch) == (True, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uuid", "spec", "micro_batch"), [("GPU-1", DIGITS, 16), ("virtual", GRAPH, None)], ids=["cut", "whole"]
)
def test_nothing_is_traced_where_the_flow_runs(card, uuid, spec, micro_batch):
    why, unknown, *rest = flow(uuid, spec)
    assert why.startswith("predicted: ")
    assert (unknown, *rest) == ("", micro_batch, True, False)
