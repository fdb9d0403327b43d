"""A pretended CUDA card: what is meant for it is computed on the CPU, and torch.cuda says what a card would."""

import contextlib
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

MIB = 1 << 20
TOTAL_MIB = 12_000
SUMS = (torch.nn.functional.cross_entropy, torch.nn.functional.binary_cross_entropy_with_logits)


def on_cpu(value):
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    return value


class PretendedCard(TorchFunctionMode):
    """Turns the device "cuda" of every call into "cpu".

    errors: raised in order, one each time that `failing` is called with gradients (evaluating: without); None stands
    for a call that goes well. largest: the most samples for which `failing` does not run out of memory. refused: the times it did.
    """

    def __init__(self, errors=(), failing=SUMS, largest=None, evaluating=False):
        super().__init__()
        self.errors = list(errors)
        self.failing = failing
        self.evaluating = evaluating
        self.largest = largest
        self.refused = 0
        self.reserved_mib = 500
        self.synchronized = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.device.__new__ and func is not torch.device:
            args = tuple(on_cpu(a) for a in args)
            kwargs = {name: on_cpu(a) for name, a in kwargs.items()}
        if func in self.failing and torch.is_grad_enabled() != self.evaluating:
            self._fail(len(args[0]))
        return func(*args, **kwargs)

    def _fail(self, samples):
        error = self.errors.pop(0) if self.errors else None
        if error is None and self.largest is not None and samples > self.largest:
            error = torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {samples} MiB (pretended)")
        if error is not None:
            self.refused += 1
            raise error


class Autocast(torch.autocast):
    """Of the CPU where the card's is asked for: the same dtypes for what matters here."""

    def __init__(self, device_type, *arguments, **options):
        super().__init__("cpu" if device_type == "cuda" else device_type, *arguments, **options)


@contextlib.contextmanager
def pretended_card(monkeypatch, **options):
    """Enter it, and `run.device = "cuda"` takes the branches of a card."""
    mode = PretendedCard(**options)

    def synchronize(_device=None):
        mode.synchronized += 1

    said = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "synchronize": synchronize,
        "empty_cache": lambda: None,
        "memory_reserved": lambda _device=0: mode.reserved_mib * MIB,
        "max_memory_reserved": lambda _device=0: mode.reserved_mib * MIB,
        "memory_stats": lambda _device=0: {"num_ooms": 0},
        "get_per_process_memory_fraction": lambda _device=0: 1000 / TOTAL_MIB,
        "mem_get_info": lambda _device=0: (8000 * MIB, TOTAL_MIB * MIB),
        "get_device_properties": lambda _device=0: SimpleNamespace(total_memory=TOTAL_MIB * MIB),
        "get_device_capability": lambda _device=0: (8, 9),
        "get_rng_state": lambda _device=0: torch.get_rng_state(),
        "set_rng_state": lambda _state, device=0: None,
    }
    for name, answer in said.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    stream = SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda _device=None: stream)
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    with mode:
        yield mode
