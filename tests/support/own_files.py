"""The files of the checkout that are the project's own: a user's flows, configs and notes beside them are not."""

import subprocess
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = (".venv/*", ".overnight/*", "mlruns/*", "bench/out/*", "*/__pycache__/*")


def own_files(*patterns: str, root: Path = ROOT) -> list[Path]:
    """Files of these patterns (`*` matches slashes, too) that git tracks; without git, all of them."""
    command = ["git", "ls-files", "-z"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        names = done.stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    names = [name for name in names if not any(fnmatch(name, made) for made in MADE)]
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    return sorted(root / name for name in wanted if (root / name).is_file())
