"""How near texts are to those that were wanted: BLEU, chrF, ROUGE-L."""

import re
from collections.abc import Sequence

import numpy as np

WORDS = re.compile(r"\w+")


def corpus_scores(found: Sequence[str], wanted: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Scores of 0 to 100 by name, and sacrebleu's signature of those that are its own."""
    from sacrebleu.metrics import BLEU, CHRF

    scores, signatures = {"rouge_l": rouge_l(found, wanted)}, dict[str, str]()
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        scores[name] = float(metric.corpus_score(list(found), [list(wanted)]).score)
        signatures[name] = str(metric.get_signature())
    return scores, signatures


def text_losses(found: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """1 less chrF / 100 of each text: float64 (n,) in [0, 1]."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    scores = [metric.sentence_score(one, [other]).score for one, other in zip(found, wanted, strict=True)]
    return 1 - np.array(scores, np.float64).clip(0, 100) / 100


def rouge_l(found: Sequence[str], wanted: Sequence[str]) -> float:
    """100 times the mean F score of the longest common run of words, gaps allowed (Lin 2004)."""
    pairs = [[WORDS.findall(text.lower()) for text in pair] for pair in zip(found, wanted, strict=True)]
    return 100 * float(np.mean([_f(one, other) for one, other in pairs])) if pairs else 0.0


def _f(one: list[str], other: list[str]) -> float:
    common = _common(one, other)
    return 2 * common / (len(one) + len(other)) if common else float(not one and not other)


def _common(one: list[str], other: list[str]) -> int:
    """Words of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0  # of the row above, one to the left
        for i, peer in enumerate(other, 1):
            before, row[i] = row[i], before + 1 if word == peer else max(row[i], row[i - 1])
    return row[-1]
