"""A step whose result is remembered is skipped, with its reason; any other runs, and says why."""

import io
import json
import shutil
import threading
from pathlib import Path

import pytest
from rich.console import Console

from overnight import Experiment, Params, Run, step
from overnight.artifact import Artifact
from overnight.gpu.card import Card
from overnight.night import key as keys
from overnight.night import results
from overnight.orchestration.attempt import SINCE, run_step
from overnight.orchestration.pipeline import Pending, PipelineRun
from overnight.orchestration.prefect import as_state
from overnight.orchestration.protocol import StepResult
from overnight.orchestration.terminal import Display
from overnight.paths import state
from overnight.run import EventLogRun
from overnight.step import load_step
from overnight.tracking.backlog import Record
from overnight.tracking.client import NOTE_TAG, Tracker

CARD = Card(uuid="virtual", name="virtual", total_mib=1024, budget_mib=1024)


class CountParams(Params):
    upto: int = 3
    way: str = "well"  # how it ends


@step
def count(run: Run, params: CountParams, above: Artifact | None = None) -> Artifact:
    """Count; what it saves depends on whether the number is even."""
    run.metric("test/sum", sum(range(params.upto)))
    if params.way == "provisional":
        run.provisional("from scratch: no network")
    if params.way == "fails":
        raise ValueError("no")
    return run.save("count", meta={"even": params.upto % 2 == 0, "above": above and above.digest})


class WordParams(Params):
    file: Path


@step
def read_words(run: Run, params: WordParams) -> None:
    """Read a file."""


@step(reproducible=False)
def ask(run: Run, params: CountParams) -> None:
    """Ask a clock."""


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert Tracker(f"sqlite:///{path}", "made").experiment_id
    return path


class Here:
    """A launcher that runs bodies in this process."""

    def __init__(self):
        self.began = []
        self.meanwhile = lambda: None

    def run(self, folder, spec, _stop, listener):
        self.began.append(spec.label)
        run = EventLogRun(folder, spec.seed)
        run._emit = listener.event
        known = load_step(spec.step)
        try:
            value = known.body(run, *known.from_json(spec.arguments))
        except ValueError as error:
            return StepResult(code=1, error=str(error))
        self.meanwhile()
        return StepResult(code=0, value=value and value.model_dump(mode="json"), run_s=1.0)


class Silent:
    """A page that shows nothing."""

    def tags(self):
        return {}

    def ignore(self, *_given):
        pass

    log = link = progress = finish = ignore


class Night:
    def __init__(self, root, database):
        shutil.copy(database, root / "mlflow.db")
        self.tracker = Tracker(f"sqlite:///{root}/mlflow.db", "made")
        self.launcher = Here()
        self.display = None

    def run(self, *calls, fresh=False, label=""):
        """Run steps, each given the one before; their labels' pending steps."""
        experiment = Experiment(name="made", fresh=fresh)
        self.launcher.began.clear()
        self.display = Display(Console(file=io.StringIO()))
        own = Record(uri=self.tracker.uri, experiment="made", label="made")
        folder = state() / "steps" / "own"
        folder.mkdir(parents=True, exist_ok=True)
        own.model_copy(update={"run_id": self.tracker.open("made", {}), "created": 0}).write(folder)
        own_run = type("Own", (), {"folder": folder})()
        run = PipelineRun(experiment, CARD, self.tracker, own_run, self.display, None, self.launcher)
        found = []
        for number, (known, params) in enumerate(calls):
            name = f"{label or 'part'}/{known.name}-{number}"
            pending = Pending(name, known, [], self.display.add(name))
            arguments = [params, found[-1] if found else None] if known is count else [params]
            pending.outcome = run_step(run, pending, arguments, Silent())
            found.append(pending)
        return found

    def states(self, *calls, **more):
        return [pending.row.state for pending in self.run(*calls, **more)]

    def mlflow(self):
        """Runs of steps, the newest first."""
        found = self.tracker.client.search_runs([self.tracker.experiment_id])
        return [run for run in found if "/" in run.info.run_name]


@pytest.fixture
def night(checkout, database, monkeypatch):
    monkeypatch.chdir(checkout)
    (checkout / ".overnight").mkdir()
    return Night(checkout, database)


CHAIN = (count, CountParams(upto=3)), (count, CountParams(upto=4))


def test_the_second_time_nothing_runs_and_each_step_names_the_run_it_comes_from(night):
    assert night.states(*CHAIN) == ["done", "done"]
    before = night.mlflow()
    first, second = night.run(*CHAIN)
    assert night.launcher.began == []
    assert (first.row.state, second.row.state) == ("unchanged", "unchanged")
    made = {run.info.run_name: run.info.run_id for run in before}
    for pending in (first, second):
        assert pending.since.run_id == made[pending.label]
        assert f"(run {made[pending.label][:8]})" in pending.row.text
        assert as_state(pending.outcome).name == "Unchanged"
        assert as_state(pending.outcome).is_completed()
    again = night.mlflow()[: len(night.mlflow()) - len(before)]
    assert {run.info.run_name for run in again} == set(made)
    for run in again:
        assert run.info.status == "FINISHED"
        assert run.data.tags[f"mlflow.{SINCE}"] == made[run.info.run_name]
        assert run.data.tags[NOTE_TAG].startswith("unchanged since [")
        assert run.data.metrics == {"test/sum": 3.0 if run.info.run_name.endswith("0") else 6.0}
    assert second.artifact.meta() == {"even": True, "above": first.artifact.digest}


def test_what_changed_is_said_and_steps_below_run_only_when_its_result_is_another(night):
    night.run(*CHAIN)
    first, second = night.run((count, CountParams(upto=5)), CHAIN[1])
    assert (first.row.state, second.row.state) == ("done", "unchanged")  # odd again: the same artifact
    assert first.changed == ["argument params"]
    assert first.why.endswith("params.upto 3 -> 5")
    first, second = night.run((count, CountParams(upto=6)), CHAIN[1])
    assert (first.row.state, second.row.state) == ("done", "done")
    assert second.changed == ["argument above"]
    assert night.states(*CHAIN) == ["unchanged", "unchanged"]  # as after `git checkout` to and fro


def test_a_step_under_another_label_takes_the_result_too(night):
    night.run(*CHAIN)
    (pending,) = night.run(CHAIN[0], label="other")
    assert pending.row.state == "unchanged"


@pytest.mark.parametrize(
    ("fresh", "ran"),
    [
        (True, ["part/count-0", "part/count-1"]),
        (("part/count-0",), ["part/count-0"]),
        (("count",), ["part/count-0", "part/count-1"]),
        (("part",), ["part/count-0", "part/count-1"]),
        (("other",), []),
    ],
)
def test_what_is_asked_for_afresh_runs_again(night, fresh, ran):
    night.run(*CHAIN)
    night.run(*CHAIN, fresh=fresh)
    assert night.launcher.began == ran


def test_a_step_that_is_not_reproducible_runs_every_time(night):
    assert [night.states((ask, CountParams())) for _ in range(2)] == [["done"], ["done"]]


def test_what_failed_or_is_not_what_was_asked_for_is_not_remembered(night):
    for way, end in (("fails", "failed"), ("provisional", "done")):
        calls = ((count, CountParams(way=way)),)
        assert [night.states(*calls) for _ in range(2)] == [[end], [end]]
    assert list(results.all_results()) == []


def test_what_changed_while_the_step_ran_is_not_remembered(night, checkout):
    words = checkout / "words.txt"
    words.write_text("a")
    night.launcher.meanwhile = lambda: words.write_text("b")
    calls = ((read_words, WordParams(file=words)),)
    assert night.states(*calls) == ["done"]
    assert list(results.all_results()) == []
    assert "meanwhile changed words.txt" in night.display.console.file.getvalue()
    assert [night.states(*calls) for _ in range(2)] == [["done"], ["unchanged"]]


def test_a_removed_or_damaged_result_is_made_again_and_says_why(night):
    (pending,) = night.run(CHAIN[0])
    shutil.rmtree(pending.artifact.path)
    (pending,) = night.run(CHAIN[0])
    assert (pending.row.state, "was removed" in pending.why) == ("done", True)
    (pending.artifact.path / "meta.json").write_text("{}")
    (pending,) = night.run(CHAIN[0])
    assert (pending.row.state, "changed or damaged" in pending.why) == ("done", True)
    results.file_of(pending.key).write_text("{")
    (pending,) = night.run(CHAIN[0])
    assert (pending.row.state, "is damaged" in pending.why) == ("done", True)
    assert pending.why in night.mlflow()[0].data.tags[NOTE_TAG]
    assert night.states(CHAIN[0]) == ["unchanged"]


def test_two_runs_of_one_key_at_once_leave_a_result(night):
    both = [threading.Thread(target=night.run, args=(CHAIN[0],)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert night.states(CHAIN[0]) == ["unchanged"]


def test_a_result_whose_run_was_opened_later_names_it_all_the_same(night):
    (pending,) = night.run(CHAIN[0])
    file = results.file_of(pending.key)
    run_id = json.loads(file.read_text())["run_id"]
    results.remember(results.find(pending.key).model_copy(update={"run_id": "", "link": ""}))
    (again,) = night.run(CHAIN[0])
    assert again.since.run_id == run_id
    assert keys.digest(again.since.parts) == again.key
