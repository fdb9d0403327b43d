"""Put each defect of a real card back, one at a time: `python -m bench.mutants [NUMBER ...]`; minutes.

The tests without a card (tests/no_card) must fail for every one of mutants.json, and pass without. They run
in a copy of the tracked files, those that should see the defect first, and stop at the first failure. Prints
a table, writes bench/out/mutants.json, and exits 1 when a defect is not seen or no longer applies. Numbers
are those of the review that found the defects; the first 14 are certain.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "out" / "mutants.json"


@dataclass(frozen=True)
class Mutant:
    """In `file`, `old` becomes `new`; `seen_by`: the test file that should fail."""

    number: str
    what: str
    seen_by: str
    file: str
    old: str
    new: str


MUTANTS = [Mutant(**row) for row in json.loads(Path(__file__).with_suffix(".json").read_text())]


def copy(target: Path) -> None:
    """The tracked files, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def tested(folder: Path, first: str) -> tuple[bool, str]:
    """Whether the tests without a card pass there, and the first that fails; `first`: where to begin."""
    files = sorted(path.name for path in (folder / "tests" / "no_card").glob("test_*.py"))
    files.sort(key=lambda name: name != f"test_{first}.py")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    paths = [f"tests/no_card/{name}" for name in files]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, *paths], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, failed[0].split(" - ")[0].removeprefix(
        "FAILED tests/no_card/"
    ) if failed else ""


def play(mutant: Mutant, folder: Path) -> dict[str, object]:
    began = time.monotonic()
    path = folder / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return {"number": mutant.number, "what": mutant.what, "seen": False, "by": "the text has changed"}
    path.write_text(text.replace(mutant.old, mutant.new))
    passed, by = tested(folder, mutant.seen_by)
    path.write_text(text)
    took_s = round(time.monotonic() - began, 1)
    return {"number": mutant.number, "what": mutant.what, "seen": not passed, "by": by, "took_s": took_s}


def main() -> int:
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.number in sys.argv[1:]]
    rows = list[dict[str, object]]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copy(Path(place))
        for mutant in chosen:
            rows.append(play(mutant, Path(place)))
            row = rows[-1]
            print(
                f"{row['number']:4} {'seen' if row['seen'] else 'MISSED':7} {row['what']:45} {row['by']}",
                flush=True,
            )
        unchanged, by = tested(Path(place), "")
        print(f"     {'passes' if unchanged else 'FAILS ':7} without a defect {by}")
    certain = [row for row in rows if str(row["number"]).isdecimal() and int(str(row["number"])) <= 14]
    print(f"{sum(bool(row['seen']) for row in certain)} of {len(certain)} certain defects, ", end="")
    print(f"{sum(bool(row['seen']) for row in rows)} of {len(rows)} in all")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if unchanged and all(row["seen"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
