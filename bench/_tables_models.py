"""Models of tables beside scikit-learn's own, and what must not fool them; bench/tables.py prints them.

`python -m bench._tables_models` prints them alone.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import polars as pl

from bench._house import house
from bench._rows import OUT, bar, folder, machine, write
from flows.etl import Etl
from overnight import Artifact, DataSpec, RecordingRun, artifact, paths
from overnight.errors import DataError
from tasks.tabular.fit import fit_table
from tasks.tabular.join import join_tables
from tasks.tabular.params import FitParams
from tasks.tabular.parts import cut
from tasks.tabular.target import labelled

SETS = {"etl": 1, "delay": 1, "breast_cancer": 5, "diabetes": 5}  # configs and how many seeds
RUN_BAR = 25.0  # CPU-s of `overnight run`, with services up
HALF, SAME = 0.05, 1e-3  # bars: around 0.5 on random labels; between orders of the rows
ROWS = 2000


@dataclass(frozen=True)
class Fitted:
    run: RecordingRun
    cpu_s: float

    @property
    def main(self) -> str:
        """The name of the main score: the first of test."""
        return next(n for event in self.run.of("metrics") for n in event["values"] if n.startswith("test/"))

    @property
    def half_width(self) -> float:
        return (self.run.last(f"{self.main}_high") - self.run.last(f"{self.main}_low")) / 2


def fitted(table: Artifact, params: FitParams, seed: int = 0) -> Fitted:
    place = folder()
    run = RecordingRun(place, seed=seed)
    began = time.process_time()
    fit_table.body(run, params, table)
    took = time.process_time() - began
    shutil.rmtree(place)
    return Fitted(run, took)


# ------------------------------------------------------------------------------------------------ peers


def plain(table: Artifact, params: FitParams, seed: int) -> tuple[float, float]:
    """The main score and CPU-s of HistGradientBoosting on a frame of the same columns and parts."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.metrics import accuracy_score, roc_auc_score, root_mean_squared_error

    rows = labelled(params, table)
    parts = cut(params, rows, seed)
    began = time.process_time()
    frame = rows.frame.select(rows.features).to_pandas()
    for name in rows.categorical:
        frame[name] = frame[name].astype("category")
    kind = HistGradientBoostingClassifier if rows.classes else HistGradientBoostingRegressor
    model = kind(
        max_iter=params.rounds,
        learning_rate=params.lr,
        max_leaf_nodes=params.leaves,
        n_iter_no_change=params.patience,
        early_stopping=True,
        random_state=seed,
    )
    train, val, test = (frame.iloc[part] for part in (parts.train, parts.val, parts.test))
    answers = rows.values
    model.fit(train, answers[parts.train], X_val=val, y_val=answers[parts.val])
    truth = answers[parts.test]
    if not rows.classes:
        score = root_mean_squared_error(truth, model.predict(test))
    elif len(rows.classes) == 2:
        score = roc_auc_score(truth, model.predict_proba(test)[:, 1])
    else:
        score = accuracy_score(truth, model.predict(test))
    return float(score), time.process_time() - began


def compared(name: str) -> dict[str, Any]:
    """Of a config: boosted, linear and plain, each seed in turn."""
    config = Etl.load(paths.configs() / f"{name}.yaml")
    assert config.predictor is not None
    place = folder()
    table = join_tables.body(RecordingRun(place), config.tables, config.data)
    seeds = []
    for seed in range(SETS[name]):
        score, cpu_s = plain(table, config.predictor, seed)
        ours = fitted(table, config.predictor, seed)
        linear = ours.run.last(f"{ours.main}_linear")
        seeds.append((ours.run.last(ours.main), linear, score, ours.half_width, ours.cpu_s, cpu_s))
    shutil.rmtree(place)
    names = ("boosted", "linear", "plain", "half_width", "cpu_s", "plain_cpu_s")
    return {"set": name, "score": ours.main} | {
        one: mean(values) for one, values in zip(names, zip(*seeds, strict=True), strict=True)
    }


# ------------------------------------------------------------------------------------------------ made tables


def made(seed: int = 0, copies: int = 1, **more: Any) -> pl.DataFrame:
    """Rows with two honest columns and a class that they hint at; each row so many times."""
    rng = np.random.default_rng(seed)
    n = ROWS // copies
    x, shop = rng.normal(size=n), rng.choice(["a", "b", "c"], n)
    paid = rng.random(n) < 1 / (1 + np.exp(-x - (shop == "a")))
    some = pl.DataFrame(
        {"x": x, "shop": shop, "paid": paid, "amount": 50 + 9 * x + rng.normal(0, 9, n), **more}
    )
    return pl.concat([some] * copies)


def table_of(frame: pl.DataFrame) -> Artifact:
    files = {"table.parquet": frame.write_parquet}
    return artifact.save(folder() / "table", "table", DataSpec(rows=frame.height), files=files)


def leaks() -> dict[str, bool]:
    """By kind of leak: whether the note names its column, or the step refuses it."""
    rng = np.random.default_rng(1)
    whole = made()
    paid, amount = whole["paid"].to_numpy(), whole["amount"].to_numpy()
    planted: dict[str, tuple[str, Any]] = {
        "the target itself": ("paid", None),
        "a copy": ("paid", paid),
        "its opposite in words": ("paid", np.where(paid, "no", "yes")),
        "a date that is set afterwards": ("paid", [f"day {i}" if p else None for i, p in enumerate(paid)]),
        "an amount that is zero before": ("paid", np.where(paid, rng.uniform(1, 9, ROWS), 0.0)),
        "a gap": ("paid", [float(rng.normal()) if p else None for p in paid]),
        "numbers given by class": ("paid", np.argsort(np.argsort(paid + rng.random(ROWS) / 2))),
        "a last digit": ("paid", 2 * rng.integers(0, 50, ROWS) + paid),
        "another unit": ("amount", 1.609 * amount - 3),
        "rounded with noise": ("amount", (amount + rng.normal(0, 1, ROWS)).round()),
    }
    found = {}
    for kind, (target, values) in planted.items():
        name = target if values is None else "leak"
        frame = whole if values is None else whole.with_columns(leak=pl.Series(list(values)))
        where = "categorical" if frame.schema[name] == pl.String else "numeric"
        features = {"numeric": ["x"], "categorical": ["shop"]}
        features[where].append(name)
        try:
            run = fitted(table_of(frame), FitParams(target=target, rounds=5, **features)).run
            found[kind] = run.last("leak/columns") == 1 and "leak (" in run.of("note")[0]["text"]
        except DataError as error:
            found[kind] = values is None and "part of the target" in str(error)
    return found


def by_heart() -> dict[int, float]:
    """Times that each row is there -> ROC AUC on random labels."""
    found = {}
    for copies in (2, 4, 10):
        labels = np.random.default_rng(copies).random(ROWS // copies) < 0.5
        frame = made(copies, copies, label=labels)
        params = FitParams(target="label", numeric=["x", "amount"], categorical=["shop"])
        found[copies] = mean(
            fitted(table_of(frame), params, seed).run.last("test/roc_auc") for seed in range(5)
        )
    return found


def shuffled() -> float:
    """The largest difference of a test score between two orders of the same rows."""
    params = FitParams(target="paid", numeric=["x", "amount"], categorical=["shop"])
    one, two = (
        fitted(table_of(rows), params).run
        for rows in (made(), made().sample(fraction=1, shuffle=True, seed=1))
    )
    names = [n for event in one.of("metrics") for n in event["values"] if n.startswith(("test/", "val/"))]
    return max(abs(one.last(name) - two.last(name)) for name in names)


def runs() -> dict[str, float]:
    """CPU-s of `overnight run` of each config, with services up; the first run warms the services."""
    found = {}
    with house() as home:
        home.run("run", "diabetes")
        for name in SETS:
            text, code, cpu_s = home.run("run", name, "--fresh")
            if code:
                raise SystemExit(text)
            found[name] = cpu_s
    return found


def models() -> list[bool]:
    """Print the rows of the table, write bench/out/tables_models.json; whether each bar is met."""
    sets = [compared(name) for name in SETS]
    met = []
    for one in sets:
        worse = one["boosted"] - one["plain"]
        worse = worse if one["score"].endswith("rmse") else -worse
        measured = (
            f"{one['boosted']:.4f}, linear {one['linear']:.4f}, plain {one['plain']:.4f} "
            f"({one['cpu_s']:.1f} and {one['plain_cpu_s']:.1f} CPU-s)"
        )
        wanted = f"worse than plain by <= {one['half_width']:.4f}"
        met.append(bar(f"{one['set']}: {one['score']}", measured, wanted, worse <= one["half_width"]))
    named, learned, moved, costs = leaks(), by_heart(), shuffled(), runs()
    missed = [kind for kind, is_named in named.items() if not is_named]
    met.append(
        bar("planted leaks named", f"{sum(named.values())} of {len(named)} {missed or ''}", "all", not missed)
    )
    for copies, area in learned.items():
        is_half = abs(area - 0.5) <= HALF
        met.append(
            bar(f"random labels, rows {copies} times: ROC AUC", f"{area:.3f}", f"0.5 +- {HALF}", is_half)
        )
    met.append(bar("rows shuffled: largest change of a score", f"{moved:.1e}", f"<= {SAME}", moved <= SAME))
    for name, cpu_s in costs.items():
        met.append(bar(f"overnight run {name}", f"{cpu_s:.1f} CPU-s", f"<= {RUN_BAR:.0f}", cpu_s <= RUN_BAR))
    rows = {"sets": sets, "leaks": named, "random_labels": learned, "shuffled": moved, "runs": costs}
    write(OUT / "tables_models.json", {"machine": machine(), **rows})
    return met


def main() -> int:
    print(f"{machine()}\n| what | measured | bar | |\n| --- | --- | --- | --- |")
    return 0 if all(models()) else 1


if __name__ == "__main__":
    sys.exit(main())
