"""The values of asking a model on this machine, and of comparing the bits of its weights."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from overnight import Params

Quant = Literal["fp32", "bf16", "fp16", "int8", "nf4"]


class ModelParams(Params):
    """What computes the answers, and how the weights are kept meanwhile."""

    engine: Literal["transformers", "llama_cpp"] = Field(
        "transformers", description="llama_cpp: a GGUF as it is, on the processor"
    )
    quant: Quant = Field(
        "bf16", description="how transformers keeps the weights; int8 and nf4 by bitsandbytes"
    )
    context: int = Field(2048, ge=16, le=2**20, description="tokens of a prompt and its answer, at most")

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.engine == "llama_cpp" and "quant" in self.model_fields_set:
            raise ValueError(
                "quant has no effect with engine llama_cpp, which takes the file as it is; remove it"
            )
        return self


class CompareParams(Params):
    """A text whose loss shows what fewer bits cost."""

    text: Path = Field(description="a file of text in UTF-8")
    tokens: int = Field(512, ge=2, le=2**20, description="of its beginning")
    window: int = Field(512, ge=2, le=2**17, description="tokens at once; each window begins anew")
    quants: tuple[Quant, ...] = Field(
        ("fp32", "bf16", "int8", "nf4"), min_length=1, description="the others are compared with the first"
    )

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.quants)) < len(self.quants):
            raise ValueError(f"quants: {', '.join(self.quants)} names one twice")
        return self
