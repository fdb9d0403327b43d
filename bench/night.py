"""What the night promises, measured: `python -m bench.night [NAME ...]`, all of them without a name.

Each NAME is a file bench/_night_NAME.py whose `main()` prints a table, writes bench/out/night_NAME.json and
returns 1 when a bar is missed.
"""

import sys
from importlib import import_module
from pathlib import Path

NAMES = sorted(path.stem.removeprefix("_night_") for path in Path(__file__).parent.glob("_night_*.py"))


def main(names: list[str]) -> int:
    wrong = [name for name in names if name not in NAMES]
    if wrong:
        print(f"bench.night: unknown {', '.join(wrong)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    return max([import_module(f"bench._night_{name}").main() for name in names or NAMES])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
