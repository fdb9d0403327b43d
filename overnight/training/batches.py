"""An epoch's batches: begun anywhere, for a training that goes on, and cut by samples, for a card that is small."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from overnight.errors import BadInput

Batch = dict[str, Tensor]  # every tensor has the samples in its first dimension


class Batches:
    """One epoch's effective batches: the order is drawn at once, each batch made when its turn comes, from a seed of its own.

    So what is random about a sample depends on the epoch and its place there, never on which batches were made before it: a resumed
    training begins at any batch at no cost. `make(samples, generator)` gives the batch of these samples (indices of the data).
    """

    def __init__(
        self,
        order: Sequence[Tensor],
        make: Callable[[Tensor, torch.Generator], Batch],
        generator: torch.Generator,
    ) -> None:
        self.order, self.make = order, make
        self.seed = int(torch.randint(2**62, (), generator=generator))

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return self.since(0)

    def since(self, first: int) -> Iterator[Batch]:
        """The batches from number `first` on."""
        return map(self.at, range(first, len(self.order)))

    def at(self, index: int) -> Batch:
        """Batch number `index`, whatever was made before."""
        return self.make(self.order[index], seeded(self.seed, index))


class Seeded(torch.Generator):
    """A generator that tells what it was seeded with: for an epoch, the run's seed and the epoch's number."""

    numbers: tuple[int, ...] = ()


def seeded(*numbers: int) -> Seeded:
    """A generator for these numbers alone."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    generator = Seeded()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    generator.numbers = numbers
    return generator


def origin(generator: torch.Generator) -> tuple[int, int]:
    """The run's seed and the epoch that this generator draws for; (its seed, 0) of a generator that is not the loop's."""
    if isinstance(generator, Seeded) and len(generator.numbers) == 2:
        return generator.numbers[0], generator.numbers[1]
    return generator.initial_seed(), 0


def since(batches: Iterable[Batch], first: int) -> Iterator[Batch]:
    """The batches from number `first` on; those of a plain generator have to be made to be passed over."""
    return batches.since(first) if isinstance(batches, Batches) else islice(batches, first, None)


def samples(batches: Iterable[Batch], index: int) -> list[int]:
    """Which samples batch number `index` holds, where that is known."""
    return batches.order[index].tolist() if isinstance(batches, Batches) else []


def rows(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in micro-batches of at most `size` samples, as even as can be: the smallest has one less than the largest, the first.

    So no sample is left alone while others fit, which batch normalisation would not take.
    """
    total = count(batch)
    if total <= size:  # views of the whole would cost more than the look
        yield batch
        return
    if odd := {
        name: tuple(tensor.shape)
        for name, tensor in batch.items()
        if not tensor.dim() or len(tensor) != total
    }:
        raise BadInput(
            f"a batch of {total} samples (the length of {next(iter(batch))!r}) cannot be cut by samples: it also holds {odd}. Keep what is no "
            "sample out of the batch (in the model, say), or give the recipe a `split` of its own"
        )
    number = -(-total // size)
    for start, end in pairwise(-(-total * i // number) for i in range(number + 1)):
        yield {name: tensor[start:end] for name, tensor in batch.items()}


def count(batch: Batch) -> int:
    """How many samples the batch holds."""
    return len(next(iter(batch.values())))


def versions(batch: Batch) -> list[int]:
    """A number for each entry that every change in place makes larger."""
    return [0 if tensor.is_inference() else tensor._version for tensor in batch.values()]
