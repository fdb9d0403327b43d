"""Run and Artifact: what a step logs is kept in order; what it saves is whole or not there."""

import errno
import json
import math

import numpy as np
import pytest

from overnight.artifact import Artifact, DataSpec, save
from overnight.errors import DataError, DiskFull, Stopped
from overnight.files import tree_sha256
from overnight.run import EventLogRun, RecordingRun


def test_the_spool_and_the_fake_see_the_same_events(tmp_path):
    (tmp_path / "spool").mkdir()
    spool, fake = EventLogRun(tmp_path / "spool"), RecordingRun(tmp_path)
    for run in (spool, fake):
        run.metrics({"loss": 0.5, "bad": math.nan}, 3)
        run.param("engine", "streaming")
        run.note("ünïcode 数字")
        run.progress(1, 4, "epoch 1")
        run.data("digits", "abc", "package", DataSpec(classes=("a", "b")))
    lines = [
        json.loads(line)
        for line in (tmp_path / "spool" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [{k: v for k, v in line.items() if k != "at"} for line in lines] == fake.events
    assert fake.last("loss") == 0.5
    assert math.isnan(fake.last("bad"))


def test_a_requested_stop_takes_effect_at_the_next_progress(tmp_path):
    run = RecordingRun(tmp_path)
    run.should_stop = lambda: True
    with pytest.raises(Stopped, match="3 of 10"):
        run.progress(3, 10, "steps")


def test_an_artifact_comes_back_as_it_was_saved(tmp_path):
    run = RecordingRun(tmp_path)
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    saved = run.save(
        "images",
        DataSpec(shape=(3, 2, 2)),
        {"train_images": images},
        {"classes": ["数", "b"]},
        {"a/b.txt": lambda p: p.write_text("x")},
    )
    again = Artifact.model_validate_json(saved.model_dump_json())
    assert again == saved
    assert np.array_equal(again.arrays("train_images")["train_images"], images)
    assert again.meta() == {"classes": ["数", "b"]}
    assert (again.path / "a" / "b.txt").read_text() == "x"
    with pytest.raises(DataError, match="expected an artifact of kind 'graph', this is 'images'"):
        again.expect("graph")


def test_the_digest_follows_names_and_bytes(tmp_path):
    first = save(tmp_path / "a", "x", arrays={"v": np.zeros(3)})
    assert save(tmp_path / "b", "x", arrays={"v": np.zeros(3)}).digest == first.digest
    assert save(tmp_path / "c", "x", arrays={"v": np.ones(3)}).digest != first.digest
    (first.path / "new").write_text("")
    assert tree_sha256(first.path) != first.digest


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, DiskFull), (errno.EACCES, PermissionError)])
def test_a_failed_write_leaves_nothing(tmp_path, number, raised):
    def fails(path):
        path.write_text("half")
        raise OSError(number, "no")

    with pytest.raises(raised):
        save(tmp_path / "out", "x", files={"half": fails})
    assert list(tmp_path.iterdir()) == []
