"""Bodies under autocast to bf16: what must not be rounded is computed in full precision."""

import pytest
import torch

from bench._fit_recipes import boxes, graph, images
from tasks.detection import augment
from tasks.detection.loss import detection_loss
from tasks.detection.model import BINS, STRIDES
from tasks.vision import augment as vision_augment

BF16 = torch.bfloat16
SIDE = 320


def batch(**given):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    corners = torch.tensor([[[10.0, 20, 110, 220]], [[5, 5, 300, 160]]])
    return {"images": pixels, "boxes": corners, "labels": torch.zeros(2, 1, dtype=torch.long), **given}


IDENTITY = {"warp": torch.tensor([[1.0, 1, 0, 0]] * 2), "tint": torch.ones(2, 3)}
JITTERED = {"warp": torch.tensor([[1 / 1.1, 1 / 1.1, 0.03, -0.04], [-1.2, 1.2, 0.01, 0.02]]), "tint": torch.full((2, 3), 1.1)}  # fmt: skip


def both(call):
    plain = call()
    with torch.autocast("cpu", BF16):
        lowered = call()
    return plain, lowered


@pytest.mark.parametrize("drawn", [IDENTITY, JITTERED], ids=["identity", "jittered"])
def test_training_pictures_of_the_detector_are_those_of_full_precision(drawn):
    plain, lowered = both(lambda: augment.apply(batch(**drawn)))
    for name in ("images", "boxes", "labels"):
        assert torch.equal(plain[name], lowered[name])
    if drawn is IDENTITY:
        assert (plain["images"] - batch()["images"].float()).abs().max() < 1e-2


def test_the_loss_of_the_detector_is_that_of_full_precision_beyond_the_net():
    """With the same logits: geometry, assignment and sums see no bf16."""
    generator = torch.Generator().manual_seed(0)
    places = sum((64 // stride) ** 2 for stride in STRIDES)
    logits = torch.randn(2, places, 3, generator=generator)
    sides = torch.randn(2, places, 4, BINS, generator=generator)
    boxes_B4 = torch.tensor([[[8.0, 8, 40, 48]], [[0, 0, 20, 30]]])
    labels = torch.zeros(2, 1, dtype=torch.long)
    plain, lowered = both(lambda: detection_loss(logits, sides, (64, 64), boxes_B4, labels))
    assert torch.equal(plain[0], lowered[0])
    assert torch.equal(plain[1], lowered[1])


def test_augmentation_of_the_classifier_moves_bytes_alone():
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    plain, lowered = both(lambda: torch.stack([view for _, view in vision_augment.views(pixels, True)]))
    assert torch.equal(plain, lowered)


@pytest.mark.parametrize(
    "recipe",
    [
        images((3, 32, 32), channels=8, blocks=1, batch=8),
        images((3, 32, 32), arch="resnet18", channels=8, batch=8, init="scratch"),
        images((3, 32, 32), arch="speedrun", channels=8, batch=8),
        boxes(64, width_multiplier=0.25, batch=4),
        graph(60, 200, 16, hidden=8),
        graph(60, 200, 16, hidden=8, conv="sage"),
        graph(60, 200, 16, hidden=8, conv="gat"),
    ],
    ids=["resnet20", "resnet18", "speedrun", "yolo", "gcn", "sage", "gat"],
)
def test_the_sum_of_the_loss_is_float32_and_close_to_full_precision(recipe):
    torch.manual_seed(0)
    model = recipe.build().eval()
    example = recipe.example_batch(8)
    if "features" in example:
        example["features"] = torch.randn_like(example["features"])

    def loss():
        return recipe.loss(model, dict(example))[0].detach()

    plain, lowered = both(loss)
    assert lowered.dtype == torch.float32
    assert lowered == pytest.approx(plain.item(), rel=0.05)
