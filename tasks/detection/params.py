"""The values of a detector's training."""

from typing import ClassVar

from pydantic import Field

from overnight.training.params import TrainParams


class YoloParams(TrainParams):
    """The detector and how it learns."""

    RENAMED: ClassVar = {
        "width": "width_multiplier",
        "rate": "lr",
        "decay": "weight_decay",
        "flip": "flip_probability",
        "flip_vertical": "flip_vertical_probability",
        "scale": "scale_jitter",
        "colour": "color_jitter",
    }

    epochs: int = Field(50, ge=1)
    batch: int = Field(16, ge=1, description="images an optimizer step sees, whatever the card holds at once")
    width_multiplier: float = Field(
        1.0, gt=0, le=4, description="of all layers; 1.0 has about 2 M parameters"
    )
    lr: float = Field(2e-3, gt=0, description="learning rate of AdamW at its peak")
    weight_decay: float = Field(0.02, ge=0, description="of AdamW; norms and biases do not decay")
    flip_probability: float = Field(
        0.5,
        ge=0,
        le=1,
        description="chance of a left-right flip; 0 where left and right differ, as in digits",
    )
    flip_vertical_probability: float = Field(0.0, ge=0, le=1, description="chance of an up-down flip")
    scale_jitter: float = Field(0.3, ge=0, description="0.3: images grow or shrink by up to 1.3")
    translate: float = Field(0.1, ge=0, le=1, description="largest shift, as a share of the image")
    color_jitter: float = Field(
        0.2, ge=0, lt=1, description="0.2: brightness, contrast and saturation times 0.8 to 1.2"
    )
    mosaic: float = Field(
        0.5, ge=0, le=1, description="share of images put together from four; none in the closing epochs"
    )
