"""Checkpoints that cannot be written or read cost their training nothing but themselves."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from overnight.errors import BadInput, Stopped
from overnight.gpu.memory_counter import Counter
from overnight.run import RecordingRun
from overnight.training.checkpoint import CheckpointStore
from overnight.training.loop import train
from overnight.training.recipe import TrainParams
from overnight.training.resume import checkpoints_of, previous_attempts
from overnight.training.state import TrainState
from tests.support import small_trainings
from tests.support.small_trainings import recipe

ROOT = Path(__file__).resolve().parents[2]
PARAMS = TrainParams(epochs=2, batch=32, checkpoint_s=0)  # 7 steps an epoch


@pytest.fixture
def blobs():
    return small_trainings.blobs()


def attempt(folder):
    run = RecordingRun(folder)
    run.checkpoints = folder / "checkpoints"
    return run


def logged(run):
    return [event["text"] for event in run.of("log")]


def test_a_disk_that_takes_nothing_is_told_and_training_goes_on(tmp_path, blobs):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    run = attempt(tmp_path)
    assert train(recipe(PARAMS), run, blobs).epoch >= 1
    assert "cannot be written" in logged(run)[0]


FILES = """
import resource, signal, sys
from pathlib import Path
import torch
from overnight.training.checkpoint import CheckpointStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
said = []
keeper = CheckpointStore(Path(sys.argv[1]), 0, said.append)
state = {"w": torch.zeros(50, 250), "v": torch.zeros(1000), "u": torch.zeros(20000)}
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in range(1024, 130_000, 4096):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    keeper.save({}, lambda file: torch.save(state, file), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(said, list(Path(sys.argv[1]).iterdir()), sep="\\n")
"""


def test_a_disk_that_takes_part_of_a_checkpoint_is_told_once_and_loses_no_room(tmp_path):
    """A limit on the size of files stands for it: torch sees the same error at the same places."""
    found = subprocess.run(
        [sys.executable, "-c", FILES, tmp_path / "kept"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    said, files = found.stdout.splitlines()
    assert said.count("no checkpoint: ") == 1
    assert "File too large" in said
    assert files == "[]"


def test_what_cannot_be_written_at_all_is_told_once(tmp_path, blobs):
    class Odd(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.3)
            self.param_groups[0]["adjust"] = lambda rate: rate

    run = attempt(tmp_path)
    assert train(recipe(PARAMS, optimizer=lambda model: Odd(model.parameters())), run, blobs).epoch == 2
    (text,) = logged(run)
    assert "this training cannot be written" in text
    assert "lambda" in text


def test_a_reason_is_told_again_when_it_came_back(tmp_path):
    said = []
    keeper = CheckpointStore(tmp_path, 0, said.append)

    def refuse(_file):
        raise OSError(28, "No space left on device")

    for write in (refuse, refuse, lambda file: file.write(b"whole"), refuse):
        keeper.save({}, write, 1)
    assert len(said) == 2


# ---------------------------------------------------------------------------------------- what cannot be read


def stopped(folder, chosen, data, steps=10):
    """An attempt that was stopped after so many optimizer steps."""
    run = attempt(folder)
    run.should_stop = lambda: len(run.curve("train/loss")) >= steps
    with pytest.raises(Stopped):
        train(chosen, run, data)
    return run


def spoilt(folder, how):
    """Make the newest checkpoint one that is whole, and holds something else."""
    newest = max((folder / "checkpoints/0").glob("*.pt"))
    found = torch.load(newest, weights_only=True)
    how(found)
    facts = json.loads(newest.with_suffix(".json").read_text())
    torch.save(found, newest)
    facts |= {"bytes": newest.stat().st_size, "sha256": hashlib.sha256(newest.read_bytes()).hexdigest()}
    newest.with_suffix(".json").write_text(json.dumps(facts))


@pytest.mark.parametrize("how", [
    lambda found: found.update(history=[{"accuracy": np.float64(0.5)}]),  # needs code to be run
    lambda found: found.pop("random"),  # is missed when all else is loaded
    lambda found: found["optimizer"].update(param_groups=[]),
])  # fmt: skip
def test_the_one_before_a_checkpoint_that_cannot_be_loaded_is_used(tmp_path, blobs, how):
    stopped(tmp_path, recipe(PARAMS), blobs)
    spoilt(tmp_path, how)
    run = attempt(tmp_path)
    fitted = train(recipe(PARAMS), run, blobs)
    assert "it cannot be loaded" in logged(run)[0]
    assert "after optimizer step 9 of 14" in run.of("note")[0]["text"]
    whole = train(recipe(PARAMS), RecordingRun(tmp_path / "whole"), blobs)
    assert all(
        torch.equal(a, b) for a, b in zip(fitted.model.parameters(), whole.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "score", [np.float64(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5), True, 1]
)
def test_scores_become_plain_numbers(tmp_path, blobs, score):
    chosen = recipe(PARAMS, evaluate=lambda *_: {"accuracy": score})
    stopped(tmp_path, chosen, blobs)
    run = attempt(tmp_path)
    fitted = train(chosen, run, blobs)
    assert logged(run) == []
    assert {type(scores["accuracy"]) for scores in fitted.history} == {float}


@pytest.mark.parametrize(("scores", "reason"), [
    (None, "returned NoneType: expected"),
    (0.5, "returned float: expected"),
    ({"accuracy": "good"}, "returned str as accuracy: expected"),
    ({"accuracy": torch.ones(3)}, r"returned Tensor of shape \(3,\) as accuracy: expected"),
    ({1: 0.5}, "calls a score 1: expected"),
])  # fmt: skip
def test_scores_that_are_none_end_with_what_was_expected(tmp_path, blobs, scores, reason):
    with pytest.raises(BadInput, match=reason):
        train(recipe(PARAMS, evaluate=lambda *_: scores), RecordingRun(tmp_path), blobs)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "plan",
    [
        "{}",
        "[]",
        "{",
        '{"memory": {"size": "8", "largest": 32}}',
        '{"memory": {"size": 0, "largest": 32}}',
        DEEP,
    ],
)
def test_a_plan_that_is_none_is_no_plan(tmp_path, blobs, plan):
    stopped(tmp_path, recipe(PARAMS), blobs)
    (tmp_path / "checkpoints/0/plan").write_text(plan)
    run = attempt(tmp_path)
    train(recipe(PARAMS), run, blobs)
    assert run.micro_batch == 32


def test_facts_that_are_nested_without_end_are_refused(tmp_path, blobs):
    stopped(tmp_path, recipe(PARAMS), blobs)
    max((tmp_path / "checkpoints/0").glob("*.json")).write_text(DEEP)
    run = attempt(tmp_path)
    train(recipe(PARAMS), run, blobs)
    assert "it cannot be read (RecursionError)" in logged(run)[0]
    assert "after optimizer step 9" in run.of("note")[0]["text"]


def test_attempts_that_are_nested_without_end_are_none(checkout):
    checkpoints_of("key").mkdir(parents=True)
    (checkpoints_of("key") / "run.json").write_text(DEEP)
    assert previous_attempts("key") == ()


class Hiding(torch.nn.Linear):
    """Computes with buffers that no state_dict holds; one of them grows."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("each", torch.zeros(0), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.each = torch.cat([self.each, x.detach().mean()[None]])
        return super().forward(x) * (1 + 0.01 * self.seen + self.each.sum())


@pytest.mark.parametrize("steps", [7, 10])
def test_buffers_that_a_state_dict_leaves_out_are_kept(tmp_path, blobs, steps):
    stopped(tmp_path, recipe(PARAMS, build=Hiding), blobs, steps)
    fitted = train(recipe(PARAMS, build=Hiding), attempt(tmp_path), blobs)
    whole = train(recipe(PARAMS, build=Hiding), RecordingRun(tmp_path / "whole"), blobs)
    assert torch.equal(fitted.model.weight, whole.model.weight)
    assert torch.equal(fitted.model.each, whole.model.each)


def test_what_waits_on_the_host_is_none_of_the_virtual_card_s(tmp_path, blobs):
    with Counter() as counter:
        state = TrainState(recipe(PARAMS), RecordingRun(tmp_path), blobs)
        before = counter.use()
        state.end_epoch({"accuracy": 0.5})
        assert counter.use() == before
