"""The values that every training has."""

from typing import Literal

from pydantic import Field

from overnight.config import Params, runtime_option


class TrainParams(Params):
    epochs: int = Field(10, ge=1)
    batch: int = Field(
        128, ge=1, description="samples an optimizer step sees, whatever the card holds at once"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    patience: int | None = Field(
        None,
        ge=1,
        description="epochs without a better score on val before it ends early; never when left out",
    )
    micro_batch: int | None = runtime_option(
        None, "samples on the card at once; the engine chooses when left out", ge=1
    )
    grow: bool = runtime_option(
        False, "after out of memory, try the larger micro-batch again from time to time"
    )
    compile: Literal["auto", "on", "off"] = runtime_option(
        "auto", "compile the model; auto: on a CUDA card, when the training is long enough to pay for it"
    )
    checkpoint_s: float = runtime_option(
        45.0,
        "seconds between checkpoints, more where writing one is slow; 0: after every optimizer step",
        ge=0,
    )
