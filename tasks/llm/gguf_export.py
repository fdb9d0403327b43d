"""A language model of transformers as a GGUF, for llama.cpp, Ollama and LM Studio."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from overnight.errors import DataError, file_error
from overnight.files import read_json

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2"}  # by model_type
FORMATS = ("f16", "q8_0")
DIGITS, THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
CONTROL, USER_DEFINED, UNUSED, NORMAL = 3, 4, 5, 1  # types of a token


def check(config: Mapping[str, Any]) -> None:
    """Raises DataError where llama.cpp is not known to compute the same."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise DataError(
            f"a model of the type {kind!r} is not written as GGUF; known are {', '.join(ARCHITECTURES)}. "
            "Set `merge.formats: []` for the folder of transformers alone"
        )
    rope = _rope(config)
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise DataError(
            f"positions of the type {rope['rope_type']!r} are not written as GGUF; known are default, linear "
            "and llama3"
        )


def write(
    path: Path, form: str, folder: Path, weights: Mapping[str, Tensor], base: Path | None, ends: list[int]
) -> None:
    """form: f16 or q8_0; folder: with config.json and tokenizer; base: a GGUF that has the same tokenizer.

    Raises DataError for a tokenizer that is not known to be the same in llama.cpp.
    """
    import gguf

    config = read_json(folder / "config.json")
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]])
    _values(writer, config, form)
    _tokenizer(writer, folder, int(config["vocab_size"]), base)
    _template(writer, folder, ends)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], config["num_hidden_layers"])
    for name, weight in weights.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise DataError(f"the tensor {name} has no place in a GGUF of the architecture {arch.lower()}")
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        _tensor(writer, found, _turned(name, weight.detach().float().numpy(), config, arch), form)
    if _rope(config).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta", 10000.0), **found}


def _head(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _values(writer: Any, config: Mapping[str, Any], form: str) -> None:
    import gguf

    rope, head = _rope(config), _head(config)
    writer.add_file_type({"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[form])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _llama3(config: Mapping[str, Any]) -> np.ndarray:
    """float32 (half a head): by what each frequency is divided (Llama 3.1's stretched positions)."""
    rope, head = _rope(config), _head(config)
    turns = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, head, 2) / head)  # tokens a turn
    low, high, factor = (float(rope[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
    old = float(rope["original_max_position_embeddings"])
    smooth = np.clip((old / turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _turned(name: str, weight: np.ndarray, config: Mapping[str, Any], arch: str) -> np.ndarray:
    """llama.cpp turns neighbouring values of a llama's heads, transformers those of its two halves."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if arch != "LLAMA" or heads is None:
        return weight
    count = config.get(heads) or config["num_attention_heads"]
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _tensor(writer: Any, name: str, weight: np.ndarray, form: str) -> None:
    """Vectors stay float32; rows that cannot be cut into blocks of q8_0 become f16."""
    import gguf

    if weight.ndim == 1:
        writer.add_tensor(name, weight.astype(np.float32))
    elif form == "q8_0" and weight.shape[-1] % 32 == 0:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weight.astype(np.float16))


def _template(writer: Any, folder: Path, ends: list[int]) -> None:
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
    writer.add_eos_token_id(ends[0])
    for name in ("bos", "pad"):
        found = read_json(folder / "config.json").get(f"{name}_token_id")
        if isinstance(found, int):
            getattr(writer, f"add_{name}_token_id")(found)
    writer.add_add_bos_token(False)


def _tokenizer(writer: Any, folder: Path, size: int, base: Path | None) -> None:
    if base is not None:
        _copied(writer, base)
        return
    file = folder / "tokenizer.json"
    values = read_json(file)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre(file, values))
    tokens = {index: token for token, index in values["model"]["vocab"].items()}
    added = {token["id"]: token for token in values["added_tokens"]}
    tokens |= {index: token["content"] for index, token in added.items()}
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([_kind(i, tokens, added) for i in range(size)])
    merges = values["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])


def _kind(index: int, tokens: Mapping[int, str], added: Mapping[int, Any]) -> int:
    if index in added:
        return CONTROL if added[index]["special"] else USER_DEFINED
    return NORMAL if index in tokens else UNUSED


def _pre(file: Path, values: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is cut before pieces are made of it. Raises DataError."""
    pre = values.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    patterns = json.dumps([part.get("pattern") for part in parts], ensure_ascii=False).replace("\\\\", "\\")
    byte_level = values["model"]["type"] == "BPE" and kinds[-1:] == ["ByteLevel"]
    if byte_level and kinds == ["ByteLevel"] and values.get("normalizer") is None:
        return "gpt-2"
    if byte_level and kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if byte_level and kinds == ["Split", "ByteLevel"] and "'s|'t" in patterns:
        return "llama-bpe" if THREE_DIGITS in patterns else "qwen2"
    raise file_error(
        file,
        "its tokenizer is not one that is known to be the same in llama.cpp (pieces of bytes as of GPT-2, "
        "SmolLM, Llama 3 or Qwen 2); start from a GGUF of the model, or set `merge.formats: []`",
    )


def _copied(writer: Any, base: Path) -> None:
    """The tokenizer of a GGUF, value by value."""
    import gguf

    skipped = ("eos_token_id", "bos_token_id", "padding_token_id", "add_bos_token")
    for name, field in gguf.GGUFReader(base).fields.items():
        if not name.startswith("tokenizer.ggml.") or name.endswith(skipped):
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)
