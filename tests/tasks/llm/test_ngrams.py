"""Count models are probabilities, and know what they have seen."""

from collections import Counter

import numpy as np
import pytest

from tasks.llm.ngrams import count_losses


def by_hand(train: list[int], context: tuple[int, ...], token: int, vocabulary: int) -> float:
    """The same by definition, one token at a time."""
    shorter = by_hand(train, context[1:], token, vocabulary) if context else 1 / vocabulary
    n = len(context)
    follows = Counter(train[i] for i in range(n, len(train)) if tuple(train[i - n : i]) == context)
    if not follows:
        return shorter
    return (follows[token] + len(follows) * shorter) / (follows.total() + len(follows))


@pytest.mark.parametrize("vocabulary", [5, 60_000])
def test_probabilities_are_those_of_the_definition(vocabulary: int) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 4, 200), rng.integers(0, 5, 40)
    found = count_losses(train, test, vocabulary)
    for name, order in (("unigram", 1), ("bigram", 2), ("5-gram", 5)):
        known = [
            by_hand(train.tolist(), tuple(test[max(0, i - order + 1) : i].tolist()), int(test[i]), vocabulary)
            for i in range(1, len(test))
        ]
        assert found[name] == pytest.approx(-np.log(known).mean())


def test_the_probabilities_of_all_tokens_add_up() -> None:
    rng = np.random.default_rng(1)
    train, begin = rng.integers(0, 4, 100), rng.integers(0, 4, 9)
    for name in ("unigram", "bigram", "5-gram"):
        whole = [count_losses(train, np.append(begin, last), 4)[name] * len(begin) for last in range(4)]
        known = count_losses(train, begin, 4)[name] * (len(begin) - 1)
        assert sum(np.exp(known - np.array(whole))) == pytest.approx(1)


def test_a_text_that_repeats_is_foretold_by_longer_counts() -> None:
    train = np.tile([0, 1, 0, 2, 0, 3], 200)
    found = count_losses(train, train[:60], 4)
    assert found["5-gram"] < 0.05 < found["bigram"] < found["unigram"]
    assert count_losses(train[:1], train[:3], 4)["5-gram"] > 0
