"""MLflow's client, the tail of a child's files, and what the terminal shows of both."""

import json

import pytest

from overnight.orchestration.launcher import Tail
from overnight.orchestration.terminal import scores
from overnight.tracking.backlog import read_offset, write_offset
from overnight.tracking.client import MAX_NOTE, NOTE_TAG, VIEW_TAG, Tracker, append_note


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "made")


def test_a_deleted_experiment_of_that_name_is_taken_up_again(tracker):
    tracker.client.delete_experiment(tracker.experiment_id)
    assert Tracker(tracker.uri, "made").experiment_id == tracker.experiment_id


def test_a_new_experiment_is_described(tracker):
    made = Tracker(tracker.uri, "another", "Leaves, at 64 px.")
    assert tracker.client.get_experiment(made.experiment_id).tags[NOTE_TAG] == "Leaves, at 64 px."


def test_the_list_of_runs_shows_the_score_also_of_an_experiment_of_before(tracker):
    before = tracker.client.create_experiment("before")
    for made in (tracker.experiment_id, Tracker(tracker.uri, "before").experiment_id):
        view = json.loads(tracker.client.get_experiment(made).tags[VIEW_TAG])
        assert view["selectedColumns"][0] == "metrics.`score`"
    assert made == before


def test_what_people_do_not_read_is_hidden_and_still_found(tracker):
    tags = {"overnight.step": "tasks.a:b", "prefect.flow_run_id": "7", "input.images": "d", "card": "virtual"}
    run_id = tracker.open("step", tags)
    shown = tracker.client.get_run(run_id).data.tags
    assert {name for name in shown if not name.startswith("mlflow.")} == {"card"}
    assert all(tracker.find(name, value) == run_id for name, value in tags.items())


def test_a_tail_gives_whole_lines_only(tmp_path):
    tail = Tail(tmp_path / "log.txt")
    assert tail.read(last=True) == []
    (tmp_path / "log.txt").write_text('{"a": 1}\n{"b"')
    assert tail.read(last=False) == ['{"a": 1}']
    with (tmp_path / "log.txt").open("a") as file:
        file.write(": 2}\n\nend")
    assert tail.read(last=False) == ['{"b": 2}']
    assert tail.read(last=True) == ["end"]


def test_a_tail_of_a_second_child_begins_where_the_first_ended(tmp_path):
    (tmp_path / "log.txt").write_text('{"a": 1}\n{"cut')
    tail = Tail(tmp_path / "log.txt")
    with (tmp_path / "log.txt").open("a") as file:
        file.write('\n{"b": 2}\n')
    assert tail.read(last=False) == ['{"b": 2}']


def test_the_terminal_shows_test_scores_first():
    assert (
        scores({"train/lr": 1, "train/loss": 0.5, "val/a": 0.25, "test/a": 0.125}, 2) == "a 0.125  val/a 0.25"
    )


def test_a_run_is_gone_on_with_unless_it_is_gone(tracker):
    run_id = tracker.open("step", {"attempts": "1"}, "parent-1")
    tracker.close(run_id, "KILLED")
    assert tracker.reopen(run_id, {"attempts": "2"}, "parent-2")
    found = tracker.client.get_run(run_id)
    assert (found.info.status, found.data.tags["attempts"], found.data.tags["mlflow.parentRunId"]) == (
        "RUNNING",
        "2",
        "parent-2",
    )
    tracker.params(run_id, {"epochs": 3})
    tracker.tags(run_id, {NOTE_TAG: "what happened before"})
    tracker.metrics(run_id, [{"values": {"loss": 1.0}, "step": step, "at": 1.0} for step in (7, 2)])
    said = tracker.run_state(run_id)
    assert (said.params, said.note, said.steps) == ({"epochs": "3"}, "what happened before", {"loss": 7})
    assert tracker.find("attempts", "2") == run_id
    assert tracker.find("attempts", 'no "such" number') is None
    tracker.client.delete_run(run_id)
    assert not tracker.reopen(run_id, {})
    assert not tracker.reopen("0" * 32, {})


def test_offsets_are_kept_for_each_run_and_junk_says_nothing(tmp_path):
    log = tmp_path / "events.jsonl"
    write_offset(log, "a", 7)
    write_offset(log, "b", 3)
    assert [read_offset(log, run) for run in "abc"] == [7, 3, 0]
    (tmp_path / "shipped.json").write_text(json.dumps({"a": [1]})[:-2])
    assert read_offset(log, "a") == 0
    (tmp_path / "shipped.json").write_text('{"a": [1]}')
    assert read_offset(log, "a") == 0
    write_offset(log, "a", 9)
    assert read_offset(log, "a") == 9


def test_a_description_grows_by_paragraphs_and_stays_within_what_mlflow_takes():
    text = ""
    for number in range(400):
        text = append_note(text, f"paragraph {number} of what happened")
    assert text.startswith("paragraph 0")
    assert text.endswith("paragraph 399 of what happened")
    assert len(text) <= MAX_NOTE
    assert append_note("a\n\nb", "a") == "a\n\nb"
