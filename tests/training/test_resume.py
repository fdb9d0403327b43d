"""A training that was ended anywhere goes on where it was, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from overnight import events as event_log
from overnight.errors import Stopped
from overnight.run import EventLogRun, RecordingRun
from overnight.training.batches import Batches
from overnight.training.checkpoint import CheckpointStore
from overnight.training.loop import train
from overnight.training.recipe import Recipe, TrainParams, cosine
from overnight.training.resume import acquire_checkpoints, checkpoints_of, previous_attempts
from tests.support.small_trainings import Killed, killed_at

ROOT = Path(__file__).resolve().parents[2]


class Net(nn.Module):
    """Everything that has a state: running statistics, dropout, and draws of Python and numpy."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )

    def forward(self, x):
        jitter = 1 + 0.01 * (random.random() + np.random.rand()) if self.training else 1.0
        return self.body(x) * jitter


def recipe(params, before_step=lambda: None, augmented=Batches, **changes):
    class Adam(torch.optim.AdamW):
        def step(self, closure=None):
            before_step()
            super().step(closure)

    def batches(data, generator):
        def make(index, generator):
            return {
                "x": data["x"][index] + 0.1 * torch.randn(len(index), 4, generator=generator),
                "y": data["y"][index],
            }

        order = torch.randperm(len(data["x"]), generator=generator).split(params.batch)
        return (
            Batches(order, make, generator)
            if augmented is Batches
            else (make(index, generator) for index in order)
        )

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), torch.tensor(
            len(batch["y"])
        )

    values = {
        "build": Net,
        "example_batch": lambda n: {"x": torch.zeros(n, 4), "y": torch.zeros(n, dtype=torch.long)},
        "batches": batches,
        "steps_per_epoch": lambda data: -(-len(data["x"]) // params.batch),
        "loss": loss,
        "optimizer": lambda model: Adam(model.parameters(), lr=0.02),
        "schedule": cosine(),
        "evaluate": lambda model, data, _split: {
            "accuracy": float((model(data["x"]).argmax(1) == data["y"]).double().mean())
        },
        "ema": 0.9,
    }
    return Recipe(params=params, **{**values, **changes})


def blobs():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (100,), generator=generator)
    return {"x": torch.randn(100, 4, generator=generator) + nn.functional.one_hot(y, 4), "y": y}


PARAMS = TrainParams(epochs=3, batch=16, checkpoint_s=0)  # 7 steps an epoch


def attempt(folder, number, chosen, seed=3, spool=RecordingRun):
    """One attempt of a training whose checkpoints are below `folder`."""
    random.seed(0)
    np.random.seed(0)
    (folder / str(number)).mkdir(parents=True)
    run = spool(folder / str(number), seed=seed)
    run.checkpoints = folder / "checkpoints"
    return run, chosen


def curve(*runs):
    """(step, loss) of all attempts, in the order of the steps; of one logged twice, both."""
    return sorted(
        (e["step"], e["values"]["train/loss"])
        for run in runs
        for e in run.of("metrics")
        if "train/loss" in e["values"]
    )


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training that nothing disturbed."""
    run, chosen = attempt(tmp_path_factory.mktemp("whole"), 0, recipe(PARAMS))
    return train(chosen, run, blobs()), run


@pytest.mark.parametrize("augmented", [Batches, None])
@pytest.mark.parametrize("step", [2, 5, 7, 8, 15, 21])
def test_killed_at_any_step_it_ends_bit_equal(tmp_path, whole, step, augmented):
    if augmented is None:
        reference, chosen = attempt(tmp_path / "r", 0, recipe(PARAMS, augmented=None))
        fitted = train(chosen, reference, blobs())
    else:
        fitted, reference = whole
    first, chosen = attempt(tmp_path, 0, recipe(PARAMS, killed_at(step), augmented))
    with pytest.raises(Killed):
        train(chosen, first, blobs())
    second, chosen = attempt(tmp_path, 1, recipe(PARAMS, augmented=augmented))
    resumed = train(chosen, second, blobs())
    assert same(resumed.model, fitted.model)
    assert resumed.history == fitted.history
    assert resumed.epoch == fitted.epoch
    assert curve(first, second) == curve(reference)
    assert f"after optimizer step {step - 1} of 21" in second.of("note")[0]["text"]


def test_a_stop_saves_before_it_leaves_wherever_it_comes(tmp_path, whole):
    fitted, reference = whole
    runs = []
    for number in range(30):
        run, chosen = attempt(tmp_path, number, recipe(PARAMS.model_copy(update={"checkpoint_s": 1e9})))
        run.should_stop = lambda run=run: len(run.curve("train/loss")) >= 4
        runs.append(run)
        try:
            resumed = train(chosen, run, blobs())
        except Stopped:
            continue
        break
    assert len(runs) == 6  # 21 steps, 4 at a time
    assert same(resumed.model, fitted.model)
    assert curve(*runs) == curve(reference)


def test_the_first_step_after_a_resume_may_run_out_of_memory(tmp_path):
    first, chosen = attempt(tmp_path, 0, recipe(PARAMS, killed_at(10)))
    with pytest.raises(Killed):
        train(chosen, first, blobs())
    calls = []

    def loss(model, batch):
        calls.append(len(batch["y"]))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("made up")
        return recipe(PARAMS).loss(model, batch)

    second, chosen = attempt(tmp_path, 1, recipe(PARAMS, loss=loss))
    assert train(chosen, second, blobs()).epoch >= 1
    assert calls[:3] == [16, 8, 8]
    assert [step for step, _ in curve(first, second)] == list(range(1, 22))


def test_the_micro_batch_in_use_is_kept(tmp_path):
    small = {"loss": lambda model, batch: _room(8, model, batch)}
    first, chosen = attempt(tmp_path, 0, recipe(PARAMS, killed_at(10), **small))
    with pytest.raises(Killed):
        train(chosen, first, blobs())
    second, chosen = attempt(tmp_path, 1, recipe(PARAMS, **small))
    train(chosen, second, blobs())
    assert first.out_of_memory == 1
    assert second.out_of_memory == 0
    assert second.curve("train/micro_batch")[0] == 8


def _room(most, model, batch):
    if len(batch["y"]) > most:
        raise torch.OutOfMemoryError("made up")
    return recipe(PARAMS).loss(model, batch)


# ------------------------------------------------------------------------------------------------ the files


def test_the_last_two_are_kept_and_a_damaged_one_is_refused_with_the_reason(tmp_path, whole):
    first, chosen = attempt(tmp_path, 0, recipe(PARAMS, killed_at(12)))
    with pytest.raises(Killed):
        train(chosen, first, blobs())
    older, newer = sorted((tmp_path / "checkpoints/0").glob("*.pt"))
    newer.write_bytes(newer.read_bytes()[:-100])
    second, chosen = attempt(tmp_path, 1, recipe(PARAMS))
    resumed = train(chosen, second, blobs())
    assert same(resumed.model, whole[0].model)
    assert "after optimizer step 10" in second.of("note")[0]["text"]
    assert "truncated" in second.of("log")[0]["text"]
    assert not older.exists()  # two newer ones have taken its place


def test_what_is_of_another_training_is_refused_with_the_reason(tmp_path):
    first, chosen = attempt(tmp_path, 0, recipe(PARAMS, killed_at(4)))
    with pytest.raises(Killed):
        train(chosen, first, blobs())
    others = [
        (recipe(PARAMS, build=lambda: nn.Linear(4, 3)), 3, "parameters was"),
        (recipe(PARAMS), 4, "seed was '3', is '4'"),
        (recipe(PARAMS.model_copy(update={"epochs": 4})), 3, "optimizer steps was '21', is '28'"),
        (recipe(PARAMS.model_copy(update={"precision": "bf16"})), 3, "precision was 'fp32', is 'bf16'"),
    ]
    for number, (other, seed, reason) in enumerate(others, 1):
        run, chosen = attempt(tmp_path, number, other, seed)
        run.should_stop = lambda run=run: bool(run.curve("train/loss"))
        with pytest.raises(Stopped):
            train(chosen, run, blobs())
        assert any(reason in event["text"] for event in run.of("log"))
        assert curve(run)[0][0] == 1  # from its own start


def test_a_checkpoint_of_another_version_of_the_loop_is_refused_with_the_reason(tmp_path):
    first, chosen = attempt(tmp_path, 0, recipe(PARAMS, killed_at(4)))
    with pytest.raises(Killed):
        train(chosen, first, blobs())
    for facts in tmp_path.rglob("0*.json"):
        content = json.loads(facts.read_text())
        content["identity"]["code of the loop"] = "older"
        facts.write_text(json.dumps(content))
    run, chosen = attempt(tmp_path, 1, recipe(PARAMS))
    run.should_stop = lambda: bool(run.curve("train/loss"))
    with pytest.raises(Stopped):
        train(chosen, run, blobs())
    assert any("code of the loop was 'older', is" in event["text"] for event in run.of("log"))
    assert curve(run)[0][0] == 1


def test_points_of_an_attempt_whose_checkpoint_is_of_no_use_are_named_as_such(tmp_path):
    run, chosen = attempt(tmp_path, 0, recipe(PARAMS))
    run.logged_before = {"train/loss": 12}
    train(chosen, run, blobs())
    assert "up to step 12 is of the attempt before" in run.of("note")[0]["text"]
    assert curve(run)[0][0] == 13


def test_a_changed_byte_is_found(tmp_path):
    said = []
    keeper = CheckpointStore(tmp_path, 0, said.append)
    keeper.save({"of": "this"}, lambda file: file.write(b"first"), 1)
    keeper.save({"of": "this"}, lambda file: file.write(b"second"), 2)
    newest = next(keeper.usable({"of": "this"}))
    newest.write_bytes(b"sec0nd")
    found = next(keeper.usable({"of": "this"}))
    assert found.read_bytes() == b"first"
    assert "damaged" in said[0]
    for torn in ("{", "[]", '{"identity": ["of", 1], "bytes": 5, "sha256": ""}'):
        found.with_suffix(".json").write_text(torn)
        assert not list(keeper.usable({"of": "this"}))


def test_what_else_lies_in_the_folder_is_in_nobody_s_way(tmp_path):
    (tmp_path / "00000001 (copy).json").write_text("{}")
    (tmp_path / "a folder").mkdir()
    keeper = CheckpointStore(tmp_path, 0, print)
    keeper.save({"of": "this"}, lambda file: file.write(b"first"), 1)
    (found,) = keeper.usable({"of": "this"})
    assert found.name == "00000001.pt"
    assert (tmp_path / "a folder").is_dir()


def test_a_write_that_is_cut_short_leaves_the_one_before(tmp_path):
    keeper = CheckpointStore(tmp_path, 0, lambda _text: None)
    keeper.save({}, lambda file: file.write(b"whole"), 1)

    def half(file):
        file.write(b"ha")
        raise Killed

    with pytest.raises(Killed):
        keeper.save({}, half, 2)
    (newest,) = keeper.usable({})
    assert newest.read_bytes() == b"whole"


# ----------------------------------------------------------------------------------------- attempts at a step


def test_only_one_of_two_runs_keeps_checkpoints_and_a_finished_one_removes_them(checkout, tmp_path):
    first, second = RecordingRun(tmp_path / "a"), RecordingRun(tmp_path / "b")
    with acquire_checkpoints(first, "key", "the first"):
        assert first.checkpoints == checkpoints_of("key")
        assert previous_attempts("key") == ()  # somebody is at it
        with acquire_checkpoints(second, "key", "the second"):
            assert second.checkpoints is None
            assert "the first" in second.of("note")[0]["text"]
    assert not checkpoints_of("key").exists()


def test_the_next_attempt_logs_only_what_is_new(checkout, tmp_path):
    die_claimed(tmp_path / "a")
    assert previous_attempts("key") == (str(tmp_path / "a"),)
    with acquire_checkpoints(two := spooled(tmp_path / "b"), "key", "two", previous_attempts("key")):
        assert two.reports == 8  # the monitor's figures go on
        for step in (7, 8):
            two.metrics({"train/loss": 0.0, "system/cpu": 2.0}, step)
    assert event_log.last_steps(tmp_path / "b/events.jsonl") == {"train/loss": 8, "system/cpu": 8}
    assert '"train/loss": 0.0' not in (tmp_path / "b/events.jsonl").read_text().split("\n")[0]


def die_claimed(folder):
    """An attempt that keeps a checkpoint, logs step 7, and is killed while it logs step 8."""

    def attempt():
        with acquire_checkpoints(run := spooled(folder), "key", folder.name, previous_attempts("key")):
            run.checkpoint_folder().mkdir(parents=True, exist_ok=True)
            (run.checkpoints / "0/1.json").write_text("{}")
            run.metrics({"train/loss": 0.5, "system/cpu": 1.0}, 7)
            os.write(run._writer._file, b'{"event": "metrics", "values": {"train/loss": 0.4}, "step": 8')
            raise Killed

    with pytest.raises(Killed):
        attempt()


def spooled(folder):
    folder.mkdir(exist_ok=True)
    return EventLogRun(folder)


def test_a_second_child_of_the_same_attempt_logs_only_what_is_new(checkout, tmp_path):
    die_claimed(tmp_path / "a")
    with acquire_checkpoints(again := spooled(tmp_path / "a"), "key", "again"):
        assert (again.logged_before, again.reports) == ({"train/loss": 7}, 8)
        again.metric("train/loss", 0.4, 8)
    assert event_log.last_steps(tmp_path / "a/events.jsonl") == {"train/loss": 8, "system/cpu": 7}


def test_attempts_that_the_parent_did_not_know_of_are_named_in_the_spool(checkout, tmp_path):
    die_claimed(tmp_path / "a")
    with acquire_checkpoints(two := spooled(tmp_path / "b"), "key", "two"):
        assert two.logged_before == {"train/loss": 7}
    (event,) = event_log.read(tmp_path / "b/events.jsonl", 0).events
    assert (event["event"], event["folders"]) == ("continues", [str(tmp_path / "a")])


def test_what_mlflow_has_is_not_logged_again_even_when_the_spool_was_lost(checkout, tmp_path):
    """A power cut: MLflow's database was on the disk, the spool's last lines were not."""
    die_claimed(tmp_path / "a")
    with acquire_checkpoints(
        two := spooled(tmp_path / "b"),
        "key",
        "two",
        previous_attempts("key"),
        {"train/loss": 9, "system/cpu": 11},
    ):
        assert (two.logged_before, two.reports) == ({"train/loss": 9}, 12)


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from overnight.training.resume import acquire_checkpoints
from overnight.run import EventLogRun
from overnight.training.loop import train
from test_resume import PARAMS, blobs, recipe

torch.set_num_threads(1)
folder, key, stand_still = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
run = EventLogRun(folder, seed=3)
hang = lambda: time.sleep(3600) if run.logged.get("train/loss", 0) >= stand_still else None
with acquire_checkpoints(run, key, "a test"):
    fitted = train(recipe(PARAMS, hang, build=lambda: torch.nn.Linear(4, 3)), run, blobs())
torch.save(fitted.model.state_dict(), folder / "weights.pt")
"""


@pytest.mark.slow
def test_a_process_that_is_killed_with_signal_9_goes_on_in_the_next(checkout, tmp_path):
    """Real processes: the first is killed once a step is logged, and waits in the next step until then."""
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(tests=str(ROOT / "tests" / "training")))

    def start(name, key, stand_still):
        (tmp_path / name).mkdir()
        return subprocess.Popen([sys.executable, script, tmp_path / name, key, str(stand_still)], cwd=ROOT)

    first = start("first", "key", 9)
    while first.poll() is None and 9 not in [e["step"] for e in events(tmp_path / "first/events.jsonl")]:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert previous_attempts("key") == (str(tmp_path / "first"),)
    assert start("second", "key", 1000).wait() == 0
    assert start("undisturbed", "other", 1000).wait() == 0
    ours, theirs = (torch.load(tmp_path / name / "weights.pt") for name in ("second", "undisturbed"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    both = [e for name in ("first", "second") for e in events(tmp_path / name / "events.jsonl")]
    assert losses(both) == losses(events(tmp_path / "undisturbed/events.jsonl"))
    assert not checkpoints_of("key").exists()


def events(spool):
    lines = spool.read_text().split("\n")[:-1] if spool.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == "metrics"]


def losses(found):
    return [(e["step"], e["values"]["train/loss"]) for e in found if "train/loss" in e["values"]]
