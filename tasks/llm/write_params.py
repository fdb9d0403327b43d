"""The values of a language model's training from scratch."""

from typing import Self

from pydantic import Field, model_validator

from overnight.training.params import TrainParams
from tasks.shared.heads import check_heads


class WriteParams(TrainParams):
    """The net, its training and what it writes after each epoch."""

    batch: int = Field(12, ge=1, description="windows of text that an optimizer step sees")
    epoch_steps: int | None = Field(
        None, ge=1, description="optimizer steps of an epoch; all of train once when left out"
    )
    context: int = Field(64, ge=2, le=65536, description="tokens that it sees at most")
    layers: int = Field(4, ge=1, le=200)
    heads: int = Field(4, ge=1, le=256, description="of attention; they share the width")
    width: int = Field(128, ge=8, le=16384, description="values of a token in each layer")
    dropout: float = Field(0.0, ge=0, lt=1)
    lr: float = Field(3e-3, gt=0, description="peak of AdamW's; it falls to zero by half a cosine")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps before the peak")
    weight_decay: float = Field(0.1, ge=0, description="of the matrices inside the layers")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0: any")
    prompt: str = Field("\n", min_length=1, description="what its samples begin with")
    samples: int = Field(
        3, ge=1, le=100, description="texts that it writes after each epoch, from fixed seeds"
    )
    sample_tokens: int = Field(160, ge=1, le=10_000)
    temperature: float = Field(0.8, ge=0, description="of the samples; 0: always the most probable token")
    published: dict[str, float] = Field(
        {}, description="val/loss of others by name, in nats a token: lines in the picture of the curve"
    )

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        check_heads(self.width, self.heads)
        return self
