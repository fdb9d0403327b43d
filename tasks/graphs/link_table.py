"""A graph made of a table: rows that share keys link the nodes that they name."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from overnight.artifact import Artifact
from overnight.data.content import CleaningCounts, Graph, as_float32
from overnight.errors import DataError
from overnight.run import Run
from overnight.step import step
from tasks.graphs import arrays
from tasks.graphs.load import GraphParams, summary

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse as sp

BLOCK = 1024  # nodes whose similarities are held at once


class LinkParams(GraphParams):
    """Which column names the nodes, what links them, what describes them, and what is to be told."""

    MEANINGLESS: ClassVar = {"blank": "link makes features for every node"}
    blank: ClassVar[arrays.Blank] = "identity"  # type: ignore[misc]

    node: str = Field(description="the column whose values are the nodes; rows without one are left out")
    by: list[str] = Field(
        description="columns that together are a key; nodes are alike when their rows share keys",
        min_length=1,
    )
    label: str = Field(description="the column whose commonest value is the node's class")
    features: dict[str, str] = Field(
        description="{name: SQL aggregate over a node's rows}, without the label and what it is made of",
        min_length=1,
    )
    neighbours: int = Field(10, ge=1, description="the most similar nodes that each node is linked to")
    similarity: Literal["jaccard", "cosine"] = Field(
        "cosine", description="of the sets of keys, or of how often each key occurs"
    )
    threshold: float = Field(0.0, ge=0, lt=1, description="similarity that a link must exceed")
    rare: int = Field(20, ge=1, description="a class of fewer nodes is no class: its nodes stay, unlabelled")
    rows: int = Field(1, ge=1, description="nodes with fewer rows are left out")


@step
def link_rows(run: Run, params: LinkParams, table: Artifact) -> Artifact:
    """Link the values of one column of a table to the most similar by the keys they share: artifact "graph".

    The weight of an edge is the similarity, in (0, 1]. Equal similarities are drawn by seed. Logs as
    load_graph does; raises DataError for a missing column, a feature that is made of the label, fewer than
    two classes, or no two nodes that share a key.
    """
    frame = _checked(params, table.expect("table"))
    cleaned = CleaningCounts()
    nodes = _nodes(frame, params, cleaned)
    labels, classes = _labels(nodes, params, cleaned)
    edges, weights = _links(frame, nodes["\0node"], params, run.seed)
    features = nodes.select(list(params.features)).to_numpy()
    features = as_float32(features, cleaned)
    features = np.where(np.isfinite(features), features, _means(features, cleaned))
    ids = tuple(nodes["\0node"])
    graph = Graph(edges, nodes.height, features, labels, classes, cleaned=cleaned, weights=weights, ids=ids)
    saved = arrays.save(
        run,
        graph,
        f"nodes of {params.node!r}",
        arrays.Shares(params.val, params.test),
        params.normalize,
        "identity",
    )
    run.note(summary(saved, f"{params.node} linked by {' + '.join(params.by)}"))
    return saved


def _checked(params: LinkParams, table: Artifact) -> "pl.LazyFrame":
    """The table's rows that name a node; raises DataError for what the values name wrongly."""
    import polars as pl

    frame = pl.scan_parquet(table.path / "table.parquet")
    have = frame.collect_schema().names()
    problems = [
        f"no column {c!r}; the table has {', '.join(have)}"
        for c in (params.node, params.label, *params.by)
        if c not in have
    ]
    problems += [f"{name} cannot be a key: it is the label" for name in params.by if name == params.label]
    for name, expression in params.features.items():
        problems += _feature_problem(name, expression, params.label, frame)
    if problems:
        raise DataError([f"link_rows: {problem}" for problem in problems])
    return frame.drop_nulls(params.node).with_columns(pl.col(params.node).cast(pl.String).alias("\0node"))


def _feature_problem(name: str, expression: str, label: str, frame: "pl.LazyFrame") -> list[str]:
    import polars as pl

    try:
        aggregate = pl.sql_expr(expression)
        if label in aggregate.meta.root_names():
            return [f"feature {name!r} is made of the label {label!r}"]
        dtype = frame.group_by(pl.lit(0)).agg(aggregate.alias(name)).collect_schema()[name]
    except pl.exceptions.PolarsError as error:
        return [f"feature {name!r}: {expression!r} does not work: {str(error).splitlines()[0]}"]
    return (
        []
        if dtype.is_numeric() or dtype == pl.Boolean
        else [f"feature {name!r}: {expression!r} gives {dtype}, not one number; aggregate it"]
    )


def _nodes(frame: "pl.LazyFrame", params: LinkParams, cleaned: CleaningCounts) -> "pl.DataFrame":
    """One row per node, by name: its features, its commonest label, and how many rows disagree.

    Of equally common labels the first by name is taken.
    """
    import polars as pl

    label = pl.col(params.label).cast(pl.String)
    grouped = frame.group_by("\0node").agg(
        pl.len().alias("\0rows"),
        label.drop_nulls().mode().sort().first().alias("\0label"),
        label.drop_nulls().n_unique().alias("\0labels"),
        *(
            pl.sql_expr(expression).cast(pl.Float32).alias(name)
            for name, expression in params.features.items()
        ),
    )
    every = grouped.sort("\0node").collect(engine="streaming")
    nodes = every.filter(pl.col("\0rows") >= params.rows)
    cleaned["node with too few rows left out"] += every.height - nodes.height
    cleaned["node with several labels given the commonest"] += int((nodes["\0labels"] > 1).sum())
    return nodes


def _labels(
    nodes: "pl.DataFrame", params: LinkParams, cleaned: CleaningCounts
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Int64 (N,) and the classes; rare ones and nodes without a label are -1."""
    import polars as pl

    column = nodes["\0label"]
    counts = column.drop_nulls().value_counts()
    classes = tuple(sorted(counts.filter(pl.col("count") >= params.rare)["\0label"].to_list()))
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index.get(name, -1) for name in column.to_list()], dtype=np.int64)
    cleaned["node without a label kept"] += column.null_count()
    cleaned["node of a rare class unlabelled"] += int((labels < 0).sum()) - column.null_count()
    return labels, classes


def _links(
    frame: "pl.LazyFrame", names: "pl.Series", params: LinkParams, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Edges (2, E), each once, and their weights: each node with its most similar ones."""
    used = _usage(frame, names, params)
    rows, columns, values = (
        np.concatenate(parts) for parts in zip(*_nearest(used, params, seed), strict=True)
    )
    if not len(rows):
        raise DataError(
            f"link_rows: no two values of {params.node!r} share {' + '.join(params.by)} more than "
            f"{params.threshold}; link by other columns"
        )
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    _, first = np.unique(low * len(names) + high, return_index=True)
    return np.stack([low, high])[:, first].astype(np.int64), values[first].astype(np.float32)


def _usage(frame: "pl.LazyFrame", names: "pl.Series", params: LinkParams) -> "sp.csr_matrix":
    """Float32 (N, keys), rows of length 1.

    How often each node's rows have each key, or for Jaccard whether they do.
    """
    import polars as pl
    import scipy.sparse as sp

    keys = (
        frame.drop_nulls(params.by)
        .group_by("\0node", *params.by)
        .len("\0count")
        .sort("\0node", *params.by)
        .collect(engine="streaming")
    )
    known = keys.filter(pl.col("\0node").is_in(names.implode()))
    row = (
        known["\0node"]
        .replace_strict({name: i for i, name in enumerate(names)}, return_dtype=pl.Int64)
        .to_numpy()
    )
    column = known.select(pl.struct(params.by).rank("dense").cast(pl.Int64)).to_series().to_numpy() - 1
    values = (
        np.ones(len(row))
        if params.similarity == "jaccard"
        else known["\0count"].to_numpy().astype(np.float64)
    )
    used = sp.csr_matrix((values, (row, column)), shape=(len(names), int(column.max(initial=-1)) + 1))
    if params.similarity == "jaccard":
        return used
    length = np.sqrt(np.asarray(used.multiply(used).sum(1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.where(length > 0, length, 1.0)) @ used)


def _nearest(
    used: "sp.csr_matrix", params: LinkParams, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(node, other, similarity) of the most similar ones, a block of nodes at a time.

    Draws between equals by seed.
    """
    sizes = np.asarray(used.sum(1)).ravel()
    other = used.T.tocsr()
    for start in range(0, used.shape[0], BLOCK):
        block = (used[start : start + BLOCK] @ other).tocoo()
        row, column, value = block.row + start, block.col.astype(np.int64), block.data
        if params.similarity == "jaccard":
            value = value / (sizes[row] + sizes[column] - value)
        keep = (row != column) & (value > params.threshold)
        row, column, value = row[keep].astype(np.int64), column[keep], np.minimum(value[keep], 1.0)
        chance = np.random.default_rng((seed, start)).random(len(row))
        order = np.lexsort((chance, -np.round(value, 9), row))
        row, column, value = row[order], column[order], value[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        near = rank < params.neighbours
        yield row[near], column[near], value[near]


def _means(features: np.ndarray, cleaned: CleaningCounts) -> np.ndarray:
    """Float32 (F,): what stands for a value that is missing."""
    odd = ~np.isfinite(features)
    cleaned["missing feature given the mean of its column"] += int(odd.sum())
    counts = np.maximum((~odd).sum(0), 1)
    return np.asarray(np.where(odd, 0.0, features).sum(0) / counts, np.float32)
