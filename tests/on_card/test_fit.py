"""On a machine with a CUDA card: what was predicted before, and written down, is what six trainings take
under a cap of 12 GB (make test-gpu).

Needs torch and the training loop alone; each training runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parent.parent.parent
PREDICTED = json.loads(Path(__file__).with_name("fit_predicted.json").read_text())
FITTING = [name for name, found in PREDICTED.items() if found["verdict"] == "fits"]


@cache
def measured(name):
    """What the training took; it runs once for all tests."""
    case, _, number = name.partition(" | ")
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    command = [sys.executable, "-m", "bench._fit_gpu", "run", case, number]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(name, PREDICTED[name], found)
    return found


@pytest.mark.parametrize("name", PREDICTED)
def test_it_fits_where_that_was_said_and_nowhere_else(name):
    fits = PREDICTED[name]["verdict"] == "fits"
    found = measured(name)
    assert (found["out_of_memory"] == 0 and not found["error"]) == fits, found


@pytest.mark.parametrize("name", FITTING)
def test_torch_reserves_what_was_predicted(name):
    assert measured(name)["reserved_mib"] == pytest.approx(PREDICTED[name]["mib"], rel=0.10)


@pytest.mark.parametrize("name", FITTING)
def test_the_driver_counts_what_was_predicted_and_a_context(name):
    found = measured(name)
    assert found["device_mib"] == pytest.approx(PREDICTED[name]["mib"] + found["context_mib"], rel=0.10)
