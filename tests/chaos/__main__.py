"""`python -m tests.chaos [NAME ...] [--seed N] [--resume] [--list]`: the cases of this folder, a table, and 1 when a bar is missed."""

import argparse
import os
import platform
import signal
import sys

from tests.chaos.case import RESULTS, modules, play_all, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("name", nargs="*", help="play only the cases whose names hold one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help=f"leave out what {RESULTS} says is finished with this seed"
    )
    parser.add_argument("--list", action="store_true", help="only name the cases")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(f"{case.name}: {case.what}" for module in modules() for case in module.cases()))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.default_int_handler
        )  # what the cases have started is ended on the way out
    lines, outcomes = play_all(modules(), asked.seed, asked.name, asked.resume)
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, seed {asked.seed}, "
          f"commit {', '.join(sorted({o.commit for o in outcomes}))}, {sum(o.wall_s for o in outcomes):.0f} s")  # fmt: skip
    print(table(lines))
    missed = [line for line in lines if line.met is False]
    print(
        f"{len(missed)} of {sum(line.met is not None for line in lines)} bars missed"
        if lines
        else "no such case"
    )
    return int(bool(missed) or not lines)


if __name__ == "__main__":
    sys.exit(main())
