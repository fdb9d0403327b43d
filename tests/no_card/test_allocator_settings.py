"""What a shell, an old WSL2 and steps that start together do to torch's allocator and to the context's figure."""

import os
import subprocess
import sys

import pytest

from overnight.cli.fit import constants
from overnight.errors import BadInput
from overnight.gpu import cuda_context, memory_limit
from overnight.gpu.card import Card, virtual
from overnight.locks import holder

REAL = Card(
    uuid="GPU-1", name="NVIDIA GeForce RTX 3090 Ti", total_mib=24564, budget_mib=23000, driver="596.36"
)
LINUX, WSL2 = "6.8.0-generic", "6.6.87.2-microsoft-standard-WSL2"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    for name in memory_limit.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "GPU-1").mkdir()


def prepared(environ, kernel=LINUX):
    memory_limit.prepare(REAL, True, environ, kernel)
    return environ.get("PYTORCH_ALLOC_CONF")


@pytest.mark.parametrize(
    ("environ", "merged"),
    [
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, "max_split_size_mb:128,expandable_segments:True"),
        (
            {
                "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128",
                "PYTORCH_ALLOC_CONF": "max_split_size_mb:64, roundup_power2_divisions:[256:1,512:2]",
            },
            "max_split_size_mb:128,roundup_power2_divisions:[256:1,512:2],expandable_segments:True",
        ),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, "expandable_segments:False"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native,expandable_segments:True"),
    ],
)  # fmt: skip
def test_what_the_shell_says_under_either_name_is_kept_and_segments_expand(environ, merged):
    assert prepared(environ) == merged
    assert "PYTORCH_CUDA_ALLOC_CONF" not in environ


def test_torch_reads_what_was_merged():
    environ = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}
    prepared(environ)
    script = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    environ["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "max_split_size_mb:128,expandable_segments:True"


@pytest.mark.parametrize("name", memory_limit.SETTINGS)
def test_an_allocator_that_no_lease_bounds_is_refused(name):
    with pytest.raises(BadInput, match="cudaMallocAsync cannot be limited"):
        prepared({name: "backend:cudaMallocAsync"})
    with pytest.raises(BadInput, match="unset it"):
        prepared({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


@pytest.mark.parametrize(
    ("script", "works"), [("import sys; sys.exit(not int(sys.argv[1]))", True), ("1 / 0", False)]
)
def test_on_wsl2_segments_expand_only_after_a_trial_that_went_well(script, works):
    assert prepared({}, WSL2) is None
    cuda_context.try_expanding(REAL, 2000, LINUX, "raise SystemExit('not on Linux')")
    cuda_context.try_expanding(REAL, 2000, WSL2, script)
    assert (prepared({}, WSL2) == "expandable_segments:True") is works
    cuda_context.try_expanding(REAL, 2000, WSL2, "raise SystemExit('once for each driver')")
    assert cuda_context.can_expand(REAL, WSL2) is works
    assert not cuda_context.can_expand(REAL.model_copy(update={"driver": "610.74"}), WSL2)
    assert cuda_context.can_expand(REAL, LINUX)


def test_predictions_assume_what_steps_run_with(monkeypatch):
    assert constants(REAL).expandable
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    assert not constants(REAL).expandable
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setattr("platform.release", lambda: WSL2)
    assert not constants(REAL).expandable
    assert constants(virtual()).expandable


def test_no_other_step_makes_its_context_while_one_measures(tmp_path):
    """Else both measure both contexts, and after three such pairs every lease pays twice for ever."""
    others = []

    def warm():
        others.append(holder(REAL.folder / "overhead.lock"))
        return 0

    used = iter([700, 1150, 1150, 1600])
    for _ in range(2):
        cuda_context.measure(REAL, lambda: next(used), warm)
    assert [other.pid for other in others] == [os.getpid()] * 2
    assert holder(REAL.folder / "overhead.lock") is None
    assert cuda_context.overhead(REAL) == 450
