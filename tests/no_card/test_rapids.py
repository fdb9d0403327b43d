"""RAPIDS without a card: Polars' GPU engine, and stand-ins made from the signatures of the locked wheels."""

import inspect
import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from overnight import DataSpec, RecordingRun, artifact
from overnight.data.dataset import Dataset
from overnight.errors import ServiceError
from overnight.gpu import rmm
from tasks.tabular import rapids
from tasks.tabular.fit import fit_peak, fit_table
from tasks.tabular.join import TableParams, join_tables
from tasks.tabular.params import FitParams
from tests.support.recorded_nvml import play

ROOT = Path(__file__).resolve().parents[2]
SIGNATURES = json.loads(Path(__file__).with_name("rapids_signatures.json").read_text())
MIB = 1 << 20


def module(monkeypatch, name, **content):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, is_package=True)
    made.__path__ = []
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def stand_in(name):
    """A class of rmm.mr that takes what the real one takes, and keeps it."""
    classes = SIGNATURES["rmm.mr"]
    methods = classes[name]["methods"]
    known = [inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in methods["__init__"]]

    def make(self, *arguments, **options):
        bound = inspect.Signature([p.replace(default=None) for p in known]).bind(*arguments, **options)
        self.given = bound.arguments

    inherited = [base for base in classes[name]["bases"] if base in classes]
    names = {*methods, *(method for base in inherited for method in classes[base]["methods"])}
    content = {method: lambda self: None for method in names - {"__init__"}}
    if "get_upstream" in names:
        content["get_upstream"] = lambda self: self.given["upstream_mr"]
    if "allocation_counts" in names:
        content["allocation_counts"] = SimpleNamespace(current_bytes=3, peak_bytes=7)
    return type(name, (), {**content, "__init__": make})


def scanned(plan):
    """The formats of the files that the plan reads."""
    node = plan.view_current_node()
    if type(node).__name__ == "Scan":
        yield node.scan_type[0]
    for child in plan.get_inputs():
        plan.set_node(child)
        yield from scanned(plan)


@pytest.fixture
def on_card(monkeypatch):
    """A card, RMM, and a cudf-polars that leaves each plan to the processor; the engines that reached it."""
    play(monkeypatch, "linux")
    current = []
    classes = {name: stand_in(name) for name, found in SIGNATURES["rmm.mr"].items() if isinstance(found, dict) and "__init__" in found["methods"]}  # fmt: skip
    mr = module(
        monkeypatch,
        "rmm.mr",
        get_current_device_resource=lambda: current[-1] if current else None,
        set_current_device_resource=current.append,
        **classes,
    )
    module(monkeypatch, "rmm", mr=mr)
    engines = []

    scans = []

    def execute_with_cudf(plan, _duration, *, config):
        assert set(config.config) <= set(SIGNATURES["cudf_polars"]["options"])
        engines.append(config)
        scans.extend(scanned(plan))

    module(monkeypatch, "cudf_polars", execute_with_cudf=execute_with_cudf)
    rapids._probe.cache_clear()
    yield SimpleNamespace(engines=engines, resources=current, scans=scans)
    rapids._probe.cache_clear()


def test_the_signatures_are_those_of_the_locked_wheels():
    lock = (ROOT / "requirements-rapids.lock").read_text()
    for package, version in SIGNATURES["versions"].items():
        assert re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)[1] == version
    asked = f"cudf-polars {SIGNATURES['versions']['cudf-polars-cu13']}'s own translator"
    assert asked in (ROOT / "docs" / "card.md").read_text()


def test_the_names_that_are_used_are_there():
    mr = SIGNATURES["rmm.mr"]
    assert {"initial_pool_size", "release_threshold"} <= set(
        mr["CudaAsyncMemoryResource"]["methods"]["__init__"]
    )
    assert mr["LimitingResourceAdaptor"]["methods"]["__init__"] == ["upstream_mr", "allocation_limit"]
    assert "allocation_counts" in mr["StatisticsResourceAdaptor"]["methods"]
    assert mr["LimitingResourceAdaptor"]["bases"] == ["UpstreamResourceAdaptor"]
    assert "get_upstream" in mr["UpstreamResourceAdaptor"]["methods"]
    assert {"C", "max_iter", "output_type"} <= set(SIGNATURES["cuml"]["LogisticRegression"])
    assert '"csr"' in SIGNATURES["cuml"]["accept_sparse"]


def test_the_resource_is_capped_measured_and_keeps_nothing_of_what_is_freed(on_card):
    resource = rmm.limit_memory(1000)
    statistics = resource.get_upstream()
    assert resource.given["allocation_limit"] == 1000 * MIB
    assert statistics.get_upstream().given == {"release_threshold": 0}
    assert rmm.held() == (3, 7)
    assert on_card.resources == [resource]


def frames():
    rows = pl.LazyFrame({"a": [1, 2, 3], "b": ["x", "y", "x"]})
    return [rows.group_by("b").agg(pl.col("a").sum()).sort("b"), rows.select(pl.len())]


@pytest.mark.parametrize("asked", ["auto", "gpu"])
def test_every_query_reaches_the_card_under_the_lease(on_card, tmp_path, asked):
    run = RecordingRun(tmp_path, device="cuda", budget_mib=800)
    grouped, counted = rapids.collect(frames(), asked, run)
    assert (grouped.rows(), counted.item()) == ([("x", 4), ("y", 2)], 3)
    assert [e["value"] for e in run.of("param")] == ["gpu"]
    assert len(on_card.engines) == 3  # a probe, and each of the two
    for engine in on_card.engines:
        assert engine.memory_resource is on_card.resources[0]
        assert engine.config["executor"] == "in-memory"
        assert engine.config["raise_on_fail"]
    assert "in-memory" in SIGNATURES["cudf_polars"]["executors"]
    assert SIGNATURES["cudf_polars"]["default_executor"] != "in-memory"


def test_without_cudf_polars_auto_says_why_and_gpu_fails(monkeypatch, tmp_path):
    play(monkeypatch, "linux")
    run = RecordingRun(tmp_path, device="cuda", budget_mib=800)
    assert rapids.collect(frames(), "auto", run)[1].item() == 3
    assert "the package cudf_polars is not installed" in run.of("log")[0]["text"]
    with pytest.raises(ServiceError, match="cudf_polars is not installed"):
        rapids.collect(frames(), "gpu", run)


def test_a_query_that_does_not_translate_falls_back_in_words(on_card, monkeypatch, tmp_path):
    def refuses(_plan, _duration, *, config):
        raise NotImplementedError("no such expression")

    assert rapids._probe(800) is None
    monkeypatch.setattr(sys.modules["cudf_polars"], "execute_with_cudf", refuses)
    run = RecordingRun(tmp_path, device="cuda", budget_mib=800)
    assert rapids.collect(frames(), "auto", run)[1].item() == 3
    assert "no such expression" in run.of("log")[0]["text"]
    assert [e["value"] for e in run.of("param")] == ["streaming"]


def test_the_join_of_tables_runs_there_as_a_whole(on_card, folder, tmp_path):
    (folder / "sales.csv").write_text("shop,price\n1,2.5\n9,4\n2,1\n")
    (folder / "shops.csv").write_text("id,city\n1,Rome\n2,Oslo\n")
    tables = {name: f"{name}.csv" for name in ("sales", "shops")}
    data = Dataset(name="made", kind="table", reader="csv", options={"tables": tables})
    joins = [{"table": "shops", "by": {"shop": "id"}, "how": "inner"}]
    run = RecordingRun(tmp_path, device="cuda", budget_mib=800)
    table = join_tables.body(run, TableParams(fact="sales", joins=joins, engine="gpu"), data)
    assert pl.read_parquet(table.path / "table.parquet")["city"].to_list() == ["Rome", "Oslo"]
    assert (run.last("rows/in"), run.last("rows/out")) == (3, 2)
    assert len(on_card.engines) == 4  # a probe, the table, its counts, and the partner's repeated keys
    assert set(on_card.scans) == {"parquet"}  # of CSV, neither a count nor dates translate
    assert list(tmp_path.glob("typed-*")) == []


def test_cuml_takes_the_sparse_matrix(on_card, monkeypatch, tmp_path):
    seen = []

    class Solver(LogisticRegression):
        def __init__(self, *, C, max_iter, output_type):
            assert {"C", "max_iter", "output_type"} <= set(SIGNATURES["cuml"]["LogisticRegression"])
            super().__init__(C=C, max_iter=max_iter)
            self.output_type = output_type

        def fit(self, matrix, labels):
            seen.append(matrix)
            return super().fit(matrix, labels)

    module(monkeypatch, "cuml")
    module(monkeypatch, "cuml.linear_model", LogisticRegression=Solver)
    rng = np.random.default_rng(0)
    rows = {"x": rng.normal(size=400), "shop": rng.choice(["a", "b"], 400)}
    frame = pl.DataFrame({**rows, "paid": rows["x"] > 0})
    table = artifact.save(
        tmp_path / "t", "table", DataSpec(rows=400), files={"table.parquet": frame.write_parquet}
    )
    run = RecordingRun(tmp_path, device="cuda", budget_mib=800)
    fit_table.body(run, FitParams(target="paid", numeric=["x"], categorical=["shop"], backend="cuml"), table)
    assert {e["name"]: e["value"] for e in run.of("param")}["backend"] == "cuml"
    assert all(sp.issparse(matrix) and matrix.format == "csr" for matrix in seen)
    assert len(seen) == 1


def test_the_formula_of_cuml_counts_what_is_filled(monkeypatch):
    """A table as that of the flights: 1 M rows, 11 numbers and 6 columns of at most 200 levels."""
    params = FitParams(target="late", numeric=list("abcdefghijk"), categorical=list("lmnopq"))
    found = fit_peak(params, DataSpec(rows=1_000_000))
    filled_mib = 1_000_000 * (2 * 11 + 6) * 8 / MIB
    assert filled_mib <= found.low < 1.1 * filled_mib
    assert found.high < 6 * filled_mib
