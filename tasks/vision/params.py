"""The values of a CNN's training."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from overnight.paths import root
from overnight.training.params import TrainParams

CHANNELS = {"resnet20": 16, "resnet18": 64, "speedrun": 64}


class CnnParams(TrainParams):
    """The net, its augmentation and its optimizer."""

    RENAMED: ClassVar = {
        "width": "channels",
        "decay": "schedule",
        "average": "ema",
        "optimiser": "optimizer",
    }

    arch: Literal["resnet20", "resnet18", "speedrun"] = Field(
        "resnet20", description="resnet20: the small form, sized by channels and blocks"
    )
    # On a CPU, torch 2.15 corrupts memory in the backward pass of narrower nets (its oneDNN kernels).
    channels: int | None = Field(
        None, ge=8, le=512, description="of the first stage; by arch when left out: 16, 64, 64"
    )
    blocks: int = Field(3, ge=1, le=18, description="residual blocks a stage, of resnet20: 3 make ResNet-20")
    stem: Literal[1, 2] = Field(
        1, description="stride of resnet20's first convolution; 2 costs a quarter of the time"
    )
    init: str = Field(
        "auto",
        min_length=1,
        description="auto: published weights for resnet18 where they fit; scratch; or a .safetensors, .pt",
    )
    flip: bool | Literal["alternating"] = Field(
        False, description="mirror half of the images; alternating: each one every other epoch"
    )
    crop: int = Field(0, ge=0, description="px of random shift, with mirrored borders")
    cutout: int = Field(0, ge=0, description="px of a square that is blacked out in half of the images")
    tta: bool = Field(
        False,
        description="report test/accuracy_tta too: the mean over mirrored (with flip) and shifted copies",
    )
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = Field(0.2, gt=0, description="peak, at this batch")
    bias_scale: float = Field(1.0, gt=0, description="times lr: the rate of the norms' biases")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and muon, after Nesterov")
    warmup: float = Field(0.2, ge=0, lt=1, description="share of the steps before the peak")
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="how the learning rate falls after its peak, to zero"
    )
    weight_decay: float = Field(5e-4, ge=0, description="of convolutions and the linear layer")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the weight average that is judged and kept; 0: none"
    )

    @property
    def first_channels(self) -> int:
        """The `channels` given, or those of the arch."""
        return self.channels or CHANNELS[self.arch]

    @property
    def weights(self) -> Path | None:
        """The file that `init` names, from the checkout when it is no absolute path."""
        return None if self.init in {"auto", "scratch"} else root() / Path(self.init).expanduser()

    def result_params(self) -> dict[str, Any]:
        """As of all values; for weights of a file their digest, wherever it lies."""
        file = self.weights
        if file is None or not file.is_file():
            return super().result_params()
        return super().result_params() | {"init": hashlib.sha256(file.read_bytes()).hexdigest()}

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        """A value that this architecture does not know is a mistake, not a wish."""
        for name in ("blocks", "stem"):
            if self.arch != "resnet20" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a value of arch resnet20; {self.arch} has its own")
        if self.optimizer == "adamw" and self.momentum != type(self).model_fields["momentum"].default:
            raise ValueError("momentum is a value of sgd and muon; adamw has its own")
        if self.weights is not None and self.weights.suffix not in {".safetensors", ".pt", ".pth"}:
            raise ValueError(
                f"init is auto, scratch or the path of a .safetensors or .pt file, not {self.init!r}"
            )
        return self
