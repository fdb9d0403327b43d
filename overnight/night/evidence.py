"""How strong the evidence is that a challenger's loss is lower than the champion's, over a year of looks.

What is tested. Both models are scored on the same test items, each with a loss in [0, 1]. An item's gain is
the champion's loss minus the challenger's, in [-1, 1]. Items that belong together (crops of one image, rows
of one hour) are averaged first: a cluster is one observation. Null hypothesis: the mean gain is at most the
minimum effect. The clusters are taken as drawn independently; they are put into an order that depends on
nothing but their names, so no model can profit from it.

One look. Capital K_0 = 1 bets on the gains x_1 ... x_n one after another:

    K_i = K_(i-1) * (1 + b_i * (x_i - minimum_effect)),   0 <= b_i <= 0.9 / (1 + minimum_effect),

where b_i depends on x_1 ... x_(i-1) alone. Under the null hypothesis K is a non-negative supermartingale, so
it ever reaches 1/level with probability at most `level` (Ville's inequality), however the gains are
distributed and wherever one stops: an e-process. Source: Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", JRSS B 86 (2024); any such b_i is valid. Ours hedges the payoff "1/level
where a z-test at this level rejects after all n, else 0", so that almost none of that test's power is lost
(Koning and van Meer, "Anytime validity is free", JRSS B 2026): with p = level * K_(i-1), s the standard
deviation of the gains before and r = n - i + 1 the observations left,

    b_i = normal density(normal quantile(p)) / (p * s * sqrt(r)).

The bet is set anew for each of at most 200 blocks of observations.

A year of looks. Each new challenger is another hypothesis, and all of them are tested on the same items. What
can be multiplied, and what not:
- The same two models on the same items again: there is no new information. The result is the one of before;
  it is neither multiplied with itself nor counted as another look.
- Another challenger on the same items: its capital is not multiplied with that of an earlier one. The two
  share the items' and the champion's luck, so the product would be no e-process.
- The same two models on new items: the capitals could be multiplied, as those of one longer sequence. A
  changed test set starts again at 1 instead, since its items may overlap with those of before.
So evidence is not pooled over challengers; what is kept over the nights is the result of each pair, and the
account of the year: look j of a year spends level(j) = alpha / (j * H), H = 1 + 1/2 + ... + 1/1000. The sum
over 1000 looks is alpha, and whatever the dependence among the looks, the probability of any false promotion
in the year is at most that sum (union bound). No look after the thousandth promotes. A changed test set, or a
promotion, does not refill the account.

What this does not prove. A champion that was promoted on these items was chosen by its luck on them, among
other things. Its losses look lower than they are, so later challengers look worse than they are: towards
keeping the champion. The same holds for ideas that a person tries because earlier ones had won. The bench
(`python -m bench.night promotions`) counts such years, too.
"""

import hashlib
import itertools
from typing import Any

import numpy as np

MOST_LOOKS = 1000  # in a year
MOST_BET = 0.9  # of the capital, on one observation
BLOCKS = 200
AIM = 1.05  # times 1/level: bets in blocks end a little short of what they aim at
HARMONIC = float(sum(1 / look for look in range(1, MOST_LOOKS + 1)))
GUARD_LEVEL = 0.05  # at which a class counts as worse
Floats = np.ndarray[Any, np.dtype[np.float64]]


def level(look: int, alpha: float) -> float:
    """What look 1, 2, ... of a year may spend of `alpha`, the year's budget; 0 when it is used up."""
    return alpha / (look * HARMONIC) if look <= MOST_LOOKS else 0.0


def cluster_gains(champion: Floats, challenger: Floats, clusters: Any) -> Floats:
    """The mean gain of each cluster, in an order fixed by the clusters' names.

    champion, challenger: losses of the same items, (n,).
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    gains = np.bincount(index, champion - challenger) / np.bincount(index)
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(str(names[i]).encode()).digest())
    return gains[order]


def log_capital(gains: Floats, minimum_effect: float, level: float) -> Floats:
    """The logarithm of the largest capital that bets on `gains` reach; 1/level is aimed at.

    gains: (..., n) in [-1, 1]. Of several sequences at once, (...); a look promotes from -log(level) on.
    """
    from scipy.special import ndtri

    count = gains.shape[-1]
    edges = np.unique(np.linspace(0, count, min(BLOCKS, count) + 1).astype(int))
    goal = np.log(AIM / level)
    capital = np.zeros(gains.shape[:-1])
    best = capital.copy()
    total = capital.copy()
    squares = capital.copy()
    for start, end in itertools.pairwise(edges):
        mean = total / (start + 1)
        spread = np.sqrt((1 + np.maximum(squares - start * mean**2, 0)) / (start + 1))
        share = np.exp(np.clip(capital - goal, -600, 0))
        density = np.exp(-(ndtri(share) ** 2) / 2) / np.sqrt(2 * np.pi)
        bet = np.minimum(density / (share * spread * np.sqrt(count - start)), MOST_BET / (1 + minimum_effect))
        bet = np.where(capital >= goal, 0.0, bet)
        block = gains[..., start:end]
        capital = capital + np.log1p(bet[..., None] * (block - minimum_effect)).sum(-1)
        best = np.maximum(best, capital)
        total = total + block.sum(-1)
        squares = squares + (block**2).sum(-1)
    return best


def interval(gains: Floats) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval (normal): to read, no part of the decision."""
    mean = float(gains.mean())
    half = 1.96 * float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else 1.0
    return mean, mean - half, mean + half


def detectable(gains: Floats, minimum_effect: float, level: float) -> float:
    """About the mean gain that these items would show with a probability of one half."""
    from scipy.special import ndtri

    return float(minimum_effect - ndtri(level) * gains.std() / len(gains) ** 0.5)


def worse_groups(
    champion: Floats, challenger: Floats, clusters: Any, groups: Any, margin: float
) -> dict[str, float]:
    """By how much the loss is higher, of each group where it is by more than `margin`, and not by chance.

    By chance: a group's own e-process against "not higher" stays below 1 / GUARD_LEVEL. Each group is tested
    at that level: a guard that errs keeps the champion.
    """
    found: dict[str, float] = {}
    names = np.asarray(groups)
    for name in sorted(set(names.tolist())):
        mine = names == name
        rise = cluster_gains(challenger[mine], champion[mine], np.asarray(clusters)[mine])
        is_certain = log_capital(rise, 0.0, GUARD_LEVEL) >= -np.log(GUARD_LEVEL)
        if rise.mean() > margin and is_certain:
            found[str(name)] = float(rise.mean())
    return found
