"""The morning report of a run: one static file, made of its record and those of the nights before it."""

import re
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overnight.files import atomic_write
from overnight.night import charts, facts, record
from overnight.night.facts import NIGHTS, Facts
from overnight.night.record import NightRecord

if TYPE_CHECKING:
    from jinja2 import Environment

FILE = "report.html"  # among the artifacts of the run in MLflow
CODE = re.compile(r"`([^`]+)`")
FAILURES = 5  # that the short form lists


def facts_of(night: NightRecord) -> Facts:
    """With the nights before of the same experiment that are still known, at most NIGHTS in all."""
    found = (one for _name, one in record.nights(night.experiment) if one.started < night.started)
    return Facts(night, [*islice(found, NIGHTS - 1)][::-1])


def build(name: str, found: Facts, run_folder: Path | None = None) -> Path:
    """Write the page of a run below reports(), and its record beside it; where the page lies.

    run_folder: gets the page, too, as FILE. Raises OSError.
    """
    folder = record.reports()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.html"
    html = page(name, found)
    for place in [path, *([run_folder / FILE] if run_folder else [])]:
        atomic_write(place, html)
    found.night.write(folder / f"{name}.json")
    return path


def page(name: str, found: Facts) -> str:
    """HTML. name: of the run's folder."""
    night = found.night
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=name,
            night=night,
            facts=found,
            virtual=night.card is None or night.card.virtual,
            axis=charts.axis_of(found),
            bars=charts.bars(found),
            chart=charts.card_chart(found),
            measured=[step for step in found.leased if step.peak_mib or step.predicted_mib],
            memory_bar=partial(charts.memory_bar, facts=found),
            columns=charts.night_columns(found),
            spark=charts.spark,
            interval=charts.interval,
        )
    )


@cache
def _environment() -> "Environment":
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    names = ("clock", "day", "long_day", "duration", "mib", "energy", "figure", "short", "cut")
    made.filters |= {name: getattr(facts, name) for name in names}
    made.filters |= {
        "scores": facts.shown_scores,
        "codes": _codes,
        "slug": lambda text: text.replace(" ", "-"),
    }
    made.filters["first_line"] = lambda text: text.strip().partition("\n")[0]
    made.filters["hours"] = facts.hours
    made.filters["signed"] = lambda value: f"{value:+.3g}"
    made.filters["breaks"] = _breaks
    made.tests["web"] = lambda text: text.startswith(("http://", "https://"))
    return made


def _codes(text: str) -> Any:
    """What stands between backquotes as code."""
    from markupsafe import Markup, escape

    parts = CODE.split(text)  # every second one is code
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def _breaks(label: str) -> Any:
    """A label that may go on in the next line after a slash."""
    from markupsafe import Markup

    return Markup("/<wbr>").join(label.split("/"))


class Headline(NamedTuple):
    """The report's first lines, as plain text."""

    title: str
    lines: list[str]


def headline(found: Facts) -> Headline:
    night = found.night
    saved = f", {found.saved_s / 3600:.1f} GPU-hours saved" if found.saved_s >= 360 else ""
    took = f"{facts.long_day(night.started)}, {facts.duration(found.duration_s)}{saved}"
    promoted = [f"Promoted: {', '.join(step.label for step in found.promoted)}"] if found.promoted else []
    to_do = [line.replace("`", "") for line in found.to_do]
    return Headline(f"{night.experiment}: {found.verdict}", [took, *promoted, *to_do])


def markdown(found: Facts, path: Path) -> str:
    """The short form, for Prefect's page of the run. path: of the whole report."""
    took, *_rest = headline(found).lines
    to_do = [f"{number}. {_plain(line)}" for number, line in enumerate(found.to_do, 1)]
    failed = [f"- **{_plain(step.label)}**: {_plain(step.reason)}" for step in found.failed[:FAILURES]]
    run = f", and among the files of [its run in MLflow]({found.night.link})" if found.night.link else ""
    parts = [
        f"**{found.verdict}**",
        took,
        "\n".join(to_do) or "Nothing to do today.",
        "\n".join(failed),
        f"The whole report is `{path}`{run}.",
    ]
    return "\n\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    """Its first line, whose marks are no markdown."""
    line = facts.cut(text.strip().partition("\n")[0], 200)
    return re.sub(r"([\\*_<>\[\]|#])", r"\\\1", line)
