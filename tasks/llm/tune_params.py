"""The values of a tuning on chats: how chats are formatted, how a model is trained, and what is written."""

import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from overnight import Params
from overnight.data.pretrained import Pretrained
from overnight.training.params import TrainParams

ADAPTERS = ("rank", "alpha", "dropout", "targets")


class ChatParams(Params):
    """How chats are formatted and cut."""

    context: int = Field(1024, ge=16, le=2**20, description="tokens of a chat at most, with its template")
    longer: Literal["leave_out", "cut"] = Field(
        "leave_out", description="what becomes of longer ones; cut: they lose their end"
    )
    system: str = Field("", description="a system message before each chat that has none")
    end: str = Field(
        "", description="the token that ends an answer, where it is not the end token of the tokenizer"
    )


class TuneParams(TrainParams):
    """The base, what of it is trained, and how."""

    base: Pretrained
    method: Literal["qlora", "lora", "full"] = Field(
        "qlora", description="adapters on a base of few bits, adapters on one of 16, or all weights"
    )
    bits: Literal["nf4", "int8"] = Field("nf4", description="of the frozen base, of qlora")
    rank: int = Field(16, ge=1, le=4096, description="of the adapters")
    alpha: float = Field(32, gt=0, description="adapters count alpha / rank times")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into the adapters")
    targets: str = Field(
        "all-linear", description="layers that get adapters: all-linear, or names with commas between"
    )
    checkpointing: bool = Field(
        False, description="compute layers again in the backward pass: less memory, a third more time"
    )
    epochs: int = Field(3, ge=1)
    batch: int = Field(16, ge=1, description="chats an optimizer step sees, whatever the card holds at once")
    lr: float = Field(2e-4, gt=0, description="peak")
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps before the peak")
    prompts: int = Field(8, ge=0, le=64, description="of val, answered before and after the training")
    answer_tokens: int = Field(64, ge=1, le=4096, description="the most of each of those answers")

    @property
    def bits_of_base(self) -> str:
        return self.bits if self.method == "qlora" else ""

    @property
    def weights_precision(self) -> Literal["bf16", "fp16", "fp32"]:
        """Of the base's weights on a card; all weights that are trained are float32."""
        if self.method == "full":
            return "fp32"
        return "bf16" if self.precision == "auto" else self.precision

    def result_params(self) -> dict[str, Any]:
        """As of all values; for the base the digests of its files."""
        return super().result_params() | {
            "base": json.dumps(self.base.identity(), sort_keys=True, default=str)
        }

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        """A value that this method does not know is a mistake, not a wish."""
        fields = type(self).model_fields
        for name in (*ADAPTERS, "bits") if self.method == "full" else ("bits",):
            if self.method != "qlora" and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} has no effect with method {self.method}; remove it")
        return self


class MergeParams(Params):
    """What is written, and by how many chats it is checked."""

    formats: tuple[Literal["f16", "q8_0"], ...] = Field(
        ("f16", "q8_0"), description="of the GGUF files; [] for the folder of transformers alone"
    )
    chats: int = Field(20, ge=1, le=1000, description="of val, by which what is written is compared")
