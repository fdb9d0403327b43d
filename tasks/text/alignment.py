"""Which token of the source a token of the target stands for, by how often both occur together."""

import numpy as np
import torch

from tasks.shared.tokens import START
from tasks.text.reading import Ragged
from tasks.text.word_table import expected

IGNORED = -100  # the place of what is not aligned
LINKS = 2**25  # of tokens of both sides that are looked at: those of the first pairs
NEAR = 4.0  # by how much a place far from the diagonal is worse


def aligned(sources: Ragged, targets: Ragged) -> Ragged:
    """For each token of `targets` a place in its source, or IGNORED: of START, and beyond LINKS.

    Chances of model 1 (Brown et al. 1993), times how near the place is to the diagonal (Dyer et al. 2013).
    """
    written, known = targets.tokens.numpy(), sources.tokens.numpy()
    lengths, own = sources.lengths.numpy(), targets.lengths.numpy()
    pair_of = np.repeat(np.arange(len(own)), own)
    taken = np.flatnonzero(written != START)
    taken = taken[: np.searchsorted(np.cumsum(lengths[pair_of[taken]]), LINKS, "right")]
    found = np.full(len(written), IGNORED, np.int64)
    if len(taken):
        pairs = pair_of[taken]
        counts, firsts = lengths[pairs], np.cumsum(lengths[pairs]) - lengths[pairs]
        group = np.repeat(np.arange(len(taken)), counts)
        place = np.arange(len(group)) - firsts[group]
        read = known[sources.starts.numpy()[pairs][group] + place].astype(np.int64)
        kinds, link = np.unique(read * (int(written.max()) + 1) + written[taken][group], return_inverse=True)
        chance = expected(link, group, kinds // (int(written.max()) + 1))[link]
        there = (taken - targets.starts.numpy()[pairs] - 1) / (own[pairs] - 1)
        chance *= np.exp(-NEAR * np.abs(there[group] - place / counts[group]))
        best = np.flatnonzero(chance == np.maximum.reduceat(chance, firsts)[group])
        found[taken] = place[best[np.unique(group[best], return_index=True)[1]]]
    return Ragged(torch.from_numpy(found), torch.zeros(len(found)), targets.starts, IGNORED)
