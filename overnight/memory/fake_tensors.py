"""A context of fake tensors, which have shapes but no bytes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from overnight.memory.modules import stays_on_device
from overnight.memory.tracer import Spare, Tracer
from overnight.training.batches import Batch
from overnight.training.recipe import Recipe

LEAVES = (".numpy() is not supported", ".tolist() is not supported")  # messages of a fake tensor


class FakeTensorContext:
    def __init__(self, target: str, spare: Spare) -> None:
        self.target = target
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.tracer = Tracer(spare)
        self.during = self.tracer.during

    @contextlib.contextmanager
    def entered(self) -> Iterator["FakeTensorContext"]:
        with _no_inference_mode(), self.mode, self.tracer:
            yield self

    def module(self, build: Any, laid_out: bool = False) -> nn.Module:
        """The module that build() makes on the meta device; laid_out: channels-last if it convolves."""
        with _outside(self.tracer), _outside(self.mode), torch.device("meta"):
            model: nn.Module = build()
        convolves = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())
        _swap(model, self.mode, laid_out and convolves)
        self.tracer.label((*model.parameters(), *model.buffers()), "weights")
        return model

    def batch(self, recipe: Recipe[Any], size: int) -> Batch:
        """The recipe's example of fake tensors, or of real ones that are replaced when that fails."""
        with _outside(self.tracer):
            try:
                found = recipe.example_batch(size)
            except (RuntimeError, ValueError, TypeError):
                with _outside(self.mode):
                    real = recipe.example_batch(size)
                    found = {name: self.mode.from_tensor(tensor) for name, tensor in real.items()}
        if self.target == "cpu" or stays_on_device(recipe):  # else on the host until it is copied to the card
            for tensor in found.values():
                self.tracer.note(tensor, "data")
        return found

    def score(self, recipe: Recipe[Any], model: nn.Module) -> None:
        """Run an evaluation up to where values leave the device for numpy."""
        with _outside(self.tracer), _outside(self.mode):
            data = recipe.eval_example() if recipe.eval_example else None
        try:
            with self._hosted() if self.target == "cpu" else contextlib.nullcontext():
                recipe.evaluate(model, data, "val")
        except RuntimeError as error:
            if not any(sign in str(error) for sign in LEAVES):
                raise

    @contextlib.contextmanager
    def _hosted(self) -> Iterator[None]:
        """Ignore real tensors, which are data of the host; on a card they count as the slice copied to it."""
        converter = self.mode.fake_tensor_converter
        convert = converter.from_real_tensor

        def hosted(*args: Any, **kwargs: Any) -> FakeTensor:
            found = convert(*args, **kwargs)
            self.tracer.ignore(found)
            return found

        converter.from_real_tensor = hosted  # type: ignore[method-assign]
        try:
            yield
        finally:
            converter.from_real_tensor = convert  # type: ignore[method-assign]

    def label_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, copies: list[Tensor]
    ) -> None:
        self.tracer.label((p.grad for p in model.parameters() if p.grad is not None), "gradients")
        self.tracer.label(copies, "copies")
        if optimizer is not None:
            state = (value for values in optimizer.state.values() for value in values.values())
            self.tracer.label((v for v in state if isinstance(v, Tensor)), "optimizer")


@contextlib.contextmanager
def _no_inference_mode() -> Iterator[None]:
    """no_grad instead of inference mode, which hides what composite operators do."""
    before = torch.inference_mode.__enter__

    def enter(self: Any) -> None:
        self._inference_mode_context = torch.no_grad() if self.mode else torch.enable_grad()
        self._inference_mode_context.__enter__()

    torch.inference_mode.__enter__ = enter  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.inference_mode.__enter__ = before  # type: ignore[method-assign]


@contextlib.contextmanager
def _outside(mode: Any) -> Iterator[None]:
    mode.__exit__(None, None, None)
    try:
        yield
    finally:
        mode.__enter__()


def _swap(model: nn.Module, mode: FakeTensorMode, channels_last: bool = False) -> None:
    """Replace every tensor by an empty fake one; tied weights stay tied."""
    done = dict[int, Tensor]()
    for module in model.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers, module.__dict__]
        for table in tables:
            for name, tensor in list(table.items()):
                if isinstance(tensor, Tensor):
                    table[name] = done.setdefault(id(tensor), _fake(tensor, mode, channels_last))


def _fake(tensor: Tensor, mode: FakeTensorMode, channels_last: bool) -> Tensor:
    with mode:
        empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        if channels_last and tensor.ndim == 4:
            empty = torch.empty(
                tensor.size(), dtype=tensor.dtype, device="cpu", memory_format=torch.channels_last
            )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(empty, tensor.requires_grad)
        return empty.requires_grad_(tensor.requires_grad)
