"""What README.md and CONTRIBUTING.md say is so."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from overnight import Artifact, RecordingRun
from overnight.artifact import DataSpec, save

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Every command line of a program in the shell blocks."""
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line[:1] == [program]]


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line[1] for line in commands("make")} | set(re.findall(r"`make ([a-z-]+)", TEXT)) <= targets


def test_the_commands_exist() -> None:
    from overnight.cli.main import _parser

    lines = commands("overnight")
    assert len(lines) >= 8
    for line in lines:
        assert _parser().parse_args(line[1:]).command


def test_the_experiments_exist() -> None:
    from overnight.cli.command import config_path
    from overnight.orchestration.checks import load

    for line in commands("overnight"):
        if line[1] == "run":
            load(config_path(line[2]), [word for word in line[3:] if not word.startswith("--")])


def test_the_files_exist() -> None:
    listed = re.search(r"^```\n(overnight/ .*?)^```", README, re.MULTILINE | re.DOTALL)
    assert listed
    names = [line.split()[0] for line in listed[1].splitlines()]
    quoted = re.findall(r"`((?:tasks|flows|configs|overnight|tests|requirements)[\w./-]*\.\w+)`", TEXT)
    made = {".overnight/", "configs/leaves.yaml", "tasks/vision/neighbours.py"}
    assert [name for name in [*names, *quoted] if name not in made and not (ROOT / name).exists()] == []


def test_two_yaml_files_make_an_experiment(tmp_path: Path) -> None:
    from PIL import Image

    entry, config, _night = blocks("yaml")
    for folder in ("datasets", "configs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "datasets/leaves.yaml").write_text(entry)
    (tmp_path / "configs/leaves.yaml").write_text(config)
    for species in ("oak", "elm"):
        folder = tmp_path / "datasets/leaves" / species
        folder.mkdir(parents=True)
        for n in range(6):
            Image.fromarray(np.full((40 + n, 50, 3), 20 * n, np.uint8)).save(folder / f"{n}.png")
    script = (
        "from overnight.paths import configs\nfrom overnight.orchestration.checks import load\n"
        "pipeline, experiment = load(configs() / 'leaves.yaml')\n"
        "print(pipeline.name, experiment.cnn.epochs, experiment.data.load().classes)"
    )
    environment = {"OVERNIGHT_ROOT": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("vision 20 ('elm', 'oak')\n", 0), done.stderr


def test_the_night_can_be_loaded(tmp_path: Path) -> None:
    from overnight.orchestration.checks import load

    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    night = tmp_path / "configs" / "night.yaml"
    night.write_text(blocks("yaml")[2])
    pipeline, experiment = load(night)
    assert pipeline.name == "nightly"
    assert [part.name for part in experiment.experiments] == ["etl", "cifar10", "planes", "mine"]
    assert experiment.experiments[2].gnn.epochs == 100


def test_the_page_on_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:tasks|flows|configs|overnight|tests)/[\w./-]+)`", text)
    assert len(names) > 30
    assert [name for name in names if name != "tasks/FAMILY/" and not (ROOT / name).exists()] == []


@pytest.fixture
def images(tmp_path: Path) -> Artifact:
    """Dark images are of class 0, bright ones of class 1."""
    labels = np.arange(20) % 2
    pixels = np.repeat(200 * labels, 64).reshape(20, 1, 8, 8).astype(np.uint8)
    arrays = {
        f"{split}_{name}": array
        for split in ("train", "val", "test")
        for name, array in (("images", pixels), ("labels", labels))
    }
    return save(tmp_path / "images", "images", DataSpec(shape=(1, 8, 8), classes=("dark", "bright")), arrays)


def test_the_task_runs(tmp_path: Path, images: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    (tmp_path / "nearest.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    task = importlib.import_module("nearest")
    run = RecordingRun(tmp_path)
    made = task.classify_nearest.body(run, task.NearestParams(neighbours=3), images)
    assert run.last("test/accuracy") == 1.0
    assert made.meta() == {"accuracy": 1.0}
