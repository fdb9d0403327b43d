"""Counts of runs of tokens as a model of text: what a net has to beat."""

from collections.abc import Sequence

import numpy as np

ORDERS = {"unigram": 1, "bigram": 2, "5-gram": 5}


def count_losses(train: np.ndarray, test: np.ndarray, vocabulary: int) -> dict[str, float]:
    """Mean nats of the tokens of `test` after the first, by the name of the order; both int (n,).

    Witten-Bell interpolation (1991): what a context has seen, mixed with the shorter one by how many kinds of
    token follow it.
    """
    found, longest = dict[str, float](), max(ORDERS.values())
    probability = np.full(len(test), 1 / vocabulary)
    before = (np.zeros(len(train), np.int64), np.zeros(len(test), np.int64))  # the context of each token
    for order in range(1, longest + 1):
        probability = _mixed(before, train, test, vocabulary, probability)
        names = [name for name, length in ORDERS.items() if length == order]
        found |= {name: float(-np.log(probability[1:]).mean()) for name in names}
        before = _longer(before, (train, test), order, vocabulary)
    return found


def _mixed(
    before: tuple[np.ndarray, np.ndarray],
    train: np.ndarray,
    test: np.ndarray,
    vocabulary: int,
    shorter: np.ndarray,
) -> np.ndarray:
    """Probabilities of the test tokens after their contexts; contexts of -1 were never seen."""
    contexts, asked = before
    runs, counts = np.unique(contexts[contexts >= 0] * vocabulary + train[contexts >= 0], return_counts=True)
    size = int(contexts.max(initial=0)) + 1
    follows = np.bincount(runs // vocabulary, minlength=size)  # kinds of token
    seen = np.bincount(runs // vocabulary, weights=counts, minlength=size)
    known = asked >= 0
    keys = asked[known] * vocabulary + test[known]
    kinds = follows[asked[known]]
    mixed = shorter.copy()
    mixed[known] = (_counted(runs, counts, keys) + kinds * shorter[known]) / (seen[asked[known]] + kinds)
    return mixed


def _counted(runs: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(runs, keys), len(runs) - 1)
    return np.where(runs[places] == keys, counts[places], 0)


def _longer(
    before: tuple[np.ndarray, np.ndarray], texts: Sequence[np.ndarray], order: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """Contexts of one more token, numbered by the training text; -1 where it has none of these or too few."""
    keys = []
    for contexts, text in zip(before, texts, strict=True):
        longer = np.full(len(text), -1, np.int64)
        longer[order:] = np.where(contexts[:-1] >= 0, contexts[:-1] * vocabulary + text[:-1], -1)[order - 1 :]
        keys.append(longer)
    kinds, numbers = np.unique(keys[0][keys[0] >= 0], return_inverse=True)
    train = np.full(len(keys[0]), -1, np.int64)
    train[keys[0] >= 0] = numbers
    if not len(kinds):
        return train, np.full(len(keys[1]), -1, np.int64)
    places = np.minimum(np.searchsorted(kinds, keys[1]), len(kinds) - 1)
    return train, np.where(kinds[places] == keys[1], places, -1)
