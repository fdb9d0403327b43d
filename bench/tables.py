"""`python -m bench.tables etl | models | all`: tables beside others' code, in one run.

Prints a table, writes bench/out/tables.json; exit code 1 when a bar is missed.
"""

import argparse
import sys

from bench._rows import OUT, machine, write


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["etl", "models", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5, help="of all arms, for etl")
    parser.add_argument("--copies", type=int, default=8, help="of the flights, for etl")
    parser.add_argument("--scale", type=float, default=1, help="of TPC-H, for etl")
    options = parser.parse_args()
    print(machine())
    print("| what | measured | bar | |\n| --- | --- | --- | --- |")
    met = {}
    if options.what in ("etl", "all"):
        from bench._tables_etl import etl

        met["etl"] = etl(options)
    if options.what in ("models", "all"):
        from bench._tables_models import models

        met["models"] = models()
    write(OUT / "tables.json", {"machine": machine(), "bars met": met})
    return 0 if all(all(bars) for bars in met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
