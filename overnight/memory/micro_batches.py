"""Into how many samples at once an effective batch may be cut."""


def half(size: int) -> int:
    """The micro-batch that running out of memory leads to: the larger half."""
    return -(-size // 2)


def even(batch: int) -> list[int]:
    """Micro-batches to choose from, the largest first: the divisors of the batch and its halves, few and close even where it is prime."""
    found = {n for n in range(1, batch + 1) if batch % n == 0}
    while batch > 1:
        batch = half(batch)
        found.add(batch)
    return sorted(found, reverse=True)
