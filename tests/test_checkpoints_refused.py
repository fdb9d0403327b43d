"""Checkpoints that cannot be written or read cost their training nothing but themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from overnight.loop.checkpoint import Keeper
from overnight.run import RecordingRun
from overnight.training import TrainParams, train
from tests import small
from tests.small import recipe

ROOT = Path(__file__).resolve().parent.parent
PARAMS = TrainParams(epochs=2, batch=32, checkpoint_s=0)  # 7 steps an epoch


@pytest.fixture
def blobs():
    return small.blobs()


def attempt(folder):
    run = RecordingRun(folder)
    run.checkpoints = folder / "checkpoints"
    return run


def logged(run):
    return [event["text"] for event in run.of("log")]


FILES = """
import resource, signal, sys
from pathlib import Path
import torch
from overnight.loop.checkpoint import Keeper

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
said = []
keeper = Keeper(Path(sys.argv[1]), 0, said.append)
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
    found = subprocess.run([sys.executable, "-c", FILES, tmp_path / "kept"], cwd=ROOT, capture_output=True, text=True, check=True)
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
    assert train(recipe(PARAMS, optimiser=lambda model: Odd(model.parameters())), run, blobs).epoch == 2
    (text,) = logged(run)
    assert "this training cannot be written" in text
    assert "lambda" in text


def test_a_reason_is_told_again_when_it_came_back(tmp_path):
    said = []
    keeper = Keeper(tmp_path, 0, said.append)

    def refuse(_file):
        raise OSError(28, "No space left on device")

    for write in (refuse, refuse, lambda file: file.write(b"whole"), refuse):
        keeper.save({}, write, 1)
    assert len(said) == 2
