"""How a model of tables is fitted, scored beside its baselines, and saved; fit.py has the step."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from overnight.artifact import Artifact, DataSpec
from overnight.errors import DataError
from overnight.run import Run
from tasks.shared import figures
from tasks.tabular import interface, leaks, pictures, scores
from tasks.tabular.boosted import BoostedModel, fit_boosted
from tasks.tabular.columns import Type
from tasks.tabular.encoding import Encoder, Rows, TreeEncoder, as_levels, kind_of
from tasks.tabular.linear import LinearModel, fit_linear
from tasks.tabular.params import FitParams
from tasks.tabular.parts import Parts, cut
from tasks.tabular.target import Labelled, labelled

Model = BoostedModel | LinearModel
SHUFFLED_ROWS, REPEATS = 2000, 3  # of val, to see what a column is worth
MOST_SHUFFLED = 50  # columns, those that the model uses most
BASELINE = {"boosted": "linear", "linear": "boosted"}


def fit(run: Run, params: FitParams, table: Artifact) -> Artifact:
    rows = labelled(params, table.expect("table"))
    parts = cut(params, rows, run.seed)
    _log_split(run, rows, parts)
    run.progress(1, 4, "fitting")
    schema = rows.frame.schema  # built anew at each look
    kinds = {name: kind_of(schema[name]) for name in rows.features}
    models = _fitted(run, params, rows, parts, kinds)
    run.progress(2, 4, "scoring")
    scored = Scored(params, rows, parts)
    answers = {name: scored.answers(model, parts.test) for name, model in models.items()}
    found = scored.of_test(answers, run.seed)
    run.metrics(found)
    model = models[params.model]
    if len(parts.val):
        run.metrics(scored.of_val(model))
    alone = leaks.telling(rows, np.concatenate([parts.train, parts.val]), parts.identity)
    _log_leaks(run, rows, alone)
    run.progress(3, 4, "drawing")
    _draw(run, scored, model, answers[params.model])
    run.note("; ".join([scored.sentence(found), *_warnings(models), *parts.remarks, *_named(rows, alone)]))
    return _saved(run, params, rows, parts, kinds, model)


# ------------------------------------------------------------------------------------------------ fitting


def _fitted(
    run: Run, params: FitParams, rows: Labelled, parts: Parts, kinds: dict[str, Type]
) -> dict[str, Model]:
    """Both models. Training rows are sorted by what is in them, so that sums do not depend on their order."""
    train = parts.train[np.lexsort((rows.values[parts.train], parts.identity[parts.train]))]
    known = as_levels(rows.frame, {name: kinds[name] for name in rows.categorical})
    seen, classes = known[train], len(rows.classes)
    values = np.log1p(rows.values) if params.log_target else rows.values
    weights = _weights(params, rows, train)

    def encoded(codes: np.ndarray, chosen: np.ndarray) -> Rows:
        return Rows(codes, values[chosen], None if weights is None else weights[chosen])

    encoder = Encoder.fit(seen, rows.numeric, rows.categorical, params.levels)
    linear = fit_linear(run, params, encoder, kinds, encoded(encoder.codes(seen), train), classes)
    trees, codes = TreeEncoder.fit(
        seen, rows.numeric, rows.categorical, params.levels, values[train], bool(classes)
    )
    stops = encoded(trees.codes(known[parts.val]), parts.val)
    boosted = fit_boosted(params, trees, kinds, encoded(codes, train), stops, classes, run.seed)
    run.metrics(
        {
            "train/rounds": len(boosted.trees.roots),
            "train/boosted_converged": boosted.converged,
            "train/linear_converged": linear.converged,
        }
    )
    return {"boosted": boosted, "linear": linear}


def _weights(params: FitParams, rows: Labelled, train: np.ndarray) -> np.ndarray | None:
    """Float64 (n,) by class, with mean 1 over the training rows. Raises DataError for an unknown class."""
    given = params.class_weights
    if given is None:
        return None
    counts = np.bincount(rows.values[train], minlength=len(rows.classes))
    if given == "balanced":
        by_class = 1 / np.maximum(counts, 1)
    else:
        unknown = [name for name in given if name not in rows.classes]
        if unknown or any(weight <= 0 for weight in given.values()):
            raise DataError(
                f"predictor: class_weights {given} must be above 0 and of the classes "
                f"{', '.join(rows.classes)}"
            )
        by_class = np.array([given.get(name, 1.0) for name in rows.classes])
    return np.asarray((by_class * counts.sum() / (by_class @ counts))[rows.values])


# ------------------------------------------------------------------------------------------------ scoring


@dataclass(frozen=True)
class Scored:
    params: FitParams
    rows: Labelled
    parts: Parts

    def answers(self, model: Model, chosen: np.ndarray) -> np.ndarray:
        """Probabilities (n, classes), or numbers (n,), of these rows."""
        return decoded(self.params, self.rows.task, model.raw(model.codes(self.rows.frame[chosen])))

    def of(self, found: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
        truth = self.rows.values[chosen]
        return (scores.number_scores if self.rows.task == "regress" else scores.class_scores)(truth, found)

    def of_test(self, answers: dict[str, np.ndarray], seed: int) -> dict[str, float]:
        """The main score and its interval, the others, and what they have to beat."""
        rows, test = self.rows, self.parts.test
        mine = self.of(answers[self.params.model], test)
        main = next(iter(mine))
        low, high = scores.interval(
            main, rows.values[test], answers[self.params.model], self.parts.cluster[test], seed
        )
        other = BASELINE[self.params.model]
        beside = {f"{name}_{other}": value for name, value in self.of(answers[other], test).items()}
        train, truth = rows.values[self.parts.train], rows.values[test]
        if rows.task == "regress":
            floor = scores.number_floor(train, truth)
        else:
            floor = scores.class_floor(train, truth, len(rows.classes))
        every = mine | {f"{main}_low": low, f"{main}_high": high} | floor | beside
        return {f"test/{name}": value for name, value in every.items()}

    def of_val(self, model: Model) -> dict[str, float]:
        found = self.of(self.answers(model, self.parts.val), self.parts.val)
        return {f"val/{name}": value for name, value in found.items()}

    def sentence(self, found: dict[str, float]) -> str:
        params, rows = self.params, self.rows
        part = "later" if params.order else "held-out"
        of = f"of {len(self.parts.test):,} {part} rows"
        other = BASELINE[params.model]
        if rows.task == "regress":
            unit = f" {params.unit}" if params.unit else ""
            r2 = f", R2 {found['test/r2']:.3f}" if "test/r2" in found else ""
            return (
                f"{params.target}: RMSE {found['test/rmse']:.4g}{unit} ({found['test/rmse_low']:.4g} to "
                f"{found['test/rmse_high']:.4g}){r2} {of}; {found[f'test/rmse_{other}']:.4g} {other}, "
                f"{found['test/rmse_mean']:.4g} by always saying the mean"
            )
        area = ""
        if "test/roc_auc" in found:
            low, high = found.get("test/roc_auc_low", 0.0), found.get("test/roc_auc_high", 1.0)
            ends = f" ({low:.3f} to {high:.3f})" if "test/roc_auc_low" in found else ""
            area = (
                f"ROC AUC {found['test/roc_auc']:.3f}{ends}, {found[f'test/roc_auc_{other}']:.3f} {other}, "
            )
        return (
            f"{interface.about_classes(rows.classes)}: {area}{100 * found['test/accuracy']:.1f} % {of}, "
            f"{100 * found['test/majority']:.1f} % by always saying the commonest class"
        )

    def worth(self, model: Model) -> dict[str, list[float]]:
        """By how much the main score on val gets worse when a column is shuffled, at each repeat."""
        generator = np.random.default_rng(0)
        chosen = self.parts.val[np.argsort(self.parts.identity[self.parts.val], kind="stable")]
        chosen = np.sort(generator.permutation(chosen)[:SHUFFLED_ROWS])
        codes = model.codes(self.rows.frame[chosen])
        owners = np.array(model.owners)

        def main(given: np.ndarray) -> float:
            raw = model.raw(given)
            found = self.of(decoded(self.params, self.rows.task, raw), chosen)
            sign = -1 if self.rows.task == "regress" else 1
            return sign * next(iter(found.values()))

        whole = main(codes)
        sizes = model.sizes()
        found: dict[str, list[float]] = {}
        for name in sorted(sizes, key=lambda name: -sizes[name])[:MOST_SHUFFLED]:
            mine = owners == name
            before = codes[:, mine].copy()
            found[name] = []
            for _ in range(REPEATS):
                codes[:, mine] = before[generator.permutation(len(codes))]
                found[name].append(whole - main(codes))
            codes[:, mine] = before
        return found


def decoded(params: FitParams, task: str, raw: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) of logits, or numbers (n,)."""
    if task == "classify":
        return scores.softmax(raw)
    return np.maximum(np.expm1(raw[:, 0]), 0.0) if params.log_target else raw[:, 0]


# ------------------------------------------------------------------------------------------------ telling


def _log_split(run: Run, rows: Labelled, parts: Parts) -> None:
    total = rows.frame.height
    run.metrics(
        {
            "rows/in": rows.rows,
            "rows/without_target": rows.rows - total,
            "split/train_share": len(parts.train) / total,
            "split/val_share": len(parts.val) / total,
            "split/test_share": len(parts.test) / total,
            "split/test_rows_seen": parts.seen,
        }
    )
    about = f"{len(rows.classes)} classes" if rows.classes else "a number"
    run.log(f"target {rows.task}: {about}; {len(parts.train)} rows to learn from, {len(parts.val)} of val")
    run.param("task", rows.task)


def _log_leaks(run: Run, rows: Labelled, alone: dict[str, float]) -> None:
    run.metric("leak/columns", len(alone))
    for sentence in _named(rows, alone):
        run.log(sentence)


def _named(rows: Labelled, alone: dict[str, float]) -> list[str]:
    """The columns that tell the target by themselves, the best first."""
    score = "R2" if rows.task == "regress" else "ROC AUC"
    shown = [f"{name} ({value:.3f})" for name, value in sorted(alone.items(), key=lambda one: -one[1])]
    if not shown:
        return []
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    which = f"{', '.join(shown[:10])}{more}"
    return [f"{which} tell the target on their own ({score}): look whether they are known before it is"]


def _warnings(models: dict[str, Model]) -> list[str]:
    found = []
    if not models["boosted"].converged:
        found.append("boosting was still getting better at its last round: raise rounds or lr")
    if not models["linear"].converged:
        found.append("the linear model did not converge: raise iterations, or lower strength")
    return found


def _draw(run: Run, scored: Scored, model: Model, found: np.ndarray) -> None:
    rows, test = scored.rows, scored.parts.test
    truth = rows.values[test]
    if rows.task == "regress":
        run.picture("residuals", pictures.residuals(truth, found, scored.params.unit))
    else:
        if len(np.unique(truth)) > 1:
            run.picture("roc" if len(rows.classes) == 2 else "calibration", pictures.classes(truth, found))
        run.picture("confusion", figures.confusion(truth, found.argmax(1), rows.classes))
    if len(scored.parts.val):
        score = next(iter(scored.of(found, test)))
        run.picture("importance", pictures.importance(scored.worth(model), score))
    if isinstance(model, LinearModel):
        about = scored.params.target if rows.task == "regress" else repr(rows.classes[-1])
        run.picture("weights", pictures.weights(model.encoder.names(), model.weights[-1], about))


def _saved(
    run: Run, params: FitParams, rows: Labelled, parts: Parts, kinds: dict[str, Type], model: Model
) -> Artifact:
    config, arrays = model.saved()
    config |= {
        "task": rows.task,
        "model": params.model,
        "classes": rows.classes,
        "numeric": rows.numeric,
        "kinds": kinds,
        "params": params.model_dump(mode="json"),
        "seed": run.seed,
    }
    about: Any = interface.of(params, rows, kinds, rows.frame[parts.test])
    spec = DataSpec(classes=tuple(rows.classes))
    return run.save_model("tasks.tabular.predictor:predictor", arrays, config, spec, about)
