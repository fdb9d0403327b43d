"""Whatever a csv file holds: each value that is read is the text of the file, or gives it back."""

import csv
import io
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.data.readers import csv as reader

NUMBERS = [
    "0", "1", "-5", "12", "007", "+3", "1.5", "2.50", ".5", "1e5", "1E+05", "1e-400", "1e400", "9007199254740993",
    "9223372036854775807", "9223372036854775808", "123456789012345678901", "NaN", "inf", "0x1F", "12,5", "1e308",
]  # fmt: skip
TEXTS = [
    "x",
    "a b",
    "é",
    "東京",
    '5" pipe',
    "a,b",
    "two\nlines",
    " lead",
    "trail ",
    "",
    "NA",
    "null",
    "true",
    "'",
]
DATES = [
    "2024-01-03",
    "24-01-03",
    "03/04/2024",
    "13/04/2024",
    "04/13/2024",
    "3.1.24",
    "2024-01-03 10:00",
    "2024-02-30",
]
POOLS = st.sampled_from([NUMBERS, TEXTS, DATES, list(map(str, range(40))), ["0.5", "1.25"], ["2024-05-06"]])


@st.composite
def columns(draw: st.DrawFn) -> list[list[str]]:
    """Columns of one kind each, some with values of another."""
    rows = draw(st.integers(1, 12))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        usual, odd = draw(POOLS), draw(POOLS)
        value = st.sampled_from(usual) if draw(st.booleans()) else st.sampled_from([*usual, *odd])
        found.append(draw(st.lists(value, min_size=rows, max_size=rows)))
    return found


def comes_back(kind: str, value: object, text: str) -> bool:
    name, _, form = kind.partition(" ")
    if text in ("", "NA", "null"):
        return value is None
    if name in ("text", "int"):
        return str(value) == text
    if name == "float":
        return value == float(text) and ("." in text or "e" in text.lower() or int(text) == int(float(text)))
    if name == "bool":
        return str(value).lower() == text.lower()
    parsed = datetime.strptime(text, form.replace("%.f", ""))  # noqa: DTZ007
    return value == (parsed if name == "datetime" else parsed.date())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(columns(), st.sampled_from(",;|\t"), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_every_value_comes_back(place: Path, made: list[list[str]], delimiter: str, end: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([[f"c{i}" for i in range(len(made))], *zip(*made, strict=True)])
    (place / "t.csv").write_text(text.getvalue(), newline="", encoding="utf-8")
    options = {"tables": {"t": "t.csv"}, "delimiter": delimiter}
    types = reader.types(place, reader.Options.model_validate(options))["t"]
    stated = reader.Options.model_validate({**options, "types": types})
    inferred = reader.read(place, reader.Options.model_validate(options), "table").frames["t"].collect()
    assert reader.read(place, stated, "table").frames["t"].collect().equals(inferred)
    for texts, name in zip(made, inferred.columns, strict=True):
        values = inferred[name].to_list()
        assert len(values) == len(texts)
        for value, text_ in zip(values, texts, strict=True):
            assert comes_back(types[name], value, text_), (name, types[name], value, text_)
