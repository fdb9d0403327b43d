"""Join tables into one, and see what can be told from it."""

from typing import Annotated, ClassVar

from overnight import Artifact, Dataset, Experiment, pipeline
from overnight.data.dataset import of_kind
from tasks.tabular.fit import fit_table
from tasks.tabular.join import TableParams, join_tables
from tasks.tabular.params import FitParams


class Etl(Experiment):
    """Which tables, how they join, and what is predicted; without that section no model is fitted."""

    RENAMED: ClassVar = {"classifier": "predictor"}

    data: Annotated[Dataset, of_kind("table")]
    tables: TableParams
    predictor: FitParams | None = None


@pipeline
def etl(cfg: Etl) -> Artifact:
    """Tables in, one typed table out; the model is fitted beside whatever is built from it."""
    table = join_tables(cfg.tables, cfg.data)
    if cfg.predictor:
        fit_table(cfg.predictor, table)
    return table
