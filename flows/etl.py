"""Join tables into one, and see what can be told from it."""

from typing import Self

from pydantic import model_validator

from overnight import Artifact, Dataset, Experiment, pipeline
from tasks.tabular.join import TableParams, join_tables
from tasks.tabular.linear import ClassifierParams, fit_classifier


class Etl(Experiment):
    """Which tables, how they join, and what a classifier is to tell from a row; without that section it is not fitted."""

    data: Dataset
    tables: TableParams
    classifier: ClassifierParams | None = None

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if self.data.kind != "table":
            raise ValueError(
                f"data: {self.data.name!r} is of kind {self.data.kind!r}; an ETL takes one of kind 'table'"
            )
        return self


@pipeline
def etl(cfg: Etl) -> Artifact:
    """Tables in, one typed table out; the classifier runs beside whatever is built from it."""
    table = join_tables(cfg.tables, cfg.data)
    if cfg.classifier:
        fit_classifier(cfg.classifier, table)
    return table
