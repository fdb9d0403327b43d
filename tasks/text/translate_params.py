"""The values of a training that makes one text of another."""

from typing import Literal, Self

from pydantic import Field, model_validator

from overnight.training.params import TrainParams
from tasks.shared.heads import check_heads


class TranslateParams(TrainParams):
    """The net, its training and its search."""

    task: Literal["translate", "summarise"] = Field(
        "translate", description="which baseline stands beside it: a table of words, or the first sentences"
    )
    vocabulary: int = Field(4096, ge=259, le=2**17, description="pieces learnt from both sides of train")
    longest: int = Field(64, ge=4, le=8192, description="tokens of a text; what is longer is cut")
    layers: int = Field(3, ge=1, le=100, description="that read, and as many that write")
    heads: int = Field(4, ge=1, le=256)
    width: int = Field(128, ge=8, le=16384)
    dropout: float = Field(0.1, ge=0, lt=1)
    epochs: int = Field(5, ge=1)
    batch: int = Field(64, ge=1, description="pairs that an optimizer step sees")
    lr: float = Field(0.02, gt=0, description="peak of Muon's; it falls to zero by half a cosine")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps before the peak")
    weight_decay: float = Field(0.01, ge=0, description="of matrices")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    guided: float = Field(
        0.0,
        ge=0,
        description="weight of the loss by which a head looks at the token of the source that the target's "
        "stands for, by a table of train; 0: none",
    )
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0: any")
    beams: int = Field(4, ge=1, le=64, description="texts that the search keeps; 1: greedy")

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        check_heads(self.width, self.heads)
        return self
