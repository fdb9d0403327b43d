"""`overnight bundle`: what is in the zip, what is not, and which runs a name means."""

import json
import time
import zipfile
from pathlib import Path

import pytest

from overnight import events
from overnight.cli.bundle import bundle, redacted
from overnight.errors import BadInput
from overnight.gpu.card import virtual
from overnight.memory.request import MemoryRequest
from overnight.orchestration.protocol import ChildSpec, StepResult
from overnight.orchestration.recorded import find
from overnight.paths import steps
from overnight.tracking.backlog import Record

PLANTED = {
    "OPENAI_API_KEY": "sk-proj-0123456789abcdefghij",
    "MY_PASSWORD": "correct horse",
    "DB_TOKEN_FILE_TOKEN": "qwertz123456",
}
SECRETS = [
    "hf_AbCdEfGhIjKlMnOpQrStUv",
    "ghp_0123456789abcdefghijABCDEFGHIJ",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    *PLANTED.values(),
]
IN_PLACE = ["hunter2222", "s3cr3tvalue"]  # known as secrets by what stands before them


@pytest.fixture
def night(checkout, monkeypatch) -> Path:
    """A run of an experiment with a step that failed, which has printed all kinds of secrets."""
    home = checkout.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    own, step = steps() / "20261130-033000-exp-run-aaaaaa", steps() / "20261130-033001-train-bbbbbb"
    for folder in (own, step):
        (folder / "out").mkdir(parents=True)
    Record(uri="u", experiment="exp", label="exp 2026-11-30 03:30", run_id="f" * 32).write(own)
    tags = {"overnight.step": "tasks.vision.cnn:train_cnn"}
    Record(uri="u", experiment="exp", label="a/train", parent=str(own), run_id="e" * 32, tags=tags).write(
        step
    )
    (own / "exp.yaml").write_text("flow: vision\nlogin: https://me:hunter2222@example.org/x\n")
    (own / "resolved.json").write_text(json.dumps({"max_tokens": 512, "api_key": "s3cr3tvalue"}))
    spec = ChildSpec(
        step="tasks.vision.cnn:train_cnn", label="a/train", experiment="exp", arguments=[{"data": f"{home}/data"}],
        seed=0, key="k", parent=1, card=virtual(), request=MemoryRequest(0),
    )  # fmt: skip
    (step / "spec.json").write_text(spec.model_dump_json())
    result = StepResult(code=1, error="ValueError: odd", raised=("ValueError",))
    (step / "result.json").write_text(result.model_dump_json())
    printed = "\n".join([*SECRETS, "Authorization: Bearer abcdefghijklmnop", f"{home}/x", "/home/you/y"])
    (step / "log.txt").write_text(f"{printed}\nValueError: odd\n")
    (step / "out" / "arrays.safetensors").write_bytes(b"the data themselves")
    writer = events.Writer(step / events.CHILD)
    writer.write({"event": "note", "text": "goes on after optimizer step 7", "at": time.time()})
    writer.write({"event": "metrics", "values": {"test/accuracy": 0.5}, "step": 0, "at": time.time()})
    return step


def test_it_has_what_a_report_needs_and_neither_data_nor_secrets(night, tmp_path):
    file = bundle(find("exp"), tmp_path / "a.zip")
    packed = zipfile.ZipFile(file)
    texts = {name: packed.read(name).decode() for name in packed.namelist()}
    assert {
        "summary.txt",
        "versions.txt",
        "timeline.txt",
        "card.json",
        "config/resolved.json",
        "config/exp.yaml",
    } <= set(texts)
    assert f"steps/{night.name}/log.txt" in texts
    assert "a/train: bug; " in texts["summary.txt"]
    assert "goes on after optimizer step 7" in texts["timeline.txt"]
    assert "torch==" in texts["versions.txt"]
    assert '"max_tokens": 512' in texts["config/resolved.json"]
    assert "ValueError: odd" in texts[f"steps/{night.name}/log.txt"]
    whole = "\n".join([*texts, *texts.values()])
    left = [
        s
        for s in (
            *SECRETS,
            *IN_PLACE,
            "abcdefghijklmnop",
            str(Path.home()),
            "/home/you",
            "the data themselves",
        )
        if s in whole
    ]
    assert left == []
    assert "~/data" in texts[f"steps/{night.name}/spec.json"]
    with pytest.raises(BadInput, match="is there already"):
        bundle(find("exp"), file)


def test_what_only_looks_like_a_secret_stays():
    for text in ("tokens: 512", "tokenizer: gpt2-medium", "max_tokens=2048", "epoch 3: loss 0.5", "sk-learn"):
        assert redacted(text) == text


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("exp", False),
        ("f" * 32, False),
        ("ffffffff", False),
        ("exp/a/train", True),
        ("a/train", True),
        ("train", True),
        ("e" * 32, True),
    ],
)
def test_a_run_is_found_by_each_of_its_names(night, name, step):
    assert find(name).is_step == step
    assert find(night.name).folder == night


def test_a_run_that_is_not_there_is_named_with_those_that_are(night):
    with pytest.raises(BadInput, match="did you mean 'exp'"):
        find("expp")
    with pytest.raises(BadInput, match=r"no step is called 'exp'.*exp/a/train"):
        find("exp", step=True)
    assert find("exp/a/train").scores == {"test/accuracy": 0.5}
