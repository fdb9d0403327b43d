"""Shapes of published language models, as their config.json gives them."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.errors import BadInput


def _llama(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int = 32000, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **more,
    }


LLAMA_3 = {"vocab": 128256, "max_position_embeddings": 8192}
TIED = {"tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, **LLAMA_3),
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8, **LLAMA_3),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, head_dim=64, **LLAMA_3, **TIED),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8, head_dim=128, **LLAMA_3, **TIED),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, model_type="mistral", sliding_window=None),
    "command-r-35b": _llama(8192, 22528, 40, 64, 64, 256000, model_type="cohere", **TIED),
    "gpt2": {"model_type": "gpt2"},  # sizes that are left out are those of the type itself
    "gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "bert-base": {"model_type": "bert"},
    "bert-large": {
        "model_type": "bert",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "distilbert": {"model_type": "distilbert"},
}
GATED = ("llama", "mistral", "qwen2", "cohere")  # families whose tensors are known without building the net
ENCODERS = (
    "bert", "distilbert", "roberta", "electra", "albert", "camembert", "xlm-roberta", "modernbert",
    "deberta-v2", "mpnet",
)  # fmt: skip


def config_of(model: str) -> dict[str, Any]:
    """Of a name in MODELS, a config.json, or its folder; downloads nothing. Raises BadInput."""
    name = model.strip().lower()
    if name in MODELS:
        return dict(MODELS[name])
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise BadInput(
            f"model {model!r}: nothing is downloaded to predict memory, and there is no such file here; "
            f"give a config.json, a folder that holds one, or one of {', '.join(MODELS)}"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: not readable as json ({error}); give a model's config.json") from None
    found = found.get("text_config", found) if isinstance(found, dict) else {}
    if not isinstance(found.get("model_type"), str):
        raise BadInput(f"{path}: says no `model_type`; give a model's config.json")
    return dict(found)


MOST, MOST_LAYERS = 2**24, 2**12  # sizes beyond them are mistakes
SIZES = {  # of a Shape, and what a config.json calls them
    "hidden": "hidden_size",
    "inner": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}


@dataclass(frozen=True)
class Shape:
    kind: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @classmethod
    def of(cls, where: str, kind: str, tied: bool, sizes: dict[str, Any]) -> "Shape":
        """kv_heads default to heads, head_dim to hidden // heads.

        Raises BadInput where a size is missing or cannot be.
        """
        sizes = {name: sizes.get(name) for name in SIZES}
        if sizes["kv_heads"] is None:
            sizes["kv_heads"] = sizes["heads"]
        if sizes["head_dim"] is None:
            with suppress(TypeError, ZeroDivisionError):  # then one of them is wrong
                sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
        most = dict.fromkeys(SIZES, MOST) | {"layers": MOST_LAYERS}
        wrong = [f"{k}={n!r}" for k, n in sizes.items() if type(n) is not int or not 1 <= n <= most[k]]
        if wrong:
            raise BadInput(
                f"model {where!r} of the type {kind!r}: sizes must be positive whole numbers that can be, "
                f"there is {', '.join(wrong)}"
            )
        return cls(kind=kind, tied=tied, **sizes)

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names (as in GGUF files) and shapes, with gated feed-forward layers."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "attn_q": (q, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q),
            "ffn_gate": (self.inner, self.hidden),
            "ffn_up": (self.inner, self.hidden),
            "ffn_down": (self.hidden, self.inner),
            "attn_norm": (self.hidden,),
        }
        if self.kind != "cohere":  # attention and feed-forward share one norm there
            layer["ffn_norm"] = (self.hidden,)
        if self.kind == "qwen2":
            layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        found: list[tuple[str, tuple[int, ...]]] = [
            ("token_embd", (self.vocab, self.hidden)),
            ("output_norm", (self.hidden,)),
        ]
        found += [(f"blk.{i}.{name}", size) for i in range(self.layers) for name, size in layer.items()]
        return found if self.tied else [*found, ("output", (self.vocab, self.hidden))]


def shape_of(model: str) -> Shape:
    """Raises BadInput."""
    return shape_from(config_of(model), model)


def shape_from(values: dict[str, Any], model: str) -> Shape:
    """values: of a config.json; model: its name, for messages. Raises BadInput."""
    if values.get("model_type") not in GATED:
        raise BadInput(
            f"model {model!r} is of the type {values.get('model_type')!r}; "
            f"inference is known for {', '.join(GATED)}"
        )
    sizes = {name: values.get(key) for name, key in SIZES.items()}
    tied = values.get("tie_word_embeddings", values["model_type"] == "cohere")
    return Shape.of(model, values["model_type"], bool(tied), sizes)
