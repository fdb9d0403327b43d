"""Weights by the name of their entry: what is no weights, or would run code, is refused for what it is."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from overnight.config import Values
from overnight.data import pretrained
from overnight.data.pretrained import Pretrained, load_entry
from overnight.errors import ConfigError, DataError
from overnight.files import file_sha256


class Chosen(Values):
    weights: Pretrained


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """Write an entry `made` and its files."""
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    monkeypatch.delenv("OVERNIGHT_DATA", raising=False)

    def write(text: str, name: str = "made", **files: object) -> Pretrained:
        (tmp_path / "weights" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / f"{name}.yaml").write_text(text)
        for file, content in files.items():
            path = tmp_path / "weights" / name / file.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return load_entry(name)

    return write


@pytest.mark.parametrize(("name", "ending"), {"smollm2_135m": ".gguf", "minilm_l6": "model"}.items())
def test_the_shipped_ones_lie_in_their_packages(name, ending):
    found = load_entry(name)
    assert str(found.locate()).endswith(ending)
    assert found.licence == "Apache-2.0"
    assert pretrained.verify(name) == []


def test_a_config_names_them_and_holds_their_entry():
    chosen = Chosen(weights="minilm_l6")
    assert chosen.weights.form == "transformers"
    assert Chosen.model_validate(chosen.model_dump(mode="json")) == chosen
    with pytest.raises(ValidationError, match="did you mean 'minilm_l6'"):
        Chosen(weights="minilm_l5")


def test_a_folder_of_transformers(entry):
    found = entry("form: transformers\n", config__json={"model_type": "llama"}, model__safetensors=b"1")
    assert found.locate().name == "made"
    before = found.identity()
    entry("form: transformers\n", model__safetensors=b"2")
    assert load_entry("made").identity() != before
    assert load_entry("made").shape() == found.shape()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model__safetensors": b"1"}, r"no readable config\.json"),
        ({"config__json": b"[1", "model__safetensors": b"1"}, r"no readable config\.json"),
        ({"config__json": {"model_type": "a"}}, "has no weights"),
        ({"config__json": {"model_type": "a"}, "pytorch_model__bin": b"1"}, "run code when opened"),
        ({"config__json": {"auto_map": {}}, "model__safetensors": b"1"}, "code of its own"),
    ],
)
def test_what_is_no_folder_of_transformers(entry, files, said):
    found = entry("form: transformers\n", **files)
    with pytest.raises(DataError, match=said):
        found.locate()


def test_one_gguf(entry):
    assert entry("form: gguf\n", a__gguf=b"1").locate().name == "a.gguf"
    with pytest.raises(DataError, match=r"there is a\.gguf, b\.gguf"):
        entry("form: gguf\n", b__gguf=b"1").locate()
    with pytest.raises(DataError, match="there is none"):
        entry("form: gguf\n", "empty", readme__txt=b"1").locate()


def test_a_damaged_file_is_named_with_the_command(entry, tmp_path):
    entry("form: gguf\n", a__gguf=b"1")
    digest = file_sha256(tmp_path / "weights" / "made" / "a.gguf")
    text = f"form: gguf\nfiles: [{{path: a.gguf, sha256: {digest}, url: 'https://example.org/a.gguf'}}]\n"
    assert entry(text).locate()
    entry(text, a__gguf=b"2")
    with pytest.raises(DataError, match="`overnight weights fetch made`"):
        load_entry("made").locate()


def test_an_adapter_depends_on_its_base(entry):
    entry("form: gguf\n", "base", a__gguf=b"1")
    adapter = {"adapter_config__json": {"r": 4}, "adapter_model__safetensors": b"1"}
    before = entry("form: adapter\nbase: base\n", **adapter).identity()
    entry("form: gguf\n", "base", a__gguf=b"2")
    assert load_entry("made").identity() != before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("form: adapter\n", "base: is the entry"),
        ("form: gguf\nbase: other\n", "adapters alone have one"),
        ("form: gguf\nfiles: [{path: a.ckpt}]\n", "can run code when it is opened"),
        ("form: pickle\n", "form"),
        ("form: gguf\nfiles: [{path: ../a.gguf}]\n", "inside the set's folder"),
        ("form: gguf\nwheel: a\n", "unknown key"),
    ],
)
def test_an_entry_that_makes_no_sense(entry, text, said):
    with pytest.raises(ConfigError, match=said):
        entry(text)


def test_a_package_that_is_not_installed(entry):
    with pytest.raises(DataError, match="not installed"):
        entry("form: gguf\npackage: no_such_package\n").locate()


def test_weights_that_nobody_can_fetch_are_refused_before_a_run(entry):
    from overnight.config import Experiment
    from overnight.orchestration.checks import check_data

    class Uses(Experiment):
        weights: Pretrained

    entry("form: gguf\nfiles: [{path: a.gguf}]\n")
    with pytest.raises(DataError, match=r"weights 'made': a\.gguf not in weights/made"):
        check_data(Uses(weights="made"))


def test_the_listing_reads_a_wrong_entry(entry, tmp_path):
    entry("form: gguf\n", a__gguf=b"1" * 2_000_000)
    (tmp_path / "weights" / "odd.yaml").write_text("form: 3\n")
    rows = {row["name"]: row for row in pretrained.listing()}
    assert (rows["made"]["MB"], rows["made"]["licence"]) == (2.0, "not stated")
    assert "odd.yaml:1: form" in rows["odd"]["where"]
    assert Path(rows["made"]["where"]).name == "made"
