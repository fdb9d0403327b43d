"""`python -m bench.training overhead | faults | science | kills | bases | logged | all`: the loop measured.

Every command writes bench/out/training-<name>.json as it goes, and continues from there when it is started
again with the same code (`--fresh`: anew). Prints a table either way; exit code 1 when a bar is missed.
"""

import argparse
import sys

import torch

from bench._bases import bases
from bench._faults import faults
from bench._kills import kills
from bench._logged import logged
from bench._overhead import PARAMS, overhead
from bench._rows import machine
from bench._science import science


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "faults", "science", "kills", "bases", "logged", "all"])
    parser.add_argument("--data", choices=sorted(PARAMS), default="fashion_mnist")
    parser.add_argument("--pairs", type=int, default=10, help="rounds of all arms, for overhead")
    parser.add_argument("--steps", type=int, default=100, help="of a round's every arm")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="of 100 steps, for science")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--checkpoint-s", type=float, default=0.5)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    chosen = (
        [overhead, faults, science, kills, bases, logged]
        if options.what == "all"
        else [globals()[options.what]]
    )
    passed = [measure(options) for measure in chosen]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
