"""`overnight install-service` with a systemd that only looks like one, and what would keep a night from running."""

import os
import shutil
import subprocess

import pytest

from overnight.cli import service


@pytest.fixture
def systemd(checkout, tmp_path, monkeypatch):
    """Its folder, a `systemctl` that writes down what it is asked, and a home without a unit."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (bin_ / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(service, "SYSTEMD", tmp_path)
    return tmp_path


def wsl(monkeypatch):
    monkeypatch.setattr("platform.release", lambda: "5.15.1-microsoft-standard-WSL2")
    monkeypatch.setenv("WSL_DISTRO_NAME", "Ubuntu-24.04")


def test_a_unit_says_up_for_this_checkout_with_its_settings(systemd, checkout, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_MLFLOW_PORT", "5099")
    monkeypatch.setenv("OVERNIGHT_DATA", 'my "100 %" data')
    said = service.install()
    text = service.unit_file().read_text()
    assert f"WorkingDirectory={checkout}\n" in text
    assert 'Environment="OVERNIGHT_MLFLOW_PORT=5099"' in text
    assert 'Environment="OVERNIGHT_DATA=my \\"100 %%\\" data"' in text
    assert text.count("overnight.cli.main up\n") == 1
    assert "{" not in text
    assert (systemd / "asked").read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable overnight.service",
    ]
    assert "loginctl enable-linger" in said
    assert "schtasks" not in said
    if shutil.which("systemd-analyze"):
        command = ["systemd-analyze", "verify", "--user", str(service.unit_file())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Unknown" not in done.stderr + done.stdout


@pytest.mark.parametrize("has_systemd", [True, False])
def test_wsl2_gets_the_line_for_windows(systemd, monkeypatch, tmp_path, has_systemd):
    wsl(monkeypatch)
    monkeypatch.setattr(service, "SYSTEMD", tmp_path / ("." if has_systemd else "no"))
    said = service.install()
    assert 'schtasks /create /tn overnight /sc onlogon /tr "wsl.exe -d Ubuntu-24.04' in said
    assert ("systemd=true" in said, service.unit_file().exists()) == (not has_systemd, has_systemd)


def test_what_keeps_a_night_from_running_is_named(systemd, monkeypatch):
    assert next(iter(service.night_problems(are_up=False, free_gib=50))).startswith("the services are down")
    assert next(iter(service.night_problems(are_up=True, free_gib=50))).startswith("after a restart")
    service.install()
    assert next(iter(service.night_problems(are_up=True, free_gib=50))) == service.LINGER
    assert "the disk is full" in service.night_problems(are_up=True, free_gib=0.5)
    for name, says, problem in (
        ("timedatectl", "no", "the clock is not synchronised"),
        ("gsettings", "'suspend'", "goes to sleep"),
    ):
        (systemd / "bin" / name).write_text(f'#!/bin/sh\necho "{says}"\n')
        (systemd / "bin" / name).chmod(0o755)
        assert any(problem in one for one in service.night_problems(are_up=True, free_gib=50))
    wsl(monkeypatch)
    assert any("powercfg" in one for one in service.night_problems(are_up=True, free_gib=50))
