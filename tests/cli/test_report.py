"""`overnight report` as a person types it."""

from pathlib import Path

from overnight import paths
from overnight.cli.main import main
from overnight.night import record
from overnight.night.record import NightRecord


def test_it_writes_the_page_of_the_newest_night_and_prints_where_it_lies(checkout, capsys):
    assert main(["report"]) == 2
    assert "there is no run yet" in capsys.readouterr().err
    folder = paths.steps() / "20261130-033000-nightly-run-a"
    folder.mkdir(parents=True)
    night = NightRecord(experiment="nightly", config="configs/nightly.yaml", flow="nightly", started=1.0)
    night.write(folder / record.FILE)
    assert main(["report"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == checkout / ".overnight" / "reports" / f"{folder.name}.html"
    assert "Killed at" in path.read_text()
    assert main(["report", "visoin"]) == 2
    assert "no run is called 'visoin'; there are nightly" in capsys.readouterr().err
