"""Inference of language models: weights and cache to the byte, files by headers, and what would fit."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from overnight.cli.main import main
from overnight.errors import BadInput
from overnight.memory.architectures.inference import (
    Serving,
    at_once,
    cheaper,
    kv_bytes,
    layers_that_fit,
    most_context,
    predict_inference,
    refusal,
)
from overnight.memory.architectures.shapes import MODELS, Shape, shape_of
from overnight.memory.architectures.weights import read_header, weight_bytes

MIB, GB = 2**20, 10**9
FILES = {  # sizes that files of these models are published with, in GB
    ("llama-2-7b", "q4_0"): 3.83,
    ("llama-2-7b", "q4_k_m"): 4.08,
    ("llama-2-7b", "q5_k_m"): 4.78,
    ("llama-2-7b", "q6_k"): 5.53,
    ("llama-2-7b", "q8_0"): 7.16,
    ("llama-2-13b", "q4_k_m"): 7.87,
    ("llama-2-70b", "q4_0"): 38.87,
    ("llama-2-70b", "q4_k_m"): 41.42,
    ("mistral-7b", "q4_k_m"): 4.37,
    ("llama-3-8b", "q4_k_m"): 4.92,
    ("llama-3.2-3b", "q4_k_m"): 2.02,
}


@pytest.mark.parametrize(("model", "way"), FILES)
def test_weights_take_what_published_files_do(model, way):
    assert weight_bytes(shape_of(model), way) == pytest.approx(FILES[model, way] * GB, rel=0.01)


@pytest.mark.parametrize(
    ("model", "cache", "mib"),
    [("llama-2-7b", "f16", 2048), ("command-r-35b", "f16", 5120), ("llama-2-7b", "q8_0", 1088)],
)
def test_the_cache_is_exact(model, cache, mib):
    assert kv_bytes(shape_of(model), 4096, cache) == mib * MIB


def test_shared_heads_and_growing_caches():
    assert kv_bytes(shape_of("llama-3-8b"), 4096) == 512 * MIB
    grown, static = (
        predict_inference(Serving.of(model="llama-2-7b", way="fp16", static=s)) for s in (False, True)
    )
    assert grown.mib - static.mib == pytest.approx(2048)
    assert predict_inference(Serving.of(model="llama-2-7b", way="q4_k_m")).parts["cache"] == 2048


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.2-1b", "mistral-7b", "command-r-35b"])
def test_tensors_are_those_of_the_real_net(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    values = {**MODELS[name], "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    ours = shape_of(name)
    ours = Shape(**{**vars(ours), "layers": 2})
    assert weight_bytes(ours, "bf16") == 2 * sum(p.numel() for p in model.parameters())


def test_a_70b_is_refused_with_the_reason():
    serving = Serving.of(model="llama-2-70b", way="q4_0")
    assert "36.2 GiB of weights" in (said := refusal(serving, 11264))
    count, layers = layers_that_fit(serving, 11264)
    assert 0 < count < layers == 80
    assert f"{count} of 80 layers" in said
    assert refusal(serving, 48 * 1024) == ""


def test_what_makes_it_fit_does():
    serving, budget = Serving.of(model="llama-2-13b", way="q4_k_m"), 11264
    assert refusal(serving, budget)
    ways = cheaper(serving, budget)
    assert ways[0][0] == "--cache q8_0"
    assert all(found.verdict(budget) == "fits" for _, found in ways)
    longest = most_context(serving, budget)
    fits = [
        predict_inference(serving.model_copy(update={"context": n})).verdict(budget)
        for n in (longest, longest + 1)
    ]
    assert fits == ["fits", "does not fit"]
    many = at_once(Serving.of(model="llama-2-7b", way="q4_k_m"), budget)
    assert many.micro_batch > 1


# ---------------------------------------------------------------------- files


def written(path, kind):
    """A GGUF as the format's own package writes it; the bytes of its tensors."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"t{i}" for i in range(100)])
    total = 0
    for name, shape in (
        ("token_embd.weight", (100, 256)),
        ("blk.0.ffn_up.weight", (512, 256)),
        ("output_norm.weight", (256,)),
    ):
        values = np.ones(shape, dtype=np.float32)
        packed = values if len(shape) == 1 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=None if len(shape) == 1 else kind)
        total += packed.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16", "BF16"])
def test_a_gguf_tells_its_weights_and_its_sizes(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    total = written(path, gguf.GGMLQuantizationType[kind])
    found = read_header(path)
    assert found.bytes == total
    taken = predict_inference(Serving.of(model=str(path), context=64))
    assert taken.parts["weights"] * MIB == total
    assert "as the file has them" in refusal(Serving.of(model=str(path), context=64), 600)
    assert taken.parts["cache"] * MIB == 2 * 2 * 2 * 64 * 2 * 64


def test_safetensors_and_their_index_tell_the_weights(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((10, 10), dtype=np.float16), "b": np.ones(3, dtype=np.float32)}, path)
    assert read_header(path).bytes == 212
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 123}, "weight_map": {}}))
    assert read_header(index).bytes == 123
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MODELS["llama-3.2-1b"]))
    found = predict_inference(Serving.of(model=str(config), weights=str(path)))
    assert found.parts["weights"] * MIB == 212


BROKEN = {
    "empty.gguf": b"",
    "other.gguf": b"NOPE" + bytes(64),
    "cut.gguf": b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 5),
    "huge.gguf": b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**62),
    "list.gguf": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + struct.pack("<Q", 1)
    + b"a"
    + struct.pack("<IIQ", 9, 0, 2**60),
    "huge.safetensors": struct.pack("<Q", 2**63) + b"{}",
    "cut.safetensors": struct.pack("<Q", 2) + b"{",
    "odd.safetensors": struct.pack("<Q", 8) + b'{"a": 1}',
    "odd.index.json": b"[]",
    "negative.index.json": b'{"metadata": {"total_size": -5}}',
    "without.safetensors": struct.pack("<Q", 2) + b"{}",
    "negative.safetensors": struct.pack("<Q", 31) + b'{"a": {"data_offsets": [9, 0]}} '[:31],
    "no-header.bin": bytes(range(256)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        predict_inference(Serving.of(model="llama-2-7b", weights=str(path)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention.head_count_kv", -8),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", "eight"),
        ("attention.key_length", -64),
        ("vocab_size", "many"),
        ("block_count", 2**31 - 1),
    ],
)
def test_a_gguf_with_nonsense_never_fits(tmp_path, name, value):
    path = tmp_path / "odd.gguf"
    path.write_bytes(header({f"llama.{key}": size for key, size in {**SIZES, name: value}.items()}))
    with pytest.raises(BadInput, match=r"usable of|positive whole numbers"):
        predict_inference(Serving.of(model=str(path)))


SIZES = {"embedding_length": 256, "feed_forward_length": 512, "block_count": 2, "attention.head_count": 4}


def header(values):
    """A GGUF of one tensor, with these numbers and texts."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    packed = [
        (k, struct.pack("<I", 8) + text(v) if isinstance(v, str) else struct.pack("<Ii", 5, v))
        for k, v in values.items()
    ]
    packed.append(("general.architecture", struct.pack("<I", 8) + text("llama")))
    tensor = text("token_embd.weight") + struct.pack("<IQIQ", 1, 256, 0, 0)
    return (
        b"GGUF" + struct.pack("<IQQ", 3, 1, len(packed)) + b"".join(text(k) + v for k, v in packed) + tensor
    )


@pytest.mark.parametrize(
    ("name", "value"), [("num_key_value_heads", -8), ("num_hidden_layers", 10**9), ("head_dim", "wide")]
)
def test_a_config_with_nonsense_never_fits(tmp_path, name, value):
    (tmp_path / "config.json").write_text(json.dumps({**MODELS["llama-3.2-1b"], name: value}))
    with pytest.raises(BadInput, match="positive whole numbers"):
        predict_inference(Serving.of(model=str(tmp_path)))


# ---------------------------------------------------------------------- the command


def fit(capsys, *arguments):
    code = main(["fit", "--json", "--card", "12", "--model", *arguments])
    out = capsys.readouterr()
    return code, json.loads(out.out)["steps"][0] if out.out else out.err


def test_the_command_judges(capsys):
    code, row = fit(capsys, "llama-2-7b", "--quant", "q4_k_m")
    assert (code, row["verdict"]) == (0, "fits")
    assert sum(row["parts"].values()) == pytest.approx(row["mib"], abs=1)
    assert "tokens fit" in row["why"]
    code, row = fit(capsys, "llama-2-70b", "--quant", "q4_0")
    assert (code, row["verdict"]) == (3, "does not fit")
    assert "of 80 layers" in row["why"]


def test_asking_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'peft', 'diffusers', 'bitsandbytes'}"
    script = f"import sys, overnight.cli.fit_model; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("llama-2-7b", "--quant", "q4_9"), "q4_9"),
        (("llama-2-7b", "--sequence", "0"), "context"),
        (("llama-2-7b", "--cache", "f13"), "cache"),
        (("bert-base",), "bert"),
        (("no-such.gguf",), "no-such"),
        (("sdxl", "--size", "100"), "64"),
        (("sdxl", "--method", "lora"), "sd-1.5"),
        (("sdxl", "--method", "qlora"), "method"),
    ],
)
def test_bad_input_is_named(capsys, arguments, said):
    code, text = fit(capsys, *arguments)
    assert code == 2
    assert said in text
    assert "Traceback" not in text


# ---------------------------------------------------------------------- Stable Diffusion

PUBLISHED = {"sd-1.5": 859_520_964, "sdxl": 2_567_463_684}  # parameters of the U-Nets


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_unets_have_the_published_parameters(model):
    pytest.importorskip("diffusers")
    import torch

    from overnight.memory.architectures.diffusion import ImageGeneration, _unet

    with torch.device("meta"):
        assert sum(p.numel() for p in _unet(ImageGeneration(model=model)).parameters()) == PUBLISHED[model]


@pytest.mark.slow
def test_offloading_takes_less_and_a_larger_picture_more():
    pytest.importorskip("diffusers")
    from overnight.memory.architectures.diffusion import ImageGeneration, predict_image_generation

    whole, one, leaf = (
        predict_image_generation(ImageGeneration(size=64, offload=kind))
        for kind in ("none", "model", "sequential")
    )
    assert leaf.mib < one.mib < whole.mib
    assert sum(whole.parts.values()) == pytest.approx(whole.mib, abs=1)
    weights = 2 * (PUBLISHED["sd-1.5"] + 83_653_863 + 123_060_480) / MIB
    assert whole.parts["weights"] == pytest.approx(weights, rel=0.01)
    assert predict_image_generation(ImageGeneration(size=512)).mib > whole.mib
