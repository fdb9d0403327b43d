"""`overnight install-service`, and what would keep the next night from running."""

import getpass
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from overnight import paths
from overnight.gpu.out_of_memory import on_wsl

UNIT = "overnight.service"
KEPT = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")
LINGER = "it starts when you log in and ends when you log out, until you say `loginctl enable-linger` once"
SYSTEMD = Path("/run/systemd/system")  # there when systemd runs
TEXT = """[Unit]
Description=Prefect, its worker and MLflow for {root}

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory={root}
{variables}ExecStart="{python}" -m overnight.cli.main up
ExecStop="{python}" -m overnight.cli.main down --force
TimeoutStartSec=600
TimeoutStopSec=60

[Install]
WantedBy=default.target
"""


def install() -> str:
    """Write a systemd unit of the user's that says `up`; what is left for a person to do."""
    if not SYSTEMD.is_dir():
        return _without_systemd()
    names = sorted(name for name in os.environ if name.startswith("OVERNIGHT_") or name in KEPT)
    variables = "".join(f'Environment="{name}={_escaped(os.environ[name])}"\n' for name in names)
    unit = unit_file()
    unit.parent.mkdir(parents=True, exist_ok=True)
    python = _escaped(sys.executable)
    unit.write_text(TEXT.format(root=_root(), variables=variables, python=python))
    problem = _output("systemctl", "--user", "daemon-reload") or _output(
        "systemctl", "--user", "enable", UNIT
    )
    lines = [f"wrote {unit}; it begins with the next start: `systemctl --user start {UNIT}` begins it now"]
    lines += [f"systemctl: {problem}"] if problem else []
    lines += [] if lingers() else [LINGER]
    return "\n".join(lines + ([_windows_line()] if on_wsl() else []))


def _escaped(text: str) -> str:
    """For a unit's quotes; systemd reads %h and the like as its own."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _root() -> str:
    return str(paths.root()).replace("%", "%%")


def _without_systemd() -> str:
    if on_wsl():
        advice = (
            "WSL2 runs no systemd here: put `[boot]` and `systemd=true` into /etc/wsl.conf, or use this alone"
        )
        return f"{advice}\n{_windows_line()}"
    return f"no systemd runs here: have your machine run this at its start:\n{_command()}"


def _command() -> str:
    return f"cd {shlex.quote(str(paths.root()))} && {shlex.quote(sys.executable)} -m overnight.cli.main up"


def _windows_line() -> str:
    """WSL2 ends when no process of Windows uses it: Windows starts it, and something in it stays."""
    distribution = os.environ.get("WSL_DISTRO_NAME", "Ubuntu")
    inside = f"{_command()} && exec sleep infinity"
    task = f"wsl.exe -d {distribution} -u {getpass.getuser()} -- sh -c '{inside}'"
    line = f'schtasks /create /tn overnight /sc onlogon /tr "{task}"'
    return f"in Windows, so that WSL2 runs after you log on:\n{line}"


def unit_file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "systemd" / "user" / UNIT


def lingers() -> bool:
    return Path("/var/lib/systemd/linger", getpass.getuser()).exists()


def night_problems(are_up: bool, free_gib: float) -> Iterator[str]:
    """Why the next night would not run, or not after a restart of the machine."""
    has_unit = unit_file().is_file() and f"WorkingDirectory={_root()}\n" in unit_file().read_text()
    if not are_up:
        yield "the services are down: `overnight up`" + (
            "" if has_unit else ", or `overnight install-service`"
        )
    elif not has_unit:
        yield "after a restart of the machine the services are down: `overnight install-service`"
    if has_unit and not lingers():
        yield LINGER
    if free_gib < 1:
        yield "the disk is full"
    gnome = ("gsettings", "get", "org.gnome.settings-daemon.plugins.power", "sleep-inactive-ac-type")
    if "suspend" in _output(*gnome) or "IdleAction=suspend" in _logind():
        yield "the machine goes to sleep when it is idle: switch that off in its power settings"
    if on_wsl():
        yield "Windows must not sleep: `powercfg /change standby-timeout-ac 0`"
    if _output("timedatectl", "show", "--property=NTPSynchronized", "--value") == "no":
        yield "the clock is not synchronised: `timedatectl set-ntp true`"


def _logind() -> str:
    try:
        return "\n".join(Path("/etc/systemd/logind.conf").read_text(encoding="utf-8").split())
    except OSError:
        return ""


def _output(*words: str) -> str:
    if not shutil.which(words[0]):
        return ""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return (done.stderr if done.returncode else done.stdout).strip()
