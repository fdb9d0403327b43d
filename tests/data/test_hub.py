"""An entry out of a hub's own description: digests at a fixed commit; what would run code is refused."""

import hashlib
import json

import pytest

from overnight.cli.main import main
from overnight.data import hub
from overnight.data.pretrained import load_entry
from overnight.errors import ConfigError, DataError
from overnight.memory.architectures.shapes import MODELS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "vocab_size": 99, "torch_dtype": "bfloat16"}  # fmt: skip


@pytest.fixture
def offer(server, checkout, monkeypatch):
    """Serve a model `me/Small-1B` with these files; sizes in bytes stand for files that are large."""
    monkeypatch.setenv("HF_ENDPOINT", server.url("").rstrip("/"))

    def offering(files: dict[str, object], name: str = "me/Small-1B", **more: object) -> None:
        siblings = []
        for path, content in files.items():
            if isinstance(content, int):
                digest = hashlib.sha256(path.encode()).hexdigest()
                siblings.append(
                    {"rfilename": path, "size": content, "lfs": {"sha256": digest, "size": content}}
                )
                continue
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            server.files[f"{name}/resolve/{COMMIT}/{path}"] = data
            siblings.append({"rfilename": path, "size": len(data)})
        found = {"sha": COMMIT, "gated": False, "siblings": siblings, "cardData": {"license": "mit"}, **more}
        server.files[f"api/models/{name}/revision/main?blobs=true"] = json.dumps(found).encode()

    return offering


WHOLE = {
    "config.json": LLAMA, "tokenizer.json": b"{}", "model-00001-of-00001.safetensors": 10_000,
    "model.safetensors.index.json": b"{}", "README.md": b"x", "pytorch_model.bin": 10_000,
    "onnx/model.onnx": 9, "model.fp16.safetensors": 9,
}  # fmt: skip


def test_a_folder_of_transformers(offer, capsys):
    offer(WHOLE)
    assert main(["weights", "new", "me/Small-1B"]) == 0
    found = load_entry("small_1b")
    assert {file.path for file in found.files} == {
        "config.json",
        "tokenizer.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    }
    assert all(COMMIT in str(file.url) and len(file.digests) == 1 for file in found.files)
    assert (found.form, found.licence, found.revision) == ("transformers", "mit", COMMIT)
    assert found.config == {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    assert "4 files" in capsys.readouterr().out
    assert main(["weights", "new", "me/Small-1B"]) == 2


def test_odd_values_of_a_description_are_passed_over(offer):
    siblings = [
        {"rfilename": "config.json", "size": "9", "lfs": "x"},
        {"rfilename": "tokenizer.json", "size": None},
        {"rfilename": "model.safetensors", "size": 7, "lfs": {"sha256": "0" * 64}},
    ]
    offer({"config.json": LLAMA, "tokenizer.json": b"{}"}, siblings=siblings, cardData=["mit"])
    found = hub.describe("me/Small-1B")
    assert {file["path"]: file["bytes"] for file in found["files"]}["model.safetensors"] == 7
    assert found["licence"] == "not stated"


def test_it_is_fetched_and_verified(offer, server):
    data = b"weights"
    offer({**WHOLE, "model-00001-of-00001.safetensors": data})
    main(["weights", "new", "me/Small-1B", "--name", "mine"])
    assert main(["weights", "fetch", "mine"]) == 0
    folder = load_entry("mine").locate()
    assert (folder / "model-00001-of-00001.safetensors").read_bytes() == data
    assert main(["weights", "verify", "mine"]) == 0
    (folder / "tokenizer.json").write_text("changed")
    assert main(["weights", "verify", "mine"]) == 2


def test_one_of_several_gguf(offer):
    offer({"small-q4.gguf": 4_000, "small-q8.gguf": 8_000, "config.txt": b"x"})
    with pytest.raises(ConfigError, match="choose one by --file: small-q4"):
        hub.describe("me/Small-1B")
    found = hub.describe("me/Small-1B", "small-q8.gguf")
    assert [file["path"] for file in found["files"]] == ["small-q8.gguf"]
    with pytest.raises(ConfigError, match="did you mean 'small-q8"):
        hub.describe("me/Small-1B", "small-q9.gguf")


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        (WHOLE, {"gated": "manual"}, "terms must be accepted"),
        ({"config.json": LLAMA, "pytorch_model.bin": 9}, {}, "can run code when opened"),
        ({"config.json": LLAMA}, {}, "has no weights"),
        ({**WHOLE, "config.json": {**LLAMA, "auto_map": {"a": "b"}}}, {}, "code of its own"),
        ({"README.md": b"x"}, {}, "has no config.json"),
        (WHOLE, {"sha": "x"}, "no description of a model"),
        ({**WHOLE, "../../model.safetensors": 9}, {}, "no description of a model"),
        (WHOLE, {"siblings": ["config.json"]}, "no description of a model"),
    ],
)
def test_what_is_refused(offer, files, more, said, capsys):
    offer(files, **more)
    assert main(["weights", "new", "me/Small-1B"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["me/Other", "../x", "a/b/c", ""])
def test_a_model_that_is_not_there(offer, name):
    with pytest.raises((DataError, ConfigError), match=r"no model me/Other|no name of a model"):
        hub.describe(name)


def test_an_adapter_needs_its_base(offer, checkout):
    adapter = {"adapter_config.json": {"base_model_name_or_path": "me/Base"}, "adapter_model.safetensors": 9}
    offer(adapter, "me/Adapter")
    with pytest.raises(ConfigError, match="`overnight weights new me/Base`"):
        hub.describe("me/Adapter")
    offer(WHOLE, "me/Base")
    main(["weights", "new", "me/Base"])
    assert main(["weights", "new", "me/Adapter"]) == 0
    assert load_entry("adapter").base == "base"


@pytest.mark.parametrize(
    ("model", "gib", "code", "said"),
    [
        ("llama-2-7b", 12, 0, "fits in int8"),
        ("llama-2-13b", 12, 0, "fits in nf4"),
        ("llama-2-70b", 12, 3, "layers would fit"),
        ("llama-2-7b", 24, 0, "fits in fp16"),
    ],
)
def test_a_large_model_is_judged_before_a_byte_of_it_comes(offer, server, capsys, model, gib, code, said):
    offer({"config.json": MODELS[model], "model.safetensors": 10**10, "tokenizer.json": b"{}"})
    assert main(["weights", "new", "me/Small-1B", "--card", str(gib)]) == code
    assert said in capsys.readouterr().out
    asked = len(server.asked)
    if code:
        assert main(["weights", "fetch", "small_1b", "--card", str(gib)]) == 3
        assert "Nothing was fetched" in capsys.readouterr().out
        assert len(server.asked) == asked


def test_a_gguf_is_judged_by_its_size(offer, capsys):
    offer({"big.gguf": 40 * 10**9, "config.json": MODELS["llama-2-70b"]})
    assert main(["weights", "new", "me/Small-1B", "--file", "big.gguf", "--card", "12"]) == 3
    assert "does not fit" in capsys.readouterr().out
