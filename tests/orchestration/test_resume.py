"""A run that was killed or stopped inside an epoch goes on there when the same command is typed again."""

import json
import signal
import subprocess
import sys
from collections import Counter

import pytest

from overnight import events as event_log
from overnight import services
from overnight.tracking import backlog
from overnight.tracking.client import Tracker
from overnight.training.resume import MONITOR
from tests.support.checkouts import living_in, make_checkout, until
from tests.test_end_to_end import ENTRY, children, stripes

pytestmark = [pytest.mark.services, pytest.mark.slow]
CONFIG = "flow: vision\ndata: made\ncnn: {epochs: 40, batch: 16, channels: 8, blocks: 1, checkpoint_s: 0.1}\n"
TRIES = 5  # of a training that came to its end before the signal did


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = make_checkout(tmp_path_factory.mktemp("checkout"))
    (root / "datasets").mkdir()
    (root / "datasets" / "made.yaml").write_text(ENTRY)
    stripes(root / "datasets" / "made", 40)
    (root / "configs" / "made.yaml").write_text(CONFIG)
    with living_in(root):
        yield root


def start(seed, *words):
    command = [sys.executable, "-m", "overnight.cli.main", "run", "made", f"seed={seed}", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def spools(root, seed):
    """Of the trainings with this seed, the oldest first."""
    found = [
        path.parent
        for path in (root / ".overnight" / "steps").glob("*train_cnn*/spec.json")
        if json.loads(path.read_text())["seed"] == seed
    ]
    return sorted(found, key=lambda folder: (folder / "spec.json").stat().st_mtime_ns)


def trained(folder):
    """Steps that a child has logged."""
    events, start = [], 0
    while (portion := event_log.read(folder / event_log.CHILD, start)).end > start:
        events, start = events + portion.events, portion.end
    return [e["step"] for e in events if e["event"] == "metrics" and "train/loss" in e["values"]]


def ended_at(root, seed, attempt, steps, end):
    """Start the command; end it when this attempt has logged so many steps. Whether it was still training."""
    process = start(seed)

    def there():
        found = spools(root, seed)[attempt:]
        return process.poll() is not None or (found and len(trained(found[0])) >= steps)

    until(there, f"step {steps} of attempt {attempt}")
    end(process)
    output, _ = process.communicate()
    found = spools(root, seed)
    assert len(found) == attempt + 1, output
    until(lambda: not children(root), "the child's end")
    result = found[attempt] / "result.json"
    return not result.exists() or json.loads(result.read_text())["code"] != 0


def power_cut(root):
    """Child and parent are killed, then the services end: only files are left."""

    def end(process):
        for one in children(root):
            one.kill()
        process.kill()
        services.down(force=True)

    return end


def ctrl_c(process):
    process.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def story(home):
    """The seed of a training that was killed with its services, then stopped by Ctrl-C, and then ended."""
    for seed in range(TRIES):
        if ended_at(home, seed, 0, 20, power_cut(home)) and ended_at(home, seed, 1, 20, ctrl_c):
            break
    else:
        pytest.fail(f"{TRIES} trainings were over before they could be ended")
    process = start(seed)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return seed


@pytest.fixture(scope="module")
def whole(home, story):
    """The same training again, undisturbed; its folder."""
    process = start(story, "--fresh")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return spools(home, story)[-1]


@pytest.fixture(scope="module")
def tracker(home):
    return Tracker(services.environment()["MLFLOW_TRACKING_URI"], "made")


def run_of(tracker, folder):
    (found,) = tracker.client.search_runs(
        [tracker.experiment_id], f"tags.`mlflow.overnight.folder` = '{folder}'"
    )
    return found


def points(tracker, run):
    names = [name for name in run.data.metrics if not name.startswith("train/samples")]
    return {
        name: [(m.step, m.value) for m in tracker.client.get_metric_history(run.info.run_id, name)]
        for name in names
    }


def test_all_attempts_are_one_run_of_mlflow_that_ends_well(home, story, whole, tracker):
    attempts = [folder for folder in spools(home, story) if folder != whole]
    run = run_of(tracker, attempts[-1])  # it names the newest
    assert len(attempts) == 3
    assert (run.info.status, run.data.tags["mlflow.overnight.attempts"]) == ("FINISHED", "3")
    assert [tracker.find("overnight.folder", str(folder)) for folder in attempts[:-1]] == [None] * 2
    notes = run.data.tags["mlflow.note.content"]
    assert sum(line.startswith("goes on after optimizer step") for line in notes.splitlines()) == 2
    assert "\n\nstopped at " in notes
    assert not any(backlog.is_pending(folder) for folder in attempts)


def test_every_point_is_there_once_and_as_if_nothing_had_happened(home, story, whole, tracker):
    attempts = [folder for folder in spools(home, story) if folder != whole]
    ours, theirs = (points(tracker, run_of(tracker, folder)) for folder in (attempts[-1], whole))
    science = {name for name in theirs if name.startswith(("train/", "val/", "test/"))} - {"train/tflops"}
    assert {name: sorted(ours[name]) for name in science} == {name: sorted(theirs[name]) for name in science}
    assert len(ours["train/loss"]) > 100
    for name, found in ours.items():
        assert max(Counter(step for step, _ in found).values()) == 1, name
    reports = {step for name, found in ours.items() if name.startswith(MONITOR) for step, _ in found}
    assert reports == set(range(len(reports)))


def test_each_attempt_keeps_what_it_took(home, story, whole, tracker):
    run = run_of(tracker, [folder for folder in spools(home, story) if folder != whole][-1])
    logged = sorted(name for name in run.data.params if name.startswith("usage/lease_mib"))
    assert logged == ["usage/lease_mib.2", "usage/lease_mib.3"]  # the first was killed before it could say it
    assert {step for step, _ in points(tracker, run)["system/usage_run_s"]} == {1, 2}
