"""What the disk keeps, and what is never removed."""

import json
import os
import time

import pytest

from overnight import locks
from overnight.night import results
from overnight.night.clean import STAMP, Keep, clean, plan, remove
from overnight.night.key import digest
from overnight.night.results import Result, remember
from overnight.paths import services, state, steps
from overnight.processes import Identity
from overnight.tracking import backlog
from overnight.tracking.backlog import End, Record
from overnight.tracking.client import Tracker
from overnight.tracking.registry import Registry

DAY = 86400.0


def step(name, days, **record):
    """The folder of a step that began so many days ago, with an artifact."""
    folder = steps() / f"{time.strftime(STAMP, time.localtime(time.time() - days * DAY))}-{name}"
    (folder / "out" / "model").mkdir(parents=True)
    (folder / "out" / "model" / "meta.json").write_text("{}" + name)
    if record:
        Record(uri="", experiment="x", label=name, **record).write(folder)
    return folder


def result(folder, seed, days, digest_of="", upstream=""):
    """What is remembered of it, last used so many days ago."""
    parts = {"seed": str(seed), "argument images": upstream}
    value = {"kind": "model", "path": f"steps/{folder.name}/out/model", "digest": digest_of or folder.name}
    made = Result(
        key=digest(parts),
        parts=parts,
        step="s",
        label="x/f",
        experiment="x",
        value=value,
        folder=folder.name,
        at=1.0,
    )
    remember(made)
    os.utime(results.file_of(made.key), (time.time() - days * DAY,) * 2)
    return made


def planned(keep=None, texts=""):
    return {(one.kind, one.path) for one in plan(keep or Keep(), texts, time.time())}


def test_old_steps_go_with_their_logs_but_not_those_that_hold_a_result(checkout):
    old, used, young = step("old", 61), step("used", 61), step("young", 59)
    result(used, 0, 50)
    assert planned() == {("step", old), ("artifact", young / "out")}


def test_artifacts_go_with_the_results_beyond_the_newest_used(checkout):
    folders = [step(f"s{n}", 9 - n) for n in range(4)]
    made = [result(folder, n, 9 - n) for n, folder in enumerate(folders)]
    os.utime(results.file_of(made[0].key))  # used again
    gone = {("result", results.file_of(made[n].key)) for n in (1, 2)}
    assert planned(Keep(results=2)) == gone | {("artifact", folders[n] / "out") for n in (1, 2)}
    assert remove(plan(Keep(results=2), "", time.time())) == []
    assert sorted(one.key for one in results.all_results()) == sorted(made[n].key for n in (0, 3))
    assert [(folder / "out").exists() for folder in folders] == [True, False, False, True]


def test_what_a_champion_needs_stays_with_what_it_was_made_of(checkout):
    images, model, other = step("images", 30), step("model", 30), step("other", 30)
    above = result(images, 0, 20, digest_of="a" * 64)
    champion = result(model, 1, 30, digest_of="b" * 64, upstream='{"digest": "%s"}' % ("a" * 64))
    result(other, 2, 10)
    assert planned(
        Keep(results=1), json.dumps([{"overnight.artifact": f"steps/{other.name}/out/model"}])
    ) == {("result", results.file_of(one.key)) for one in (above, champion)} | {
        ("artifact", folder / "out") for folder in (images, model)
    }
    for tags in ({"overnight.key": champion.key}, {"evidence": json.dumps({"x": "b" * 64})}):
        assert planned(Keep(results=1), json.dumps([tags])) == set()
    assert ("result", results.file_of(above.key)) in planned(Keep(results=1))
    assert not {kind for kind, _ in planned(Keep(results=1), None)} & {"result", "artifact"}


def checkpoint(key, days, *folders):
    place = state() / "checkpoints" / key
    (place / "0").mkdir(parents=True)
    (place / "run.json").write_text(json.dumps({"folders": [str(one) for one in folders]}))
    for path in place.rglob("*"):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return place


def test_a_training_that_can_go_on_keeps_its_checkpoint_and_its_folders(checkout):
    first, second = step("first", 70), step("second", 71)
    checkpoint("young", 13, first)
    stale = checkpoint("stale", 15, second)
    assert planned() == {("checkpoint", stale), ("step", second)}
    with locks.hold(stale / "lock", "a training"):
        removals = plan(Keep(), "", time.time())
        assert removals == []
    found = plan(Keep(), "", time.time())
    with locks.hold(stale / "lock", "a training that began after the plan"):
        assert remove(found) == []
        assert stale.exists()


def test_what_an_open_run_has_found_or_made_stays(checkout):
    run = step("run", 3, tags=Identity.mine().tags())
    made, before = step("made", 2), step("before", 4)
    result(made, 0, 5)
    found = result(step("found", 40), 1, 2)
    unused = result(step("unused", 40), 2, 4)
    now = planned(Keep(results=1))
    assert ("artifact", made / "out") not in now
    assert ("artifact", before / "out") in now
    assert ("result", results.file_of(found.key)) not in now
    assert ("result", results.file_of(unused.key)) in now
    step_record = Record.read(run)
    assert step_record is not None
    step_record.update(run, end=End(status="FINISHED", at=1.0))
    assert ("artifact", made / "out") in planned(Keep(results=1))


def test_what_mlflow_does_not_have_yet_stays(checkout):
    waiting = step("waiting", 100)
    (services() / "backlog").mkdir(parents=True)
    backlog.enqueue(waiting)
    assert planned() == set()
    backlog.mark_done(waiting)
    assert planned() == {("step", waiting)}


def test_a_result_that_is_used_after_the_plan_stays(checkout):
    folders = [step(f"s{n}", 9) for n in range(2)]
    made = [result(folder, n, 9 - n) for n, folder in enumerate(folders)]
    found = plan(Keep(results=1), "", time.time())
    assert len(found) == 2
    os.utime(results.file_of(made[0].key))
    assert remove(found) == []
    assert (folders[0] / "out").exists()
    assert results.file_of(made[0].key).exists()


def test_what_cannot_be_removed_is_said(checkout):
    old = step("old", 100)
    found = plan(Keep(), "", time.time())
    (old / "out" / "model" / "meta.json").unlink()
    for path in (old / "out" / "model", old / "out", old):
        path.rmdir()
    (problem,) = remove(found)
    assert problem == f".overnight/steps/{old.name}: No such file or directory"


@pytest.mark.slow
def test_versions_beyond_the_newest_go_but_no_champion_nor_the_one_before(checkout):
    tracker = Tracker(f"sqlite:///{checkout}/mlflow.db", "x")
    client, name = tracker.client, "a net"
    client.create_registered_model(name)
    for number in range(7):
        client.create_model_version(name, f"file://{checkout}/{number}")
    Registry(tracker).promote(name, 2)
    Registry(tracker).promote(name, 4)
    client.set_registered_model_alias(name, "mine", "1")
    rows, problems = clean(Keep(versions=2), tracker, dry_run=True)
    assert ([row["place"] for row in rows], problems) == (["a net@5", "a net@3"], [])
    assert clean(Keep(versions=2), tracker)[1] == []
    left = client.search_model_versions()
    assert sorted(int(one.version) for one in left) == [1, 2, 4, 6, 7]
    assert Registry(tracker).rollback(name) == (4, 2)


def test_without_mlflow_results_and_versions_stay(checkout):
    folders = [step(f"s{n}", 9) for n in range(2)]
    for n, folder in enumerate(folders):
        result(folder, n, 9)
    old = step("old", 100)
    rows, (problem,) = clean(Keep(results=1), Tracker("http://127.0.0.1:9", "x"))
    assert [row["what"] for row in rows] == ["step"]
    assert not old.exists()
    assert "MLflow does not answer" in problem


def test_copies_that_are_not_used_go(checkout):
    for name in ("reports/a.html", "unpacked/key/b.csv", "unpacked/used/c.csv"):
        path = state() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        old = path if path.parent.name == "reports" else path.parent
        os.utime(old, (time.time() - 61 * DAY,) * 2)
    os.utime(state() / "unpacked" / "used")
    removals = plan(Keep(), "", time.time())
    assert {one.path.name for one in removals} == {"a.html", "key"}
    assert remove(removals) == []
    assert [path.name for path in state().rglob("*.csv")] == ["c.csv"]
    assert not list(state().rglob("*.html"))
