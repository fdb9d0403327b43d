"""The values of a graph network's training."""

from typing import ClassVar, Literal

from pydantic import Field

from overnight.training.params import TrainParams


class GnnParams(TrainParams):
    """The network and how it learns; an epoch is one optimizer step on the whole graph."""

    RENAMED: ClassVar = {"smoothing": "label_smoothing"}
    MEANINGLESS: ClassVar = dict.fromkeys(
        ("batch", "micro_batch", "grow"), "every step sees the whole graph, which is not cut into batches"
    )

    epochs: int = Field(200, ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32", description="small matrices gain nothing from less"
    )
    conv: Literal["gcn", "sage", "gat"] = Field(
        "gcn", description="gcn: own sparse product; sage and gat: PyTorch Geometric's layers"
    )
    hidden: int = Field(64, ge=1)
    layers: int = Field(2, ge=1, le=8)
    dropout: float = Field(0.5, ge=0, lt=1, description="of features and hidden values")
    lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(
        0.0, ge=0, description="of the first layer; 5e-4 where few nodes are labelled (Kipf & Welling)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    batch: ClassVar[int] = 128  # type: ignore[misc] # no key here; nodes of a made-up example
    micro_batch: ClassVar[int | None] = None  # type: ignore[misc]
    grow: ClassVar[bool] = False  # type: ignore[misc]
