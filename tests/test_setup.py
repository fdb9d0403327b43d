"""The set-up: what the lock files hold, and what bin/setup says about machines of all kinds."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overnight.gpu.card import CAPABILITY

ROOT = Path(__file__).resolve().parent.parent
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-rapids.lock"]


def bash(script: str, path: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines with the functions of bin/setup at hand."""
    environment = {"PATH": path or os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env}
    command = ["/bin/bash", "-c", f"source '{ROOT}/bin/setup'; {script}"]
    return subprocess.run(
        command, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False
    )


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def tools(folder: Path) -> Path:
    """A PATH with the ordinary programs and no Python, no NVIDIA."""
    folder.mkdir(parents=True)
    for name in [
        "bash",
        "awk",
        "cat",
        "cp",
        "df",
        "du",
        "dirname",
        "flock",
        "grep",
        "head",
        "mv",
        "rm",
        "sed",
        "sha256sum",
        "timeout",
        "uname",
    ]:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def pins(lock: Path) -> dict[tuple[str, str], str]:
    """(name, marker) -> version; markers tell Python versions apart."""
    lines = re.findall(r"^([\w.-]+(?:\[[\w,.-]+\])?)==(\S+) ; (.+?) \\$", lock.read_text(), re.MULTILINE)
    return {(name, marker): version for name, version, marker in lines}


# ------------------------------------------------------------------------------------------------ the lock files


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_is_pinned_and_hashed_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    entries = text.replace("\\\n", " ").splitlines()
    bad = [
        e for e in entries if not re.fullmatch(r"[\w.\[\],-]+==\S+ ; .+?( +--hash=sha256:[0-9a-f]{64})+", e)
    ]
    assert not bad
    assert len(entries) == len(pins(lock)) > 100


def test_both_locks_hold_the_same_versions() -> None:
    base, rapids = (pins(lock) for lock in LOCKS)
    versions = {name: {v for (n, _), v in rapids.items() if n == name} for name, _ in base}
    assert {name for (name, _), version in base.items() if version not in versions[name]} == set()
    assert {name for name, _ in rapids} > {name for name, _ in base}
    assert any(name == "cudf-cu13" for name, _ in rapids)


def test_versions_that_work_together() -> None:
    found = {
        name: tuple(map(int, version.split(".")[:3]))
        for (name, _), version in pins(LOCKS[0]).items()
        if name in {"prefect", "fastapi"}
    }
    assert found["prefect"] >= (3, 8, 8)
    assert found["fastapi"] < (0, 151)


def test_the_locks_cover_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in asked}  # type: ignore[index]
    assert names <= {name.partition("[")[0] for name, _ in pins(LOCKS[0])}


# ------------------------------------------------------------------------------------------------ what a machine is


@pytest.mark.parametrize(
    ("driver", "lock", "says"),
    [
        ("", "requirements.lock", "no NVIDIA driver: without RAPIDS"),
        ("580.65.06", "requirements-rapids.lock", "NVIDIA driver 580.65.06 found: with RAPIDS"),
        ("615.10", "requirements-rapids.lock", "NVIDIA driver 615.10 found: with RAPIDS"),
        (
            "550.120",
            "requirements.lock",
            "NVIDIA driver 550.120 found, but torch's CUDA 13 build and RAPIDS need 580 or newer",
        ),
    ],
)
def test_the_driver_chooses_the_lock(driver: str, lock: str, says: str) -> None:
    chosen, _, why = bash(f"choose_lock '{driver}'").stdout.partition(" ")
    assert chosen == lock
    assert says in why
    assert ("overnight run --cpu" in why) == driver.startswith("550")


def test_under_wsl2_the_driver_is_that_of_windows() -> None:
    why = bash("choose_lock 572.16 5.15.167.4-microsoft-standard-WSL2").stdout
    assert "the driver of Windows" in why
    assert "make demo CPU=1" in why
    assert "Windows" not in bash("choose_lock 572.16 6.8.0-generic").stdout


def test_the_driver_is_read_from_nvidia_smi(tmp_path: Path) -> None:
    path = tools(tmp_path / "tools")
    assert bash("driver_of /nowhere nvidia-smi", str(path)).stdout == ""
    program(path / "nvidia-smi", "#!/bin/sh\necho 581.29\necho 581.29\n")
    assert bash("driver_of /nowhere nvidia-smi", str(path)).stdout == "581.29\n"
    program(
        path / "nvidia-smi",
        "#!/bin/sh\necho NVIDIA-SMI has failed because it could not talk to the driver.\nexit 9\n",
    )
    assert bash("driver_of /nowhere nvidia-smi", str(path)).stdout == ""


@pytest.mark.parametrize(
    ("capability", "lock"),
    [
        ("6.1", "requirements.lock"),
        ("7.0", "requirements.lock"),
        ("7.5", "requirements-rapids.lock"),
        ("8.9", "requirements-rapids.lock"),
        ("12.0", "requirements-rapids.lock"),
        ("", "requirements-rapids.lock"),
    ],
)
def test_a_card_without_kernels_is_named_and_gets_no_rapids(capability: str, lock: str) -> None:
    chosen, _, why = bash(f"choose_lock 580.65.06 6.8.0-generic '{capability}'").stdout.partition(" ")
    assert chosen == lock
    assert (f"the card has compute capability {capability}," in why) == (lock == "requirements.lock")
    assert ("make demo CPU=1" in why) == (lock == "requirements.lock")
    old = bash(f"choose_lock 550.120 6.8.0-generic '{capability}'").stdout
    assert ("Update the driver" in old) == (lock != "requirements.lock")  # it would not help


def test_the_least_capability_is_that_of_the_program() -> None:
    assert bash("echo $CAPABILITY_MIN").stdout == f"{CAPABILITY}\n"


def test_the_capability_is_that_of_the_best_card(tmp_path: Path) -> None:
    path = tools(tmp_path / "tools")
    assert bash("capability_of nvidia-smi", str(path)).stdout == ""
    program(path / "nvidia-smi", "#!/bin/sh\necho 6.1\necho 12.0\necho 8.9\n")
    assert bash("capability_of nvidia-smi", str(path)).stdout == "12.0\n"
    for text in ('Field "compute_cap" is not a valid field to query.', "[N/A]"):
        program(path / "nvidia-smi", f"#!/bin/sh\necho '{text}'\nexit 2\n")
        assert bash("capability_of nvidia-smi", str(path)).stdout == ""


@pytest.mark.parametrize(
    ("system", "fits"),
    [("Linux x86_64", True), ("Linux aarch64", False), ("Darwin arm64", False), ("Darwin x86_64", False)],
)
def test_only_linux_on_x86_64(system: str, fits: bool) -> None:
    said = bash(f"machine_problem {system}").stdout
    assert (said == "") == fits
    assert fits or system.split(maxsplit=1)[0] in said


@pytest.mark.parametrize(
    ("file_system", "kernel", "fits"),
    [
        ("ext4", "6.8.0-48-generic", True),
        ("ext4", "5.15.167.4-microsoft-standard-WSL2", True),
        ("9p", "5.15.167.4-microsoft-standard-WSL2", False),
        ("virtiofs", "6.6.87.2-Microsoft-standard-WSL2", False),
        ("drvfs", "4.4.0-19041-Microsoft", False),
        ("fuseblk", "6.8.0-48-generic", False),
        ("virtiofs", "6.8.0-48-generic", True),
        ("overlay", "6.8.0-48-generic", True),
    ],
)
def test_a_checkout_on_a_windows_drive_is_refused(file_system: str, kernel: str, fits: bool) -> None:
    said = bash(f"mount_problem {file_system} {kernel}").stdout
    assert (said == "") == fits
    assert fits or f"({file_system})" in said


def test_room() -> None:
    assert bash("room_problem /home/me 15 15").stdout == ""
    assert bash("room_problem /home/me 14 15").stdout.startswith(
        "needs 15 GB free in /home/me, there are 14 GB"
    )
    free = int(bash(f"free_gb '{ROOT}/not/yet/there'").stdout)
    assert abs(free - shutil.disk_usage(ROOT).free / 2**30) < 5


# ------------------------------------------------------------------------------------------------ which Python


def test_the_first_python_that_fits_is_taken(tmp_path: Path) -> None:
    path = tools(tmp_path / "tools")
    program(path / "python3", "#!/bin/sh\necho 3.10\n")
    program(path / "python3.13", "#!/bin/sh\necho 'version not installed' >&2\nexit 127\n")
    (path / "python3.11").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    found = bash("find_python python3 python3.13 python3.12 python3.11", str(path))
    assert (found.returncode, found.stdout) == (0, f"{path}/python3.11\n")


def test_a_machine_without_a_python_that_fits_is_told_what_was_found(tmp_path: Path) -> None:
    path = tools(tmp_path / "tools")
    assert "found: none" in bash("find_python python3 python3.12", str(path)).stdout
    program(path / "python3", "#!/bin/sh\necho 3.14\n")
    program(path / "python3.12", '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\necho 3.12\n')
    found = bash("find_python python3 python3.12", str(path))
    assert found.returncode == 1
    assert (
        "found: python3 is 3.14;python3.12 is 3.12 without venv (Debian, Ubuntu: sudo apt install python3.12-venv)"
        in found.stdout
    )


# ------------------------------------------------------------------------------------------------ the whole script, in a small checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose path has a space, without .venv."""
    folder = tmp_path / "my night"
    (folder / "bin").mkdir(parents=True)
    for name in ("bin/setup", "pyproject.toml", "requirements.lock", "requirements-rapids.lock"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


def setup(checkout: Path, path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), "HOME": str(checkout), **env}
    command = ["/bin/bash", str(checkout / "bin/setup"), *arguments]
    return subprocess.run(
        command, env=environment, cwd="/", text=True, capture_output=True, timeout=60, check=False
    )


def test_problems_are_said_before_anything_is_made(checkout: Path, tmp_path: Path) -> None:
    path = tools(tmp_path / "tools")
    (path / "uname").unlink()
    program(path / "uname", '#!/bin/sh\n[ "$1" = -s ] && echo Darwin || echo arm64\n')
    done = setup(checkout, path)
    assert done.returncode == 2
    assert "this is Darwin on arm64" in done.stderr
    assert "found: none" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_interrupted_setup_is_not_taken_for_a_whole_one(checkout: Path, tmp_path: Path) -> None:
    """The installer dies midway; the next start begins again instead of saying that all is well."""
    path = tools(tmp_path / "tools")
    (path / "df").unlink()
    program(path / "df", "#!/bin/sh\necho head\necho /dev/disk ext4 99999999 99999999 99999999 1% /\n")
    program(
        path / "python3",
        '#!/bin/sh\ncase "$*" in *version_info*) echo 3.11;; *ensurepip*) ;; *venv*) /bin/mkdir -p .venv/bin; echo begun; kill -INT $$;; esac\n',
    )
    for _ in range(2):
        done = setup(checkout, path)
        assert done.returncode != 0
        assert "begun" in done.stdout
        assert "up to date" not in done.stdout
        assert not (checkout / ".venv/setup.stamp").exists()


def test_nothing_is_done_twice(checkout: Path, tmp_path: Path) -> None:
    path = tools(tmp_path / "tools")
    program(checkout / ".venv/bin/python", "#!/bin/sh\nexit 1\n")
    stamp = bash(
        f"""cd '{checkout}'; read -r lock _ <<<"$(choose_lock "$(driver)" "$(uname -r)")"; fingerprint "$lock" """,
        str(path),
    ).stdout
    (checkout / ".venv/setup.stamp").write_text(stamp)
    assert "up to date" in setup(checkout, path).stdout
    program(path / "python3.13", "#!/bin/sh\necho 3.13\n")
    assert "up to date" not in setup(checkout, path, "--check", PYTHON="python3.13").stdout
    program(path / "nvidia-smi", "#!/bin/sh\ncase $1 in *driver*) echo 580.65;; *) echo 6.1;; esac\n")
    assert "up to date" in setup(checkout, path).stdout  # RAPIDS would not run on that card
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another dependency\n")
    assert "up to date" not in setup(checkout, path, "--check").stdout


def test_two_at_a_time_take_turns(checkout: Path, tmp_path: Path) -> None:
    import fcntl

    if not shutil.which("flock"):
        pytest.skip("flock is not installed")
    path = tools(tmp_path / "tools")
    with (checkout / "bin/setup").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        command = ["/bin/bash", str(checkout / "bin/setup"), "--check"]
        with subprocess.Popen(
            command, env={"PATH": str(path), "HOME": "/"}, stdout=subprocess.PIPE, text=True
        ) as second:
            assert second.stdout
            assert "another setup is at work here" in second.stdout.readline()
            assert second.poll() is None
            fcntl.flock(held, fcntl.LOCK_UN)
            second.communicate(timeout=60)
    assert second.returncode == 2  # it went on, to find that there is no Python
