"""Batches of an epoch: resumable at any batch, and split by samples into micro-batches."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from overnight.errors import BadInput

Batch = dict[str, Tensor]  # every tensor has the samples in its first dimension


class Batches:
    """One epoch's effective batches, resumable at any batch at no cost.

    Each batch is made when it is due, from a seed of its own: the augmentation of a sample depends on the
    epoch and its position there alone. order: for each batch the indices of its samples.
    """

    def __init__(
        self,
        order: Sequence[Tensor],
        make: Callable[[Tensor, torch.Generator], Batch],
        generator: torch.Generator,
    ) -> None:
        self.order = order
        self.make = make
        self.seed = int(torch.randint(2**62, (), generator=generator))

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return since(self, 0)

    def at(self, index: int) -> Batch:
        return self.make(self.order[index], seeded(self.seed, index))


class Seeded(torch.Generator):
    """numbers: what it was seeded with; for an epoch, the run's seed and the epoch's number."""

    numbers: tuple[int, ...] = ()


def seeded(*numbers: int) -> Seeded:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    generator = Seeded()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    generator.numbers = numbers
    return generator


def origin(generator: torch.Generator) -> tuple[int, int]:
    """(run's seed, epoch) of one of the loop's generators; (its seed, 0) of any other."""
    if isinstance(generator, Seeded) and len(generator.numbers) == 2:
        return generator.numbers[0], generator.numbers[1]
    return generator.initial_seed(), 0


def since(batches: Iterable[Batch], first: int) -> Iterator[Batch]:
    """From number `first` on; a plain generator has to make those it skips."""
    if isinstance(batches, Batches):
        return map(batches.at, range(first, len(batches)))
    return islice(batches, first, None)


def samples(batches: Iterable[Batch], index: int) -> list[int]:
    """Sample numbers; empty where they are not known."""
    return batches.order[index].tolist() if isinstance(batches, Batches) else []


def split_by_sample(batch: Batch, size: int) -> Iterator[Batch]:
    """Micro-batches of at most `size` samples, whose sizes differ by 1 at most.

    So no sample is alone while others fit, which batch normalisation would refuse. Raises BadInput.
    """
    total = count(batch)
    if total <= size:  # slices of the whole would cost more than this check
        yield batch
        return
    odd = {
        name: tuple(tensor.shape)
        for name, tensor in batch.items()
        if not tensor.dim() or len(tensor) != total
    }
    if odd:
        raise BadInput(
            f"a batch of {total} samples (the length of {next(iter(batch))!r}) cannot be cut by samples: "
            f"it also holds {odd}. Keep what is no sample out of the batch (in the model, say), "
            "or give the recipe `micro_batches` of its own"
        )
    number = -(-total // size)
    for start, end in pairwise(-(-total * i // number) for i in range(number + 1)):
        yield {name: tensor[start:end] for name, tensor in batch.items()}


def count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def versions(batch: Batch) -> list[int]:
    """Torch's counter of changes in place, by tensor."""
    return [0 if tensor.is_inference() else tensor._version for tensor in batch.values()]
