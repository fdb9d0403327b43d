"""Join tables into one, and see what can be told from it."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from overnight import Artifact, Dataset, Experiment, pipeline
from overnight.data.dataset import of_kind
from tasks.tabular.fit import fit_table
from tasks.tabular.join import join_tables
from tasks.tabular.params import FitParams
from tasks.tabular.tables import TableParams, asked_columns, described_tables


class Etl(Experiment):
    """Which tables, how they join, and what is predicted; without that section no model is fitted."""

    RENAMED: ClassVar = {"classifier": "predictor"}

    data: Annotated[Dataset, of_kind("table")]
    tables: TableParams
    predictor: FitParams | None = None

    @model_validator(mode="after")
    def _tables_of_the_set(self) -> Self:
        there = described_tables(self.data)
        problems = self.tables.unknown_tables(there) if there else []
        if problems:
            raise ValueError(f"tables: {'; '.join(problems)}")
        self.check({})
        return self

    def check(self, asked: Mapping[str, str]) -> None:
        """Raises ValueError for what does not fit the set's columns, where they are known before the run."""
        from tasks.tabular.plan import foreseen

        problems = foreseen(self.asking({**self.asked(), **asked}).tables, self.data)
        if problems:
            raise ValueError("; ".join(problems))

    def asked(self) -> dict[str, str]:
        """What the predictor asks of the table."""
        fit = self.predictor
        return {"predictor.target": fit.target, **asked_columns(fit.columns(), "predictor")} if fit else {}

    def asking(self, asked: Mapping[str, str]) -> Self:
        """With expressions that later steps ask of the table: they are looked at before it is made."""
        tables = self.tables.model_copy(update={"asked": {**self.tables.asked, **asked}})
        return self.model_copy(update={"tables": tables})


@pipeline
def etl(cfg: Etl) -> Artifact:
    """Tables in, one typed table out; the model is fitted beside whatever is built from it."""
    fit = cfg.predictor
    if fit is None:
        return join_tables(cfg.tables, cfg.data)
    table = join_tables(cfg.asking(cfg.asked()).tables, cfg.data)
    fit_table(fit, table)
    return table
