"""How good answers are, beside the commonest class or the mean; and how sure that is."""

import numpy as np

RESAMPLES, AT_ONCE = 200, 20
LEVELS = (0.025, 0.975)  # of an interval


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def class_scores(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """ROC AUC (one against the rest, averaged over the classes that occur), accuracy, log loss, macro-F1.

    The main one first: of two classes the AUC, else the accuracy.
    """
    from sklearn.metrics import f1_score

    best = probabilities.argmax(1)
    scores = {
        "accuracy": float((best == truth).mean()),
        "log_loss": float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)).mean()),
        "macro_f1": float(f1_score(truth, best, average="macro", labels=np.unique(truth), zero_division=0)),
    }
    there = [k for k in range(probabilities.shape[1]) if 0 < (truth == k).sum() < len(truth)]
    if not there:
        return scores
    area = {"roc_auc": float(np.mean([auc(truth == k, probabilities[:, k]) for k in there]))}
    return area | scores if probabilities.shape[1] == 2 else scores | area


def class_floor(train: np.ndarray, truth: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy and log loss of what the class shares of the training rows alone say."""
    shares = np.maximum(np.bincount(train, minlength=classes) / len(train), 1e-9)
    return {
        "majority": float((truth == shares.argmax()).mean()),
        "log_loss_prior": float(-np.log(shares[truth]).mean()),
    }


def number_scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """RMSE, MAE and R2, the main one first."""
    error = found - truth
    spread = float(((truth - truth.mean()) ** 2).mean())
    squared = float((error**2).mean())
    r2 = {"r2": 1 - squared / spread} if spread else {}
    return {"rmse": squared**0.5, "mae": float(np.abs(error).mean()), **r2}


def number_floor(train: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """RMSE and MAE of always saying the mean of the training rows."""
    scores = number_scores(truth, np.full(len(truth), train.mean()))
    return {"rmse_mean": scores["rmse"], "mae_mean": scores["mae"]}


def auc(truth: np.ndarray, score: np.ndarray) -> float:
    """The area under the ROC curve: the share of pairs that are in the right order, ties counted half.

    truth: bool (n,). 0.5 where one class is missing.
    """
    return float(_areas(truth, score, np.ones((1, len(truth))))[0])


def _areas(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Areas (resamples,) for weights of the rows (resamples, n)."""
    order = np.argsort(score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    sorted_weights = weights[:, order]
    true = np.cumsum(sorted_weights * truth[order], axis=1)[:, ends]
    false = np.cumsum(sorted_weights, axis=1)[:, ends] - true
    steps = np.diff(true, axis=1, prepend=0)
    middle = false - np.diff(false, axis=1, prepend=0) / 2
    pairs = true[:, -1] * false[:, -1]
    return np.where(pairs > 0, (steps * middle).sum(1) / np.maximum(pairs, 1e-300), 0.5)


def interval(
    name: str, truth: np.ndarray, found: np.ndarray, cluster: np.ndarray, seed: int
) -> tuple[float, float]:
    """The 95 % interval of roc_auc, accuracy or rmse, by resampling the clusters of test rows.

    found: probabilities (n, classes), or numbers (n,).
    """
    names, index = np.unique(cluster, return_inverse=True)
    generator = np.random.default_rng(seed)
    values: list[np.ndarray] = []
    for _ in range(RESAMPLES // AT_ONCE):
        drawn = generator.integers(0, len(names), (AT_ONCE, len(names)))
        counts = np.stack([np.bincount(one, minlength=len(names)) for one in drawn])
        weights = counts[:, index].astype(np.float64)
        if name == "roc_auc":
            values.append(_areas(truth == 1, found[:, 1], weights))
            continue
        loss = (found - truth) ** 2 if name == "rmse" else (found.argmax(1) == truth).astype(np.float64)
        mean = weights @ loss / weights.sum(1)
        values.append(np.sqrt(mean) if name == "rmse" else mean)
    low, high = np.quantile(np.concatenate(values), LEVELS)
    return float(low), float(high)
