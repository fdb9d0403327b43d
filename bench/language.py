"""`python -m bench.language [ARM ...]`: language models beside published lines and baselines, on one thread.

Prints a table, writes bench/out/language.json; exit code 1 when a bar is missed.
"""

import argparse
import importlib
import sys
from typing import Any

import torch

from bench._rows import OUT, machine, write

ARMS = {  # name -> module and function that returns its rows and whether each bar was met
    "write": ("bench._language_write", "write_rows"),
    "bits": ("bench._language_tune", "bits_rows"),
    "tune": ("bench._language_tune", "tune_rows"),
    "kill": ("bench._language_tune", "kill_rows"),
    "ask": ("bench._language_ask", "ask_rows"),
    "server": ("bench._language_server", "server_rows"),
    "accumulation": ("bench._language_accumulation", "accumulation_rows"),
    "sst2": ("bench._language_text", "sst2_rows"),
    "translate": ("bench._language_text", "translate_rows"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arms", nargs="*", choices=[*ARMS, "all"], default="all")
    arms = parser.parse_args().arms
    chosen = list(ARMS) if "all" in arms else arms
    torch.set_num_threads(1)
    print(machine())
    print("| what | measured | bar | |\n| --- | --- | --- | --- |")
    found = dict[str, dict[str, Any]]()
    for name in chosen:
        module, function = ARMS[name]
        found[name] = getattr(importlib.import_module(module), function)()
        write(OUT / "language.json", {"machine": machine(), "arms": found})
    return 0 if all(all(one["met"]) for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
