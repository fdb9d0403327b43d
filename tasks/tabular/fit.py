"""Predict a class or a number from a row of a table."""

from overnight.artifact import Artifact, DataSpec
from overnight.gpu.card import Card
from overnight.memory.formulas import Formula
from overnight.run import Run
from overnight.step import step
from tasks.tabular import memory, rapids
from tasks.tabular.params import MOST_CLASSES, FitParams


def fit_peak(params: FitParams, table: DataSpec) -> Formula:
    """Nothing of the card with scikit-learn, which small tables and boosted trees take.

    With cuML what its matrix and its solver need.
    """
    if params.backend == "sklearn" or (params.backend == "auto" and 0 < table.rows < params.cuml_from_rows):
        return Formula(why=f"scikit-learn on the processor (cuML from {params.cuml_from_rows:,} rows on)")
    unknown = (
        "" if table.rows else "run join_tables once, or write the rows of its table into the set's entry"
    )
    if "all" in (params.numeric, params.categorical):
        unknown = "name the columns: how many `all` are is known after the join"
    if unknown:
        return Formula(needs="cuml", unknown=f"rows or columns are unknown: {unknown}")
    numbers = 2 * len(params.numeric)  # each has a flag for what is missing
    features = numbers + (params.levels + 2) * len(params.categorical)
    filled = numbers + len(params.categorical)  # one level of each
    return memory.fitted(table.rows, features, filled, MOST_CLASSES)


def fit_probe(card: Card | None, params: FitParams, table: Artifact) -> dict[str, str]:
    """The library that will fit the linear model: their solvers end at slightly different weights."""
    large = table.spec.rows >= params.cuml_from_rows
    automatic = "cuml" if large and rapids.cuml_choice(card) else "sklearn"
    return {"backend": automatic if params.backend == "auto" else params.backend}


@step(gpu=True, vram_mib=1024, peak=fit_peak, probe=fit_probe)
def fit_table(run: Run, params: FitParams, table: Artifact) -> Artifact:
    """A table -> boosted trees or a linear model, the other one beside it as a baseline.

    Logs of classes test/roc_auc, accuracy, log_loss and macro_f1 beside test/majority; of numbers test/rmse,
    mae and r2 beside those of the mean; an interval of the first; val/* the same; split/* and leak/*.
    Pictures: what each column is worth on val, and calibration or residuals. Raises DataError for a column
    that is missing, of the wrong type or part of the target, and for a target that fits no task.
    """
    from tasks.tabular.training import fit

    return fit(run, params, table)
