"""The values of a text classifier's training."""

import json
from typing import Any, Self

from pydantic import Field, model_validator

from overnight.data.pretrained import Pretrained
from overnight.training.params import TrainParams
from tasks.shared.heads import check_heads

OWN = ("vocabulary", "layers", "heads", "width")


class ClassifyParams(TrainParams):
    """The encoder and its training."""

    weights: Pretrained | None = Field(
        None, description="entry of weights/ to begin with; none: from scratch"
    )
    freeze_embeddings: bool = Field(True, description="keep the token table of `weights` as it is")
    longest: int = Field(64, ge=4, le=8192, description="tokens of a text; what is longer is cut")
    vocabulary: int = Field(4096, ge=259, le=2**17, description="pieces learnt from train, from scratch")
    layers: int = Field(2, ge=1, le=100, description="from scratch")
    heads: int = Field(4, ge=1, le=256, description="from scratch")
    width: int = Field(128, ge=8, le=16384, description="from scratch")
    dropout: float = Field(0.1, ge=0, lt=1)
    epochs: int = Field(2, ge=1)
    batch: int = Field(16, ge=1, description="texts that an optimizer step sees")
    lr: float = Field(1.5e-4, gt=0, description="peak of AdamW's; it falls to zero by half a cosine")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps before the peak")
    weight_decay: float = Field(0.01, ge=0, description="of matrices")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0: any")

    def result_params(self) -> dict[str, Any]:
        """As of all values; for weights the digests of their files."""
        if self.weights is None:
            return super().result_params()
        return super().result_params() | {
            "weights": json.dumps(self.weights.identity(), sort_keys=True, default=str)
        }

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        fields = type(self).model_fields
        given = [name for name in OWN if getattr(self, name) != fields[name].default]
        if self.weights is not None and given:
            raise ValueError(
                f"{', '.join(given)}: of an encoder from scratch; {self.weights.name} has its own"
            )
        if self.weights is None:
            check_heads(self.width, self.heads)
        if self.weights is not None and self.weights.form != "transformers":
            raise ValueError(
                f"weights: {self.weights.name} is of form {self.weights.form}; an encoder of form "
                "transformers is expected"
            )
        return self
