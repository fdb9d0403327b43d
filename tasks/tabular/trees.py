"""Boosted trees as arrays: what scikit-learn has fitted, without its classes and without pickle."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

CATEGORIES = 256  # of a column at most
LEAF = -1


@dataclass(frozen=True)
class Trees:
    """All nodes of all trees, one tree after another.

    feature, left, right: int32 (nodes,), left is LEAF of a leaf; threshold, value: float64 (nodes,);
    missing_left: bool (nodes,); subset: int32 (nodes,), the row of `subsets` of the categories that go left,
    -1 for a number; subsets: bool (k, CATEGORIES); roots: int32 (rounds, outputs); baseline: (outputs,).
    """

    feature: np.ndarray
    left: np.ndarray
    right: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    missing_left: np.ndarray
    subset: np.ndarray
    subsets: np.ndarray
    roots: np.ndarray
    baseline: np.ndarray

    @classmethod
    def of(cls, model: Any, rounds: int) -> Self:
        """Of the first rounds of a fitted HistGradientBoosting model whose categories are 0, 1, 2, ..."""
        every = [tree for one in model._predictors[:rounds] for tree in one]
        outputs = len(model._predictors[0])
        nodes = np.concatenate([tree.nodes for tree in every])
        starts = np.cumsum([0, *(len(tree.nodes) for tree in every)])
        shift = np.repeat(starts[:-1], np.diff(starts))
        is_leaf = nodes["is_leaf"].astype(bool)
        is_number = is_leaf | (nodes["is_categorical"] == 0)
        bitsets = [tree.raw_left_cat_bitsets.reshape(-1, CATEGORIES // 32) for tree in every]
        before = np.cumsum([0, *(len(part) for part in bitsets)])[:-1]
        rows = nodes["bitset_idx"].astype(np.int64) + np.repeat(before, np.diff(starts))
        packed = np.ascontiguousarray(np.concatenate(bitsets)).view(np.uint8)
        return cls(
            nodes["feature_idx"].astype(np.int32),
            np.where(is_leaf, LEAF, nodes["left"] + shift).astype(np.int32),
            np.where(is_leaf, LEAF, nodes["right"] + shift).astype(np.int32),
            nodes["num_threshold"].copy(),
            nodes["value"].copy(),
            nodes["missing_go_to_left"].astype(bool),
            np.where(is_number, -1, rows).astype(np.int32),
            np.unpackbits(packed, axis=1, bitorder="little").astype(bool),
            starts[:-1].astype(np.int32).reshape(-1, outputs),
            np.asarray(model._baseline_prediction, np.float64).ravel(),
        )

    def raw(self, codes: np.ndarray) -> np.ndarray:
        """Sums of leaves (n, outputs) of float64 codes (n, columns); nan: missing, a category its number."""
        columns = np.ascontiguousarray(codes.T)
        found = np.tile(self.baseline, (len(codes), 1))
        every = np.arange(len(codes))
        outputs = len(self.baseline)
        left, right, value = self.left.tolist(), self.right.tolist(), self.value.tolist()
        for number, root in enumerate(self.roots.ravel().tolist()):
            output = number % outputs
            pending = [(root, every)] if len(every) else []
            while pending:
                node, rows = pending.pop()
                if left[node] == LEAF:
                    found[rows, output] += value[node]
                    continue
                goes = self._goes_left(node, columns[self.feature[node], rows])
                sides = ((left[node], rows[goes]), (right[node], rows[~goes]))
                pending += [(child, part) for child, part in sides if len(part)]
        return found

    def _goes_left(self, node: int, values: np.ndarray) -> np.ndarray:
        """Bool (n,) of the rows that reach a node."""
        gone = np.isnan(values)
        if self.subset[node] < 0:
            goes = values <= self.threshold[node]
        else:
            goes = self.subsets[self.subset[node]][np.where(gone, 0, values).astype(np.intp)]
        goes[gone] = self.missing_left[node]
        return np.asarray(goes)
