"""The job of configs/etl.yaml three ways: `python -m bench._tables_arms ours|first|polars|pandas FOLDER OUT`.

Each arm is a process of its own, so that its CPU-seconds and its memory can be taken from the kernel. `ours`
reads by an entry that states every type, `first` by one that states none. Prints JSON: the Parquet file, the
CPU-seconds of profile and page, the largest resident size. Imports nothing that an arm does not need.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

NULLS = ["NA", ""]
WEATHER = ["temp", "humid", "wind_speed", "precip", "visib", "pressure"]
PLANES = ["year", "type", "manufacturer", "engine", "seats"]
MAKERS = {
    "AIRBUS": "Airbus", "MCDONNELL": "McDonnell Douglas", "BOMBARDIER": "Bombardier",
    "CANADAIR": "Bombardier", "EMBRAER": "Embraer",
}  # fmt: skip


def ours(folder: Path, out: Path, stated: bool = True) -> dict[str, Any]:
    from overnight import RecordingRun
    from overnight.config import read
    from overnight.data.dataset import Dataset, load_entry
    from overnight.paths import configs
    from tasks.tabular import collected, page, profile
    from tasks.tabular.join import join_tables
    from tasks.tabular.tables import TableParams

    took = 0.0

    def timed(call: Any) -> Any:
        def run(*given: Any) -> Any:
            nonlocal took
            began = time.process_time()
            found = call(*given)
            took += time.process_time() - began
            return found

        return run

    collected.profile.columns, collected.profile.drawn = timed(profile.columns), timed(profile.drawn)
    collected.page.page = timed(page.page)
    options = load_entry("flights").options["options"]
    options["tables"] = {
        name: {**(table if stated else {}), "file": f"{name}.csv"}
        for name, table in options["tables"].items()
        if name != "airlines"
    }
    data = Dataset(name="flights8", kind="table", reader="csv", folder=folder.name, options=options)
    values, _ = read(configs() / "etl.yaml")
    out.mkdir(exist_ok=True)
    table = join_tables.body(RecordingRun(out), TableParams.model_validate(values["tables"]), data)
    return {"file": str(table.path / "table.parquet"), "profile_s": took}


def by_polars(folder: Path, out: Path) -> dict[str, Any]:
    import polars as pl

    kinds = {"int": pl.Int64, "float": pl.Float64, "text": pl.String, "datetime": pl.String}

    def scan(name: str) -> pl.LazyFrame:
        schema = {column: kinds[kind] for column, kind in columns(folder, name).items()}
        return pl.scan_csv(folder / f"{name}.csv", null_values=NULLS, schema=schema)

    time_hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%S%#z", time_unit="us")
    weather = scan("weather").with_columns(time_hour).select("origin", "time_hour", *WEATHER)
    planes = scan("planes").select("tailnum", *(pl.col(c).alias(f"plane_{c}") for c in PLANES))
    airports = scan("airports").select(pl.col("faa").alias("dest"), dest_lat="lat", dest_lon="lon")
    made = pl.col("plane_manufacturer")
    maker = pl.when(made == "BOEING").then(pl.lit("Boeing"))
    for start, name in MAKERS.items():
        maker = maker.when(made.str.starts_with(start)).then(pl.lit(name))
    rows = scan("flights").with_columns(time_hour)
    for table, on in ((weather, ["origin", "time_hour"]), (planes, ["tailnum"]), (airports, ["dest"])):
        rows = rows.join(table, on=on, how="left", maintain_order="left")
    rows = rows.with_columns(
        local_weekday=pl.col("time_hour").dt.convert_time_zone("America/New_York").dt.weekday(),
        plane_age=pl.col("year") - pl.col("plane_year"),
        maker=maker.otherwise(made),
    )
    rows.drop_nulls(["arr_delay", "tailnum"]).filter(pl.col("distance") > 0).sink_parquet(out)
    return {"file": str(out)}


def by_pandas(folder: Path, out: Path) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    def table(name: str) -> pd.DataFrame:
        found = pd.read_csv(
            folder / f"{name}.csv", na_values=NULLS, keep_default_na=False, float_precision="round_trip"
        )
        if "time_hour" in found:
            found["time_hour"] = pd.to_datetime(found["time_hour"], utc=True)
        return found

    planes = table("planes")[["tailnum", *PLANES]].rename(columns={c: f"plane_{c}" for c in PLANES})
    airports = table("airports")[["faa", "lat", "lon"]]
    airports = airports.rename(columns={"faa": "dest", "lat": "dest_lat", "lon": "dest_lon"})
    rows = table("flights").merge(
        table("weather")[["origin", "time_hour", *WEATHER]], on=["origin", "time_hour"], how="left"
    )
    rows = rows.merge(planes, on="tailnum", how="left").merge(airports, on="dest", how="left")
    rows["local_weekday"] = rows["time_hour"].dt.tz_convert("America/New_York").dt.dayofweek + 1
    rows["plane_age"] = rows["year"] - rows["plane_year"]
    made = rows["plane_manufacturer"]
    known = [made.str.startswith(start, na=False) for start in MAKERS]
    maker = np.select([made == "BOEING", *known], ["Boeing", *MAKERS.values()], "")
    rows["maker"] = pd.Series(maker, rows.index).where(maker != "", made)
    rows = rows.dropna(subset=["arr_delay", "tailnum"])
    rows[rows["distance"] > 0].to_parquet(out)
    return {"file": str(out)}


def columns(folder: Path, name: str) -> dict[str, str]:
    """The types of a table, beside its files."""
    found: dict[str, str] = json.loads((folder / "types.json").read_text())[name]
    return found


ARMS = {
    "ours": ours,
    "first": lambda f, o: ours(f, o, stated=False),
    "polars": by_polars,
    "pandas": by_pandas,
}

if __name__ == "__main__":
    row = ARMS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    status = Path("/proc/self/status").read_text()  # what wait4 tells begins with the size of the parent
    print(json.dumps({**row, "mib": int(status.partition("VmHWM:")[2].split()[0]) / 1024}))
