"""What a trained classifier of texts tells of the test split, beside baselines."""

import csv
import re
from collections.abc import Mapping, Sequence

import numpy as np

from overnight.run import Run
from overnight.training.loop import TrainResult
from tasks.shared import figures

Texts = Mapping[str, Sequence[tuple[str, ...]]]
STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # of the linear baseline's regularisation, inverse; val chooses
WORST = 50  # mistakes in the table


def report(
    run: Run,
    classes: Sequence[str],
    texts: Texts,
    labels: Mapping[str, np.ndarray],
    probabilities: np.ndarray,
    fitted: TrainResult,
) -> None:
    """Scores, tables and the confusion matrix of test; probabilities: (n, classes)."""
    truth, guesses = labels["test"], probabilities.argmax(1)
    majority = int(np.bincount(labels["train"]).argmax())
    recalls = [(guesses[truth == i] == i).mean() for i in np.unique(truth)]
    sure = np.clip(probabilities[np.arange(len(truth)), truth], 1e-12, None)
    found = {
        "accuracy": (guesses == truth).mean(),
        "majority": (truth == majority).mean(),
        "accuracy_tfidf": linear_accuracy(texts, labels, run.seed),
        "balanced_accuracy": float(np.mean(recalls)),
        "loss": float(-np.log(sure).mean()),
    }
    run.metrics({f"test/{name}": value for name, value in found.items()})
    run.picture("confusion", figures.confusion(truth, guesses, classes))
    _worst(run, classes, texts["test"], truth, probabilities)
    run.note(
        f"{found['accuracy']:.1%} of {len(truth)} test texts right, {found['accuracy_tfidf']:.1%} by words "
        f"alone, {found['majority']:.1%} by the most frequent class; best epoch {fitted.epoch}"
    )


def linear_accuracy(texts: Texts, labels: Mapping[str, np.ndarray], seed: int) -> float:
    """On test, of logistic regression over words and pairs of words (TF-IDF), its strength chosen on val."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    # Letters and digits of any script; signs by themselves, which some texts have alone.
    words = re.compile(r"\w+|[^\w\s]").findall
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, tokenizer=words, token_pattern=None)
    joined = {split: [" ".join(text) for text in rows] for split, rows in texts.items()}
    if not any(text.strip() for text in joined["train"]):
        return float((labels["test"] == np.bincount(labels["train"]).argmax()).mean())
    x = {"train": vectorizer.fit_transform(joined["train"])}
    x |= {split: vectorizer.transform(joined[split]) for split in ("val", "test")}
    if len(np.unique(labels["train"])) < 2:
        return float((labels["test"] == labels["train"][0]).mean())
    models = [
        LogisticRegression(C=strength, max_iter=300, random_state=seed).fit(x["train"], labels["train"])
        for strength in STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(x["val"], labels["val"]))
    return float(best.score(x["test"], labels["test"]))


def _worst(
    run: Run,
    classes: Sequence[str],
    texts: Sequence[tuple[str, ...]],
    truth: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """The wrong answers given with the most confidence, as a table."""
    guesses, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(guesses != truth)
    path = run.folder / "mistakes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "is", "said", "probability"])
        for i in wrong[np.argsort(-sure[wrong], kind="stable")][:WORST]:
            table.writerow([" | ".join(texts[i]), classes[truth[i]], classes[guesses[i]], f"{sure[i]:.4f}"])
    run.publish(path)
