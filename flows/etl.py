"""Join tables into one, and see what can be told from it."""

from typing import Annotated

from overnight import Artifact, Dataset, Experiment, pipeline
from overnight.data.dataset import of_kind
from tasks.tabular.join import TableParams, join_tables
from tasks.tabular.linear import ClassifierParams, fit_classifier


class Etl(Experiment):
    """Which tables, how they join, and what a classifier predicts; without that section none is fitted."""

    data: Annotated[Dataset, of_kind("table")]
    tables: TableParams
    classifier: ClassifierParams | None = None


@pipeline
def etl(cfg: Etl) -> Artifact:
    """Tables in, one typed table out; the classifier runs beside whatever is built from it."""
    table = join_tables(cfg.tables, cfg.data)
    if cfg.classifier:
        fit_classifier(cfg.classifier, table)
    return table
