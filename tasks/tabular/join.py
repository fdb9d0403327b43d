"""Join tables into one, typed and profiled: the extract-transform-load step, driven by values alone."""

from overnight.artifact import Artifact, DataSpec
from overnight.data.content import Tables
from overnight.data.dataset import Dataset
from overnight.data.entry import Entry
from overnight.gpu.card import Card
from overnight.memory.formulas import Formula
from overnight.run import Run
from overnight.step import step
from tasks.tabular import memory, rapids
from tasks.tabular.tables import TableParams


def tables_spec(params: TableParams, data: Entry) -> DataSpec | None:
    """As many rows as the fact table has, if its entry says; what is dropped is not known before."""
    rows = data.expected.counts.get(params.fact)
    return DataSpec(rows=rows) if rows else None


def tables_peak(params: TableParams, data: Entry) -> Formula:
    """What the join takes of the card, by the bytes of its tables."""
    if params.engine in ("streaming", "in-memory"):
        return Formula(why=f"engine: {params.engine} runs on the processor")
    return memory.joined(data, [] if params.sql else params.used())


def tables_probe(card: Card | None, params: TableParams, _data: Entry) -> dict[str, str]:
    """The engine that will run the queries: engines may round sums differently."""
    return {"engine": rapids.engine_choice(card, params.engine)}


@step(gpu=True, vram_mib=2048, spec=tables_spec, peak=tables_peak, probe=tables_probe)
def join_tables(run: Run, params: TableParams, data: Dataset) -> Artifact:
    """Join named tables to one typed Parquet file with the fact table's rows in their order.

    Its profile is in meta()["profile"], further tables in its folder outputs/. Logs rows/in, rows/out,
    rows/dropped and each join's matches; publishes the profile as a page. Raises DataError, before a row is
    joined, for a table, a column or an expression that does not fit the data; afterwards for a value of the
    wrong type, whole numbers beyond 64 bits, a join that too few rows met, or when no row is left.
    """
    from tasks.tabular import collected

    content = data.load_as(Tables)
    run.cleaned(content.cleaned)
    for table, rows in content.bad_rows.items():
        bad = run.folder / f"bad-rows-{table}.csv"
        rows.write_csv(bad)
        run.publish(bad)
    return collected.table(run, params, data, content)
