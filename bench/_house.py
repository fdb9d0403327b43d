"""A copy of this checkout with services of its own, for measurements that run `overnight` as people do."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.checkouts import OURS, free_port

ROOT = Path(__file__).resolve().parent.parent
OVERNIGHT = ["-m", "overnight.cli.main"]


@dataclass(frozen=True)
class House:
    root: Path
    variables: dict[str, str]

    def run(self, *words: str) -> tuple[str, int, float]:
        """`overnight WORDS`: what it printed, its exit code, and CPU-seconds with all its children."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, *OVERNIGHT, *words],
                cwd=self.root,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            text = output.read().decode(errors="replace")
        return text, process.returncode, used.ru_utime + used.ru_stime

    def rows(self) -> list[dict[str, Any]]:
        """The steps of the newest run, as its table shows them."""
        files = (self.root / ".overnight" / "steps").glob("*/rows.json")
        newest = max(files, key=lambda file: file.stat().st_mtime_ns)
        return list(json.loads(newest.read_text())["rows"])


@contextmanager
def house() -> Iterator[House]:
    """The tracked files, copied; its services are up, and are gone at the end with the folder."""
    with tempfile.TemporaryDirectory(prefix="overnight-bench-") as name:
        root = Path(name).resolve()
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for file in listed.stdout.splitlines():
            if (ROOT / file).is_file():
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, root / file)
        kept = {k: v for k, v in os.environ.items() if k not in OURS}
        ports = {"OVERNIGHT_MLFLOW_PORT": str(free_port()), "OVERNIGHT_PREFECT_PORT": str(free_port())}
        own = {"OVERNIGHT_ROOT": str(root), "OVERNIGHT_CPU": "1", "PYTHONPATH": str(root), **ports}
        made = House(root, {**kept, **own, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
        try:
            text, code, _ = made.run("up")
            if code:
                raise SystemExit(text)
            yield made
        finally:
            made.run("down", "--force")
