"""What training changes in a model, and a digest of the rest, which the recipe's `build` makes again."""

import hashlib

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

Weights = dict[str, Tensor]
PACKED = 1 << 20  # bytes
SAMPLED = 1 << 18  # values of a frozen tensor that its digest reads


class TrainedWeights:
    """The weights that a training keeps, by name: trainable parameters and buffers.

    Buffers count in frozen modules as well: batch norm updates its statistics wherever it is in train mode.
    Only packed ones are frozen, until something writes to them. digest: of all that is frozen, from a sample
    of its values; empty if nothing is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        packed = {name: b for name, b in model.named_buffers() if is_packed(b)}
        self.packed = [(buffer, buffer._version) for buffer in packed.values()]
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        self.digest = _digest(frozen | packed)

    def frozen_buffers(self) -> set[int]:
        """The id() of each buffer that nothing has written to and that is not kept."""
        return {id(buffer) for buffer, version in self.packed if buffer._version == version}

    def live(self) -> Weights:
        frozen = self.frozen_buffers()
        buffers = {name: b for name, b in self.model.named_buffers() if id(b) not in frozen}
        return {name: tensor.detach() for name, tensor in [*self.trainable.items(), *buffers.items()]}

    def copied(self) -> Weights:
        """Copy the tensors to the host."""
        with _disable_current_modes():  # no counter is to take them for the card's
            return {name: tensor.to("cpu", copy=True) for name, tensor in self.live().items()}

    @torch.no_grad()
    def load(self, found: Weights) -> None:
        """A buffer of another shape replaces the model's. Raises KeyError."""
        for name, parameter in self.trainable.items():
            parameter.copy_(found[name])
        buffers = dict(self.model.named_buffers())
        device = next(self.model.parameters()).device
        for name in found.keys() - self.trainable.keys():
            if name in buffers and buffers[name].shape == found[name].shape:
                buffers[name].copy_(found[name])
            else:
                owner, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(owner), leaf, found[name].to(device))


def is_packed(buffer: Tensor) -> bool:
    """Integers of 1 MiB or more: packed weights or a mask."""
    return buffer.nbytes >= PACKED and not (buffer.is_floating_point() or buffer.is_complex())


def _digest(tensors: Weights) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        with _disable_current_modes():
            values = tensor.detach().reshape(-1)
            sample = values[:: max(1, len(values) // SAMPLED)].cpu().contiguous().view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16] if tensors else ""
