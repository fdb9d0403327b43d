"""A new model is registered, judged beside the champion and promoted or not; whatever goes wrong keeps the champion."""

import json
import shutil
from pathlib import Path

import pytest

from overnight import events
from overnight.config import Experiment
from overnight.errors import ConfigError, OvernightError
from overnight.gpu.card import find
from overnight.night.evidence import level
from overnight.orchestration.checks import check_names
from overnight.orchestration.judging import Contest, gone, part_of
from overnight.orchestration.launcher import Local, Stop
from overnight.orchestration.protocol import StepResult
from overnight.run import RecordingRun
from overnight.step import load_step, step
from overnight.tracking.backlog import Record
from overnight.tracking.client import NOTE_TAG, Tracker
from overnight.tracking.registry import ALIAS, EVIDENCE, FOLDER, PROMOTED, Registry
from overnight.tracking.uploader import Uploader
from tests.support.coins import coin, items
from tests.support.registered import Models, log

ROOT = Path(__file__).resolve().parents[2]


@step
def train(run, params):
    """Stands for a training; nothing of it runs here."""


@step
def train_other(run, params):
    """Another one."""


class Here:
    """A launcher that runs the body in this process."""

    def __init__(self):
        self.looks = 0

    def run(self, folder, spec, stop, listener):
        self.looks += 1
        found = load_step(spec.step)
        try:
            value = found.body(RecordingRun(folder), *found.from_json(spec.arguments))
        except OvernightError as error:
            return StepResult(code=error.child_code, error=str(error))
        return StepResult(code=0, value=value.model_dump(mode="json"))


class Night:
    """Trainings of one config, one after another."""

    def __init__(self, root, uri, name):
        self.root = root
        self.models = Models(Registry(Tracker(uri, "made")), name)
        self.test_set = items(root / "images", 3000)
        self.launcher = Here()
        self.number = 0

    def train(self, errors, seed=None, trained=train, flow="vision", away=False):
        """What the gate said of a model that errs so often; away: MLflow is."""
        self.number += 1
        folder = self.root / ".overnight" / "steps" / f"step-{self.number}"
        folder.mkdir(parents=True)
        model = coin(folder / "out" / "model", errors, self.number if seed is None else seed)
        tracker = self.models.registry.tracker
        record = Record(uri=tracker.uri, experiment="made", label="train")
        self.uploader = Uploader(tracker, folder, record)
        if not away:
            self.uploader.upload_all(5)
            log(tracker, self.uploader.run_id, model.digest, model.path)
        contest = Contest(
            experiment=Experiment(flow=flow, name=self.models.name), label="train", step=trained, key="k",
            arguments=[{}, self.test_set], model=model, folder=folder, uploader=self.uploader, log=print,
        )  # fmt: skip
        facts = contest.hold(self.launcher, Stop())
        if not away:
            assert self.uploader.upload_all(5)
        self.uploader.release()
        return facts

    def champion(self):
        return self.models.champion()

    def note(self):
        client = self.models.registry.client
        return client.get_run(self.uploader.run_id).data.tags.get(NOTE_TAG, "")


@pytest.fixture
def night(checkout, mlflow_uri, request):
    return Night(checkout, mlflow_uri, request.node.name)


def test_the_first_model_is_the_champion_and_a_better_one_takes_its_place(night):
    assert night.train(0.3)["reason"] == "the first model of this name is the champion, without a contest"
    assert night.champion() == 1
    facts = night.train(0.1)
    assert (facts["promotes"], facts["champion"], facts["look"], night.champion()) == (True, 1, 1, 2)
    evidence = night.models.find().champion.facts(EVIDENCE)
    assert evidence["gain"] == pytest.approx(0.2, abs=0.05)
    assert evidence["level"] == level(1, 0.05)
    assert "look 1 of the year" in night.note()
    assert "docs/promotion.md" in night.note()


@pytest.mark.slow
def test_an_equal_model_is_registered_and_not_promoted_and_the_look_is_counted(night):
    night.train(0.2)
    for look in (1, 2):
        facts = night.train(0.2)
        assert (facts["promotes"], facts["look"], night.champion()) == (False, look, 1)
        assert "is not shown to be better" in night.note()
    assert night.models.find().account["looks"] == 2


@pytest.mark.slow
def test_the_same_model_again_is_no_new_look(night):
    night.train(0.2)
    first = night.train(0.2, seed=7)
    again = night.train(0.2, seed=7)
    assert "not counted again" in again["reason"]
    assert (again["log_evidence"], again["look"]) == (first["log_evidence"], 1)
    found = night.models.find()
    assert (len(found.versions), found.account["looks"]) == (2, 1)
    assert "it is the champion, version 1, again" in night.train(0.2, seed=1)["reason"]


@pytest.mark.slow
def test_a_changed_test_set_starts_the_evidence_anew_and_counts(night, checkout):
    night.train(0.2)
    night.train(0.2, seed=7)
    night.test_set = items(checkout / "more", 3100)
    assert night.train(0.2, seed=7)["look"] == 2


@pytest.mark.slow
def test_no_look_is_taken_when_the_budget_is_used_up(night):
    night.train(0.3)
    found = night.models.find()
    night.models.registry.client.set_registered_model_tag(
        night.models.name, "overnight.account", json.dumps({**found.account, "looks": 1000})
    )
    facts = night.train(0.0)
    assert "budget is used up" in facts["reason"]
    assert (night.launcher.looks, night.champion()) == (0, 1)


def test_an_alias_that_was_removed_by_hand_is_said_and_nothing_is_promoted(night):
    night.train(0.3)
    night.models.registry.client.delete_registered_model_alias(night.models.name, ALIAS)
    facts = night.train(0.0)
    assert f"the alias champion of {night.models.name} was removed" in facts["reason"]
    assert f"`overnight promote {night.models.name}@1` puts it back" in facts["reason"]
    assert night.champion() == 0
    assert len(night.models.find().versions) == 2


def test_a_name_of_another_flow_is_refused_before_and_after_a_training(night):
    night.train(0.3)
    facts = night.train(0.0, flow="detect")
    assert (
        f"not registered: {night.models.name}: the registry's model of this name is one of the flow vision"
        in facts["reason"]
    )
    assert len(night.models.find().versions) == 1
    with pytest.raises(ConfigError, match="give the experiment another name"):
        check_names(night.models.registry.tracker, Experiment(flow="detect", name=night.models.name))
    check_names(night.models.registry.tracker, Experiment(flow="vision", name=night.models.name))
    check_names(night.models.registry.tracker, Experiment(flow="detect", name="new"))


@pytest.mark.slow
def test_a_second_model_of_one_experiment_has_a_name_of_its_own(night):
    night.train(0.3)
    assert night.train(0.3, trained=train_other)["name"] == f"{night.models.name}-train_other"
    assert night.train(0.3)["name"] == night.models.name
    assert night.models.registry.find(f"{night.models.name}-train_other").champion.number == 1


@pytest.mark.slow
def test_a_champion_whose_folder_is_gone_comes_from_mlflow(night):
    night.train(0.3)
    shutil.rmtree(night.root / ".overnight" / "steps" / "step-1" / "out")
    assert night.train(0.1)["promotes"]


@pytest.mark.slow
def test_a_champion_that_is_gone_everywhere_is_said(night):
    night.train(0.3)
    found = night.models.find().champion
    shutil.rmtree(night.root / ".overnight" / "steps" / "step-1" / "out")
    shutil.rmtree(found.source.removeprefix("file://"))
    facts = night.train(0.0)
    assert "the champion, version 1, is gone: neither" in facts["reason"]
    assert "overnight promote" in facts["reason"]
    assert (night.champion(), len(night.models.find().versions)) == (1, 2)


@pytest.mark.slow
def test_a_champion_that_todays_code_cannot_load_is_said(night):
    night.train(0.3)
    found = night.models.find().champion
    old = night.root / ".overnight" / found.tags[FOLDER]
    (old / "meta.json").write_text(json.dumps({"predictor": "tests.support.coins:Gone"}))
    from overnight.files import tree_sha256

    night.models.registry.client.set_model_version_tag(
        night.models.name, "1", "overnight.digest", tree_sha256(old)
    )
    facts = night.train(0.0)
    assert "not judged: the champion, version 1, or the new model could not be scored" in facts["reason"]
    assert night.champion() == 1


@pytest.mark.slow
def test_code_and_data_of_a_champion_that_are_not_here_are_named(night):
    night.train(0.3)
    client = night.models.registry.client
    client.set_model_version_tag(night.models.name, "1", "overnight.commit", "0" * 40)
    client.set_model_version_tag(night.models.name, "1", "overnight.data.away", "x")
    assert gone(night.models.find().champion) == [
        "the code (commit 0000000000) is in no history here",
        "the data set away has no entry any more",
    ]


def test_a_server_that_is_away_stops_nothing_and_the_model_waits_to_be_registered(night):
    facts = night.train(0.3, away=True)
    assert "MLflow does not answer; it is registered when it does" in facts["reason"]
    waiting = list(events.read_all(night.uploader.folder / events.PARENT))
    assert [event["event"] for event in waiting] == ["register", "judged", "note"]
    assert waiting[1]["former"] == 0


def test_the_part_of_a_night_that_a_step_belongs_to_gives_name_flow_and_gate():
    from flows.nightly import Nightly

    parts = [
        {"flow": "agent", "name": "cart", "gate": {"alpha": 0.2}},
        {"flow": "agent", "name": "pole"},
    ]
    whole = Nightly.model_validate({"flow": "nightly", "name": "night", "experiments": parts})
    found = part_of(whole, "cart/train_agent")
    assert (found.name, found.flow, found.values.gate.alpha) == ("cart", "agent", 0.2)
    assert part_of(whole, "pole/train_agent").values.gate.alpha == 0.05
    alone = part_of(Experiment(flow="vision", name="digits"), "train_cnn")
    assert (alone.name, alone.flow) == ("digits", "vision")
    assert part_of(whole, "seed-3/cart/train_agent").name == "cart"
    assert part_of(Experiment(flow="vision", name="digits"), "seed-3/train_cnn").name == "digits"


@pytest.mark.slow
def test_judging_runs_in_a_child_of_its_own(night, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    night.launcher = Local(find(cpu=True))
    night.train(0.3)
    facts = night.train(0.1)
    assert facts["promotes"], facts["reason"]
    result = json.loads((night.uploader.folder / "judge" / "result.json").read_text())
    assert (result["code"], result["value"]["kind"]) == (0, "verdict")
    assert PROMOTED in night.models.find().champion.tags
