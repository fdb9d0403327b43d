"""csv: types that hold for every row, packed files, odd lines, and what is said when they do not."""

import gzip
import zipfile
from datetime import UTC, date, datetime

import polars as pl
import pytest

from overnight.errors import ConfigError, DataError


def frame(content, name: str = "t") -> pl.DataFrame:
    return content.frames[name].collect()


def options(**table) -> dict[str, object]:
    return {"tables": {"t": {"file": "t.csv", **table}}}


def test_types_are_inferred(load, folder) -> None:
    (folder / "t.csv").write_text(
        "i,f,b,d,dt,code,text,none\n1,1.5,true,2024-02-29,2024-01-01 "
        "10:00:00,007,häuser,\n-2,3,False,2024-03-01,2024-01-01 11:30:00,12,東京,\n"
    )
    table = frame(load("csv", {"tables": {"t": "t.csv"}}))
    time = datetime(2024, 1, 1, 10)  # noqa: DTZ001
    assert table.row(0) == (1, 1.5, True, date(2024, 2, 29), time, "007", "häuser", None)
    assert table.dtypes == [
        pl.Int64,
        pl.Float64,
        pl.Boolean,
        pl.Date,
        pl.Datetime("us"),
        pl.String,
        pl.String,
        pl.String,
    ]


def test_given_types_win_over_what_the_values_look_like(load, folder) -> None:
    (folder / "t.csv").write_text("a,b,c\n1,01.02.2024,yes\n2,28.02.2024,N\n")
    table = frame(load("csv", options(types={"a": "text", "b": "date", "c": "bool"})))
    assert table.rows() == [("1", date(2024, 2, 1), True), ("2", date(2024, 2, 28), False)]


def test_times_with_a_zone_are_in_utc(load, folder) -> None:
    (folder / "t.csv").write_text("t\n2013-01-01T10:00:00Z\n2013-01-01T10:00:00+05:30\n")
    table = frame(load("csv", options(types={"t": "datetime"})))
    assert table["t"].to_list() == [
        datetime(2013, 1, 1, 10, tzinfo=UTC),
        datetime(2013, 1, 1, 4, 30, tzinfo=UTC),
    ]


def test_a_form_of_ones_own(load, folder) -> None:
    (folder / "t.csv").write_text("t\n03/04/24 18:00h\n")
    table = frame(load("csv", options(types={"t": "datetime %d/%m/%y %H:%Mh"})))
    assert table["t"].to_list() == [datetime(2024, 4, 3, 18)]  # noqa: DTZ001


def test_own_null_strings(load, folder) -> None:
    (folder / "t.csv").write_text("a,b\n?,x\n3,-\n")
    table = frame(load("csv", {"tables": {"t": "t.csv"}, "nulls": ["?", "-"], "types": {"a": "int"}}))
    assert table.rows() == [(None, "x"), (3, None)]


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("a,b,c\n1,x,2\n3\n\n4,y\n5,z,6\n", 2),
        ('a,b,c\n1,"x,y",2\n3,"no, no"\n5,z,6\n', 1),
        ('a,b,c\n1,"two\nlines",2\n3\n5,z,6\n', 1),
        ("a,b,c\r\n1,x,2\r\n3,y\r\n5,z,6\r\n", 1),
        ("a,b,c\n1,x,2\n,,\n5,z,6\n", 0),
    ],
)
def test_rows_with_too_few_fields_are_counted(load, folder, text: str, short: int) -> None:
    (folder / "t.csv").write_bytes(text.encode())
    content = load("csv", {"tables": {"t": "t.csv"}})
    assert content.cleaned["row with too few fields: the rest counts as missing"] == short
    assert frame(content)["a"].to_list()[-1] == 5


@pytest.mark.parametrize("packed", ["t.csv.gz", "t.csv.zip"])
def test_packed_files(load, folder, checkout, packed: str) -> None:
    if packed.endswith("gz"):
        (folder / packed).write_bytes(gzip.compress(b"a,b\n1,2\n"))
    else:
        with zipfile.ZipFile(folder / packed, "w") as archive:
            archive.writestr("inside.csv", "a,b\n1,2\n")
            archive.writestr("__MACOSX/._inside.csv", "x")
    for _ in range(2):  # the second time from what was unpacked
        assert frame(load("csv", {"tables": {"t": packed}})).rows() == [(1, 2)]
    assert len(list((checkout / ".overnight" / "unpacked").glob("*/*.csv"))) == 1


def test_a_changed_packed_file_is_unpacked_anew(load, folder) -> None:
    (folder / "t.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    frame(load("csv", {"tables": {"t": "t.csv.gz"}}))
    (folder / "t.csv.gz").write_bytes(gzip.compress(b"a\n22\n"))
    assert frame(load("csv", {"tables": {"t": "t.csv.gz"}})).rows() == [(22,)]


def test_bom_crlf_and_blank_lines(load, folder) -> None:
    (folder / "t.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,4\r\n\r\n")
    content = load("csv", options(types={"a": "int", "b": "int"}))
    assert frame(content).rows() == [(1, 2), (3, 4)]
    assert content.cleaned == {"blank row dropped": 2}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_other_encodings(load, folder, encoding: str) -> None:
    (folder / "t.csv").write_bytes("a,b\r\nhäuser,1\r\n".encode(encoding))
    assert frame(load("csv", {"tables": {"t": "t.csv"}, "encoding": encoding})).rows() == [("häuser", 1)]


def test_a_wrong_encoding(load, folder) -> None:
    (folder / "t.csv").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"t\.csv: line 2: expected text in ascii: "):
        load("csv", {"tables": {"t": "t.csv"}, "encoding": "ascii"})
    with pytest.raises(ConfigError, match="is no encoding that Python knows"):
        load("csv", {"tables": {"t": "t.csv"}, "encoding": "klingon"})


def test_blanks_around_values_are_trimmed_and_counted(load, folder) -> None:
    (folder / "t.csv").write_text("a,b\n1 , 2.5\n NA,7\n")
    content = load("csv", options(types={"a": "int", "b": "float"}))
    assert frame(content).rows() == [(1, 2.5), (None, 7.0)]
    assert content.cleaned == {"value with blanks around it trimmed": 3, "NA or null read as missing": 1}


def test_quoted_separators_and_line_ends(load, folder) -> None:
    (folder / "t.csv").write_text('a;b\n"x;y";1\n"two\nlines";2\n')
    assert frame(load("csv", {"tables": {"t": "t.csv"}, "delimiter": ";"})).rows() == [
        ("x;y", 1),
        ("two\nlines", 2),
    ]


def test_columns_without_a_name_or_with_the_same_name(load, folder) -> None:
    (folder / "t.csv").write_text(",a,a\n1,2,3\n")
    content = load("csv", {"tables": {"t": "t.csv"}})
    assert frame(content).to_dict(as_series=False) == {"": [1], "a": [2], "a_duplicated_0": [3]}
    assert content.cleaned == {"column of a name that is taken renamed": 1}


def test_a_table_without_rows_is_refused(load, folder) -> None:
    (folder / "t.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="has a header, but no row"):
        load("csv", options(types={"a": "int"}))


def test_the_first_value_past_the_sample_decides_when_all_before_are_missing(load, folder) -> None:
    (folder / "t.csv").write_text("a,b\n" + "NA,1\n" * 12_000 + "2.5,1\n")
    content = load("csv", {"tables": {"t": "t.csv"}})
    assert frame(content)["a"].dtype == pl.Float64


def test_whole_numbers_that_become_decimals_are_read_as_decimals(load, folder) -> None:
    (folder / "t.csv").write_text("a\n" + "1\n" * 12_000 + "2.5\n")
    content = load("csv", {"tables": {"t": "t.csv"}})
    assert frame(content)["a"][-1] == 2.5
    assert content.cleaned == {}


def test_a_given_type_that_row_100_000_does_not_have(load, folder) -> None:
    (folder / "t.csv").write_text("b,a\n" + "7,1\n" * 99_999 + "7,oops\n" + "7,1\n" * 10)
    content = load("csv", options(types={"a": "int"}))
    with pytest.raises(pl.exceptions.PolarsError):
        frame(content)
    said = str(content.misfit())
    assert "t.csv: line 100001: column 'a', row 100000 (after the header): 'oops' is not an int" in said


def test_an_inferred_type_that_row_100_000_does_not_have(load, folder) -> None:
    (folder / "t.csv").write_text("b,a\n" + "7,1\n" * 99_999 + "7,oops\n" + "7,1\n" * 10)
    content = load("csv", options())
    assert frame(content).schema == {"b": pl.Int64, "a": pl.String}
    assert list(content.cleaned) == [
        "column 'a' stays text: 'oops' as a number would not come back, or is none"
    ]


def test_a_missing_column(load, folder) -> None:
    (folder / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"t\.csv: no column 'c'; the file has: a, b"):
        load("csv", options(types={"c": "int"}))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"PK\x03\x04not a csv", "zip"),
        (b"\x1f\x8b\x08\x00xx", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs"),
        (b"a,b\n1,2,3\n4,5\n", "more fields"),
        (b"a,b\n\xff\xfe,2\n", "utf-8"),
        (b"a,b,c\n1,2,3\n4,5", "breaks off in its last line"),
    ],
)
def test_files_that_are_no_csv(load, folder, written: bytes, said: str) -> None:
    (folder / "t.csv").write_bytes(written)
    with pytest.raises(DataError, match=said) as caught:
        load("csv", options())
    assert "t.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 999, mtime=0)[:-20]),
        ("t.csv.gz", b"a,b\n1,2\n"),
        ("t.csv.zip", b"<html>no zip</html>"),
    ],
)
def test_packed_files_that_are_damaged(load, folder, checkout, name: str, written: bytes) -> None:
    (folder / name).write_bytes(written)
    for _ in range(2):  # nothing half is taken for whole later
        with pytest.raises(DataError, match=f"{name}: .*damaged or of another format"):
            load("csv", {"tables": {"t": name}})
    assert not [p for p in (checkout / ".overnight" / "unpacked").rglob("*") if p.is_file()]


def test_a_zip_of_several_files_is_refused(load, folder) -> None:
    with zipfile.ZipFile(folder / "t.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "a\n1\n")
    with pytest.raises(DataError, match="expected one file in the zip, found 2"):
        load("csv", {"tables": {"t": "t.zip"}})


def test_wrong_options_name_the_nearest_key(load, folder) -> None:
    with pytest.raises(ConfigError) as caught:
        load("csv", {"tables": {"t": "t.csv"}, "delimeter": ";", "types": {"a": "integer"}})
    assert len(caught.value.problems) == 2
    assert "did you mean 'delimiter'" in str(caught.value)
    assert "types.a" in str(caught.value)
