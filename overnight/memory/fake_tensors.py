"""A world of tensors that have shapes but no bytes: whatever runs in it costs no memory and no arithmetic."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from overnight.memory.program import by_the_loop, resident
from overnight.memory.tracer import Spare, Tracer
from overnight.training.batches import Batch
from overnight.training.recipe import Recipe

LEAVES = (".numpy() is not supported", ".tolist() is not supported")  # what a fake tensor says to that


class FakeWorld:
    """Fake tensors, and a tracer that notes them; enter it to run something in it."""

    def __init__(self, target: str, spare: Spare) -> None:
        self.target = target
        self.mode, self.tracer = FakeTensorMode(allow_non_fake_inputs=True), Tracer(spare)

    @contextlib.contextmanager
    def entered(self) -> Iterator["FakeWorld"]:
        """Inside the block nothing is real."""
        with _copied(), _taken_apart(), self.mode, self.tracer:
            yield self

    def model(self, recipe: Recipe[Any]) -> nn.Module:
        """Built on the meta device, then given fake weights."""
        return self.take(recipe.build, self.target == "cuda" and by_the_loop(recipe))

    def take(self, build: Any, laid_out: bool = False) -> nn.Module:
        """The module that build() makes, with fake tensors in place of its own; laid_out: channels last, where it convolves, as on a card."""
        with _outside(self.tracer), _outside(self.mode), torch.device("meta"):
            model: nn.Module = build()
        convolves = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())
        swap(model, self.mode, laid_out and convolves)
        self.tracer.call((*model.parameters(), *model.buffers()), "weights")
        return model

    def batch(self, recipe: Recipe[Any], size: int) -> Batch:
        """The recipe's example, made of fakes; where that cannot be, made for real and replaced."""
        with _outside(self.tracer):
            try:
                found = recipe.example_batch(size)
            except (RuntimeError, ValueError, TypeError):
                with _outside(self.mode):
                    real = recipe.example_batch(size)
                    found = {name: self.mode.from_tensor(tensor) for name, tensor in real.items()}
        if self.target == "cpu" or resident(recipe):  # else on the host until it is copied to the card
            for tensor in found.values():
                self.tracer.note(tensor, "data")
        return found

    def score(self, recipe: Recipe[Any], model: nn.Module) -> None:
        """See World. What happens once values leave the device for numpy is of no interest."""
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
        """Real tensors that come in are data of the host, not of torch's allocator; on a card they count as the slice that is copied to it."""
        converter = self.mode.fake_tensor_converter
        convert = converter.from_real_tensor

        def hosted(*args: Any, **kwargs: Any) -> FakeTensor:
            found = convert(*args, **kwargs)
            self.tracer.pass_over(found)
            return found

        converter.from_real_tensor = hosted  # type: ignore[method-assign]
        try:
            yield
        finally:
            converter.from_real_tensor = convert  # type: ignore[method-assign]

    def during(self, phase: str) -> AbstractContextManager[None]:
        """See World."""
        return self.tracer.during(phase)

    def settled(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, copies: list[list[Tensor]]
    ) -> None:
        """See World."""
        self.tracer.call((p.grad for p in model.parameters() if p.grad is not None), "gradients")
        for twin in copies:
            self.tracer.call(twin, "copies")
        if optimizer is not None:
            state = (value for values in optimizer.state.values() for value in values.values())
            self.tracer.call((v for v in state if isinstance(v, Tensor)), "optimizer")


@contextlib.contextmanager
def _copied() -> Iterator[None]:
    """copy.deepcopy() of a fake tensor copies bytes that are not there, over whatever lies behind; in the block it makes another fake."""

    def deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.detach().clone()
        found = (
            nn.Parameter(found, self.requires_grad)
            if isinstance(self, nn.Parameter)
            else found.requires_grad_(self.requires_grad)
        )
        memo[id(self)] = found
        return found

    FakeTensor.__deepcopy__ = deepcopy  # type: ignore[method-assign]
    try:
        yield
    finally:
        del FakeTensor.__deepcopy__


@contextlib.contextmanager
def _taken_apart() -> Iterator[None]:
    """Inference mode hands on composite operators whole, so that what is inside them is not seen; in the block it is no_grad, which does not."""
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
    """Leave a mode for a while."""
    mode.__exit__(None, None, None)
    try:
        yield
    finally:
        mode.__enter__()


def swap(model: nn.Module, mode: FakeTensorMode, channels_last: bool = False) -> None:
    """Replace every tensor of the module by an empty fake one, tied ones by the same."""
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
