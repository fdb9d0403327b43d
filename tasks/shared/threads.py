"""How many threads torch uses for a piece of work on the CPU."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """One thread inside, if `when`.

    Small operations end before a second thread wakes, and its waiting burns a core that others need.
    """
    import torch

    before = torch.get_num_threads()
    if when:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
