"""The first run on a card: its table and file, and that a lease that is exceeded stops it."""

import json

import pytest

from bench.first_gpu import __main__ as first_gpu
from bench.first_gpu import probes


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(first_gpu, "OUT", tmp_path / "first_gpu.json")
    return tmp_path / "first_gpu.json"


def test_a_lease_that_is_exceeded_stops_the_rest(out, monkeypatch, capsys):
    asked = []

    def played(probe, _limit_s, _folder):
        asked.append(probe.name)
        exceeded = probe.name == "lease"
        return [
            {"key": "MiB taken", "value": 2100 if exceeded else 1, "ok": first_gpu.STOP if exceeded else True}
        ]

    monkeypatch.setattr(first_gpu, "played", played)
    assert first_gpu.main() == 1
    assert asked == ["driver", "lease"]
    assert "STOP: a process took more of the card than its lease." in capsys.readouterr().out
    rows = json.loads(out.read_text())["results"]
    assert [row["probe"] for row in rows] == [probe.name for probe in first_gpu.PROBES]
    assert {row["value"] for row in rows[2:]} == {"not run: a lease was exceeded"}


def test_a_probe_is_a_process_whose_end_is_told(tmp_path):
    unknown = first_gpu.Probe("no such probe", 60, "it ends with 1")
    (found,) = first_gpu.played(unknown, 60, str(tmp_path))
    assert found["ok"] is False
    assert found["value"].startswith("it ended with 1: ")


def test_every_probe_is_there_and_they_fit_into_eight_minutes_unless_one_hangs():
    assert all(callable(probes.PROBES.get(p.name, vars(probes).get(p.name))) for p in first_gpu.PROBES)
    assert first_gpu.ALL_S <= 480
