"""Translation word by word, and summaries by the first sentences: what a net has to beat."""

import re
import statistics
from collections.abc import Sequence

import numpy as np

WORDS = re.compile(r"\w+|[^\w\s]")
SENTENCES = re.compile(r"(?<=[.!?\u3002])\s+")
ROUNDS = 6  # of expectation and maximisation
MOST = 40  # words of a text that are looked at


class WordTable:
    """The most probable word for each word of the source (model 1 of Brown et al. 1993); others are kept."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        sources, targets = (
            [WORDS.findall(text.lower())[:MOST] for text in side] for side in zip(*pairs, strict=True)
        )
        known, words = (sorted({word for text in side for word in text}) for side in (sources, targets))
        number, of_word = ({word: i for i, word in enumerate(side)} for side in (known, words))
        links, groups, group = list[np.ndarray](), list[np.ndarray](), 0
        for source, target in zip(sources, targets, strict=True):
            # The last number is the empty word, of which words come that no word of the source says.
            ours = np.array([*(number[word] for word in source), len(known)], np.int64)
            theirs = np.array([of_word[word] for word in target], np.int64)
            links.append((ours[None] * max(1, len(words)) + theirs[:, None]).ravel())
            groups.append(np.repeat(np.arange(group, group + len(theirs)), len(ours)))
            group += len(theirs)
        kinds, links_of = np.unique(np.concatenate(links), return_inverse=True)
        source_of, target_of = kinds // max(1, len(words)), kinds % max(1, len(words))
        chance = expected(links_of, np.concatenate(groups), source_of)
        order = np.lexsort((chance, source_of))
        last = np.flatnonzero(np.diff(source_of[order], append=-1))
        best = {source_of[i]: target_of[i] for i in order[last]}
        self.table = {word: words[best[i]] for word, i in number.items() if i in best}

    def translate(self, text: str) -> str:
        """With the first letter of the text as it was, and signs close to the word before."""
        found = " ".join(self.table.get(word.lower(), word) for word in WORDS.findall(text))
        found = re.sub(r"\s+([.,!?;:])", r"\1", found)
        return found[:1].upper() + found[1:] if text[:1].isupper() else found


def expected(links: np.ndarray, groups: np.ndarray, source_of: np.ndarray) -> np.ndarray:
    """Chance of the target's word given the source's, for each kind of link."""
    chance = np.ones(len(source_of))
    for _ in range(ROUNDS):
        weights = chance[links]
        weights /= np.bincount(groups, weights)[groups]
        counts = np.bincount(links, weights, minlength=len(source_of))
        chance = counts / np.bincount(source_of, counts)[source_of]
    return chance


def first_sentences(texts: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Of each text as many sentences as have about the words of a usual target."""
    usual = statistics.median(len(target.split()) for target in targets)
    found = []
    for text in texts:
        taken = list[str]()
        for sentence in SENTENCES.split(text):
            if taken and len(" ".join(taken).split()) >= usual:
                break
            taken.append(sentence)
        found.append(" ".join(taken))
    return found
