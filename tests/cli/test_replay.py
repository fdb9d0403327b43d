"""`overnight replay` and `overnight diff`: what a step makes again, and what two runs differ in."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from overnight.cli.diff import diff
from overnight.cli.replay import replay
from overnight.errors import BadInput
from overnight.gpu.card import virtual
from overnight.night.key import parts
from overnight.orchestration.attempt import PARTS
from overnight.orchestration.launcher import Local, Stop, new_folder
from overnight.orchestration.protocol import StepSpec
from overnight.orchestration.recorded import Recorded, find
from overnight.orchestration.terminal import Display
from overnight.tracking.backlog import Record
from tests.support.steps_replayed import DrawParams, draws

ROOT = Path(__file__).resolve().parents[2]


class Quiet:
    def estimated(self, event):
        """Not needed."""

    event = log = estimated


@pytest.fixture
def recorded(checkout, monkeypatch):
    """Run the step below a run of an experiment, as an attempt leaves it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    own = new_folder("exp-run")
    Record(uri="u", experiment="exp", label="exp", tags={"mlflow.source.git.commit": "1"}).write(own)
    (own / "resolved.json").write_text(json.dumps({"name": "exp", "rows": 8}))

    def run(label="draws", seed=0, **values) -> Recorded:
        params = DrawParams(**values)
        folder = new_folder(label)
        Record(uri="u", experiment="exp", label=label, parent=str(own)).write(folder)
        spec = StepSpec(
            step="tests.support.steps_replayed:draws", label=label, experiment="exp",
            arguments=[params.model_dump(mode="json")], seed=seed, key=f"{label}{seed}",
        )  # fmt: skip
        (folder / PARTS).write_text(json.dumps(parts(draws, seed, [params], virtual())))
        assert Local(virtual()).run(folder, spec, Stop(), Quiet()).code == 0
        return find(folder.name)

    return run


def again(found: Recorded):
    return replay(found, Display(Console(file=io.StringIO(), width=200)))


def test_a_reproducible_step_is_bit_equal(recorded):
    made = recorded()
    verdict, lines = again(made)
    assert verdict == "bit-equal"
    assert "same digest" in lines[0]
    made.record.update(made.folder, run_id="a" * 32)
    skipped = new_folder("draws")
    tags = {"overnight.unchanged_since": "a" * 32}
    Record(uri="u", experiment="exp", label="draws", parent=made.record.parent, tags=tags).write(skipped)
    assert Recorded.read(skipped).origin().folder == made.folder


@pytest.mark.slow
def test_another_result_is_judged_by_the_seeds_that_ran(recorded):
    found = recorded(noise=1e-3)
    verdict, lines = again(found)
    assert verdict == "different"
    assert "1 of 1 arrays differ, by at most" in lines[0]
    assert "nothing in its key changed" in lines[-1]
    for seed in range(4):
        seeded = recorded(f"seed-{seed}/draws", seed, noise=1e-3)
    verdict, lines = again(seeded)
    assert verdict == "within its seed interval"
    assert any("its 4 seeds give" in line for line in lines)
    spec = json.loads((seeded.folder / "spec.json").read_text())
    spec["arguments"][0]["noise"] = 1e6
    (seeded.folder / "spec.json").write_text(json.dumps(spec))
    verdict, lines = again(find(seeded.folder.name))
    assert verdict == "different"
    assert "changed since: values params.noise 0.001 -> 1000000.0" in lines[-1]


def test_only_a_finished_step_is_replayed(recorded):
    found = recorded()
    result = json.loads((found.folder / "result.json").read_text())
    (found.folder / "result.json").write_text(json.dumps({**result, "code": 1}))
    with pytest.raises(BadInput, match="replay takes a finished step"):
        again(find(found.folder.name))
    (found.folder / "spec.json").unlink()
    with pytest.raises(BadInput, match="never ran to an end"):
        again(find(found.folder.name))


def test_two_runs_differ_in_what_was_changed(recorded):
    one, other = recorded(), recorded(seed=1, rows=9)
    assert diff(one, one) == {}
    found = diff(one, other)
    assert found["seed"] == ["0 -> 1"]
    assert found["values"] == ["params.rows 8 -> 9"]
    assert found["scores"][0].startswith("test/mean ")
    made_of = json.loads((other.folder / PARTS).read_text())
    code = "code tests/support/steps_replayed.py"
    made_of |= {code: "changed", "version numpy": "0.1", "code tasks/shared/new.py": "new"}
    (other.folder / PARTS).write_text(json.dumps(made_of))
    found = diff(one, find(other.folder.name))
    assert found["code"] == ["tests/support/steps_replayed.py", "tasks/shared/new.py (new)"]
    assert found["versions"][0].startswith("numpy ")
    assert found["versions"][0].endswith(" -> 0.1")


def test_two_experiments_differ_in_values_and_in_their_steps(recorded):
    one = Recorded.read(Path(recorded().record.parent))
    later = new_folder("exp-run")
    Record(uri="u", experiment="exp", label="exp", tags={"mlflow.source.git.commit": "2"}).write(later)
    (later / "resolved.json").write_text(json.dumps({"name": "exp", "rows": 9}))
    found = diff(one, Recorded.read(later))
    assert found == {
        "values": ["rows 8 -> 9"],
        "code": ["commit 1 -> 2"],
        "steps": ["draws only in the first"],
    }
