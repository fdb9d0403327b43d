"""What a person can get wrong at the prompt, in a config, in an entry or in its files: a message says it,
never a traceback.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from overnight.cli import command, main
from overnight.errors import ConfigError, DataError, StepFailed
from overnight.orchestration.checks import load as load_config
from overnight.paths import INSTALLED

EDGES = {"edges": {"file": "e.csv", "source": "a", "target": "b"}}


@pytest.mark.parametrize(
    "override",
    [
        "cnn.epochs=2020-13-45",
        "cnn.epochs=!!int x",
        "cnn.epochs=!!timestamp x",
        "cnn.epochs=" + "[" * 5000,
        "seed=" + "9" * 5000,
    ],
)
def test_an_override_that_yaml_cannot_make_a_value_of(override) -> None:
    with pytest.raises(ConfigError, match="the value is not readable as yaml"):
        load_config(command.config_path("vision"), [override])


@pytest.mark.parametrize(
    "text", ["cnn: &a {x: *a}", "cnn: &a [*a]", "cnn: " + "[" * 3000, "cnn: !!timestamp x"]
)
def test_a_config_that_is_nested_without_end(tmp_path, text) -> None:
    (tmp_path / "x.yaml").write_text(f"flow: vision\ndata: digits\n{text}\n")
    with pytest.raises(ConfigError, match="not readable as yaml"):
        load_config(tmp_path / "x.yaml")


def test_a_config_that_cannot_be_read(tmp_path) -> None:
    (tmp_path / "x.yaml").write_text("flow: vision\ndata: digits\ncnn: x.yaml/y.yaml\n")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_config(tmp_path / "x.yaml")


def test_values_are_finite_and_a_name_is_one(tmp_path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(command.config_path("vision"), ["cnn.lr=.inf", "name=' '"])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="at most 200"):
        load_config(command.config_path("vision"), ["name=" + "x" * 600])
    (tmp_path / "x.yaml").write_text("flow: nightly\n")
    with pytest.raises(ConfigError, match="there is nothing to run"):
        load_config(tmp_path / "x.yaml")


def test_inside_another_checkout_the_one_that_answers_is_named(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "overnight").mkdir()
    (tmp_path / "overnight" / "paths.py").touch()
    (tmp_path / "deeper").mkdir()
    for folder, is_named in ((tmp_path / "deeper", True), (INSTALLED / "configs", False), (Path("/"), False)):
        monkeypatch.chdir(folder)
        assert main.main(["ls"]) == 0
        assert (f"this is the checkout {INSTALLED}" in capsys.readouterr().err) == is_named


def test_without_a_command_there_is_help(capsys) -> None:
    assert main.main([]) == 0
    assert "install-service" in capsys.readouterr().out


def test_an_address_is_never_wrapped(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    address = f"http://127.0.0.1:5007/{'x' * 60}"
    command.print_rows([{"service": "a", "address": address, "note": "many words " * 9}], as_json=False)
    assert address in capsys.readouterr().out


def test_names_at_the_prompt(capsys) -> None:
    assert main.main(["run", "visoin"]) == 2
    assert "did you mean configs/vision.yaml?" in capsys.readouterr().err
    assert main.main(["run", "x" * 300]) == 2
    assert "cannot be read: File name too long" in capsys.readouterr().err


def test_a_data_folder_that_is_not_there(monkeypatch, capsys) -> None:
    for wrong in ("/nonexistent", __file__):
        monkeypatch.setenv("OVERNIGHT_DATA", wrong)
        for words in (["data", "ls"], ["data", "verify", "digits"], ["run", "vision"]):
            assert main.main(words) == 2
            assert f"OVERNIGHT_DATA={wrong}: there is no such folder" in capsys.readouterr().err


def test_ls_outlives_what_is_no_config(checkout, capsys) -> None:
    (checkout / "configs" / "folder.yaml").mkdir(parents=True)
    (checkout / "configs" / "date.yaml").write_text("flow: 2020-13-45\n")
    assert main.main(["ls", "--json"]) == 0
    assert [row["flow"] for row in json.loads(capsys.readouterr().out)] == ["not readable as yaml"] * 2


def test_a_run_that_breaks_off_is_reported() -> None:
    from prefect.states import Failed

    from overnight.orchestration.prefect import BROKE, _raise_exception_of

    _raise_exception_of(Failed(message="1 of 2 steps done"))
    with pytest.raises(StepFailed, match="the run broke off: MlflowException: gone"):
        _raise_exception_of(Failed(message=f"{BROKE} MlflowException: gone"))


@pytest.mark.parametrize(
    ("reader", "options", "said"),
    [
        ("csv", {"tables": {"t": "e.csv"}, "delimiter": "é"}, "one ASCII character"),
        ("csv", {"tables": {"t": "e.csv"}, "delimiter": "\n"}, "one ASCII character"),
        ("csv", {"tables": {"t": "e.csv"}, "encoding": "base64"}, "no encoding"),
        ("edge_list", {"edges": {"file": "e.csv", "source": "a", "target": "a"}}, "two columns"),
        ("edge_list", {**EDGES, "targets": {"file": "e.csv", "id": "a", "label": "a"}}, "two columns"),
        ("edge_list", {"edges": {**EDGES["edges"], "delimiter": ""}}, "one ASCII character"),
        ("image_folder", {"classes": ["a", "b", "a"]}, "'a': named twice"),
        ("image_folder", {"classes": ["..", "b"]}, "must be the name of a folder"),
    ],
)
def test_options_that_make_no_sense(load, folder, reader, options, said) -> None:
    (folder / "e.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=said):
        load(reader, options)


def test_a_file_name_that_no_file_can_have(load) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        load("csv", {"tables": {"t": "x" * 300}})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"1": {"1": ' + "1" * 5000 + "}}"])
def test_features_that_json_cannot_hold(load, folder, text) -> None:
    (folder / "e.csv").write_text("a,b\n1,2\n")
    (folder / "f.json").write_text(text)
    with pytest.raises(DataError, match=r"f\.json: expected json"):
        load("edge_list", {**EDGES, "features": "f.json"})


def test_numbers_that_are_too_large(load, folder) -> None:
    (folder / "e.csv").write_text("a,b\n1,2\n" + "9" * 5000 + ",2\n")
    (folder / "f.json").write_text('{"1": {"1": 1' + "0" * 400 + '}, "2": {"1": 1e39}}')
    graph = load("edge_list", {**EDGES, "features": "f.json"})
    assert graph.nodes == 3
    assert np.isposinf(graph.features[0]).all()


NOUGHT = np.zeros(0, np.int64)
SPARSE = {
    "x": None,
    "x_data": NOUGHT,
    "x_indices": NOUGHT,
    "x_indptr": np.zeros(4, np.int64),
    "x_shape": np.array([3, 2]),
}


@pytest.mark.parametrize(
    "more",
    [
        {"y": np.zeros((3, 2))}, {"y": np.array(["a"] * 3)}, {"y": np.array(1)}, {"y": np.full(3, np.nan)},
        {"edge_index": np.array([["a"], ["b"]])}, {"edge_index": np.array([1, 2])},
        {"edge_index": np.full((2, 3), np.nan)},
        {"x": np.zeros(3)}, {"x": np.zeros((3, 2, 2))}, {"x": np.array([["a"]] * 3)}, {"x": np.array(1)},
        {**SPARSE, "x_shape": np.array([3])}, {**SPARSE, "x_shape": np.array(3)},
        {**SPARSE, "x_indptr": np.array([-1, 0, 0, 0])},
        {**SPARSE, "x_indptr": NOUGHT}, {**SPARSE, "x_indptr": np.zeros((4, 2))},
        {"train_mask": np.zeros((3, 1), bool)},
    ],
)  # fmt: skip
def test_arrays_that_are_no_graph(load, folder, more) -> None:
    arrays = {"edge_index": np.array([[0, 1], [1, 2]]), "x": np.eye(3), "y": np.array([0, 1, 0]), **more}
    np.savez(folder / "g.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=r"g\.npz: "):
        load("planetoid", {"file": "g.npz"})


@pytest.fixture
def annotated(folder):
    from PIL import Image

    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir()
    Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / "a.png")
    return folder


@pytest.mark.parametrize("encoding", ["nope", "shift_jis"])
def test_an_annotation_in_an_unknown_encoding(load, annotated, encoding) -> None:
    (annotated / "Annotations" / "a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?><a/>')
    with pytest.raises(DataError, match=r"a\.xml: expected an xml annotation"):
        load("voc", {})


def test_an_image_that_says_no_size(load, annotated, monkeypatch) -> None:
    from PIL import Image

    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    box = f"<object><name>x</name>{box}</object>"
    (annotated / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>wide</width></size>{box}</annotation>"
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    item = load("voc", {}).splits["train"][0]
    with pytest.raises(DataError, match="does not decode"):
        item.open()


def test_images_of_no_pixels(load, folder) -> None:
    (folder / "i").write_bytes(b"\0\0\x08\x03" + (60).to_bytes(4, "big") + bytes(4) + (8).to_bytes(4, "big"))
    with pytest.raises(DataError, match="hold nothing"):
        load("idx", {"splits": {"train": {"images": "i", "labels": "i"}}})


def test_names_that_mlflow_would_refuse(checkout, tmp_path) -> None:
    from overnight.tracking.backlog import Record
    from overnight.tracking.client import Tracker, allowed
    from overnight.tracking.uploader import Uploader

    assert allowed({"data/of_I;16": 1, "a/../b": 2, "/c//d": 3, "猫'": 4, '猫"': 5, "Mr. O": 6}) == {
        "data/of_I_16": 1, "a/__/b": 2, "_/c/_/d": 3, "猫_": 4, "猫__": 5, "Mr. O": 6,
    }  # fmt: skip
    tracker = Tracker(f"sqlite:///{tmp_path}/db", "odd")
    run_id = tracker.open("run", {})
    tracker.params(run_id, {"where.a > b": 1})
    uploader = Uploader(
        tracker, tmp_path, Record(uri=tracker.uri, experiment="odd", label="step", run_id=run_id)
    )
    uploader.log(
        {"event": "metrics", "values": {"data/of_I;16": 1.0, "it's/accuracy": 1.0}, "step": 0, "at": 1.0}
    )
    assert (uploader.upload_all(patience_s=0), uploader.refused) == (True, [])
    data = tracker.client.get_run(run_id).data
    assert (set(data.metrics), set(data.params)) == ({"it_s/accuracy", "data/of_I_16"}, {"where.a _ b"})


def test_a_disk_too_full_for_the_result_is_the_reason(tmp_path) -> None:
    from overnight.orchestration.launcher import Stop, _result

    result = _result(tmp_path, 14, Stop())
    assert (result.code, "the disk is full" in result.error) == (14, True)


def test_a_child_that_cannot_write_its_result_says_why(tmp_path, monkeypatch) -> None:
    import errno
    import os
    import signal

    from overnight.gpu.card import virtual
    from overnight.memory.request import MemoryRequest
    from overnight.orchestration import child
    from overnight.orchestration.protocol import ChildSpec

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spec = ChildSpec(
        step="x:y",
        label="x",
        experiment="x",
        arguments=[],
        seed=0,
        key="",
        parent=1,
        card=virtual(),
        request=MemoryRequest(0),
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    for name in ("die_with_parent", "_run", "atomic_write"):
        monkeypatch.setattr(child, name, full if name != "die_with_parent" else lambda _parent: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert child.main(tmp_path) == 14


def test_a_full_disk_is_the_reason_whichever_library_noticed() -> None:
    from overnight.orchestration.child import _reason

    assert _reason(RuntimeError("I/O error: No space left on device (os error 28)")).code == 14


def test_a_checkout_that_cannot_be_written_to(checkout, capsys) -> None:
    (checkout / ".overnight").write_text("in the way")
    for word in ("gpu", "doctor", "status"):
        assert main.main([word]) == 2
        assert ".overnight: File exists" in capsys.readouterr().err
