"""Remembered results: taken when they are intact, refused with a reason when they are not, never wrongly."""

import os
import shutil
import threading

import pytest

from overnight import artifact
from overnight.night import results
from overnight.night.changes import in_words
from overnight.night.key import digest
from overnight.night.results import Result, recall, remember
from overnight.paths import state, steps

PARTS = {
    "step": "tasks.x:f",
    "seed": "0",
    "argument params": '{"epochs": 3, "net": {"arch": "a"}}',
    "argument data": '{"files": {"a.csv": "%s"}}' % ("0" * 64),
    "code tasks/x.py": "1" * 64,
    "version torch": "2.14",
}


def made(parts=PARTS, label="x/f", at=1000.0):
    """A finished step: its folder, its artifact, and what is remembered of it."""
    folder = steps() / f"20260101-000000-f-{at:.0f}"
    saved = artifact.save(folder / "out" / "model", "model", meta={"made": at})
    result = Result(
        key=digest(parts),
        parts=parts,
        step=parts["step"],
        label=label,
        experiment="x",
        value=results.in_state(saved.model_dump(mode="json")),
        scores={"test/accuracy": 0.5},
        folder=folder.name,
        run_id="abcdef0123",
        at=at,
    )
    remember(result)
    return result


def test_an_intact_result_is_taken_with_its_artifact_and_scores(checkout):
    before = made()
    found = recall(before.key)
    assert isinstance(found, Result)
    assert found == before
    assert found.artifact.meta() == {"made": 1000.0}
    assert found.name.endswith("(run abcdef01)")


def test_what_was_never_made_has_no_reason(checkout):
    assert recall("0" * 64) == ""


def test_a_checkout_that_is_moved_still_has_its_results(checkout, tmp_path, monkeypatch):
    key = made().key
    checkout.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path / "elsewhere"))
    found = recall(key)
    assert found.artifact.path.is_relative_to(tmp_path / "elsewhere")
    assert found.artifact.meta() == {"made": 1000.0}


def of(key):
    return results.file_of(key)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file, _folder: file.write_bytes(file.read_bytes()[:-20]), "is damaged"),
        (lambda file, _folder: file.write_bytes(b""), "is damaged"),
        (
            lambda file, _folder: file.write_text(file.read_text().replace('"seed": "0"', '"seed": "1"')),
            "is damaged",
        ),
        (lambda file, _folder: file.write_text("[" * 100_000), "is damaged"),
        (lambda _file, folder: shutil.rmtree(folder), "was removed"),
        (lambda _file, folder: flip(folder / "out/model/meta.json"), "changed or damaged"),
        (lambda _file, folder: (folder / "out/model/meta.json").unlink(), "changed or damaged"),
        (lambda _file, folder: (folder / "out/model/more").write_text("x"), "changed or damaged"),
        (lambda _file, folder: (folder / "out/model/meta.json").write_text(""), "changed or damaged"),
    ],
)
def test_what_is_harmed_is_not_taken_and_says_why(checkout, harm, said):
    key = made().key
    harm(of(key), steps() / "20260101-000000-f-1000")
    assert said in recall(key)
    made()
    assert isinstance(recall(key), Result)


def test_a_result_under_the_name_of_another_key_is_not_taken(checkout):
    one, other = made(), made({**PARTS, "seed": "1"})
    shutil.copy(of(one.key), of(other.key))
    assert "is damaged" in recall(other.key)


def test_a_newer_version_s_result_is_read_by_an_older_one(checkout):
    key = made().key
    of(key).write_text(of(key).read_text().replace("{", '{"of_tomorrow": 1, ', 1))
    assert isinstance(recall(key), Result)


def test_two_that_remember_one_key_at_once_leave_a_whole_one(checkout):
    both = [threading.Thread(target=lambda at=at: [made(at=at) for _ in range(20)]) for at in (1.0, 2.0)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    found = recall(digest(PARTS))
    assert isinstance(found, Result)
    assert found.artifact.meta()["made"] == found.at


def test_the_last_result_is_that_of_the_step_under_its_label(checkout):
    made(at=1.0)
    made({**PARTS, "seed": "1"}, at=2.0)
    made({**PARTS, "seed": "2"}, label="y/f", at=3.0)
    assert results.last("tasks.x:f", "x/f", "x").at == 2.0
    assert results.last("tasks.x:f", "z/f", "x") is None
    of(digest({**PARTS, "seed": "1"})).write_text("{")
    assert results.last("tasks.x:f", "x/f", "x").at == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"argument params": '{"epochs": 4, "net": {"arch": "a"}}'}, "params.epochs 3 -> 4"),
        ({"argument params": '{"epochs": 3, "net": {"arch": "b"}}'}, "params.net.arch a -> b"),
        ({"argument data": '{"files": {"a.csv": "%s"}}' % ("1" * 64)}, "data.files.a.csv"),
        ({"code tasks/x.py": "2" * 64, "seed": "1"}, "seed 0 -> 1, tasks/x.py"),
        ({"code tasks/y.py": "2" * 64}, "tasks/y.py (new)"),
        ({"version torch": "2.15"}, "torch 2.14 -> 2.15"),
        (
            {f"code {n}.py": "1" for n in range(6)},
            "0.py (new), 1.py (new), 2.py (new), 3.py (new), and 2 more",
        ),
    ],
)
def test_what_changed_is_said_as_a_person_calls_it(change, said):
    assert in_words(PARTS, {**PARTS, **change}) == said


def test_a_result_in_use_is_marked_as_such(checkout):
    key = made().key
    os.utime(of(key), (1, 1))
    recall(key)
    assert of(key).stat().st_mtime > 1


def test_an_artifact_outside_the_state_folder_keeps_its_path(checkout, tmp_path):
    saved = artifact.save(tmp_path / "far", "model")
    assert results.in_state(saved.model_dump(mode="json"))["path"] == str(tmp_path / "far")
    assert results.in_state(None) is None
    assert state().is_dir()
