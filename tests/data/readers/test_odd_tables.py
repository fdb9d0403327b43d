"""csv files as people have them: no value changes unless it is said, and a refusal names line, cause and cure."""

from datetime import UTC, date, datetime

import polars as pl
import pyarrow as pa
import pytest

from overnight.data.readers import csv
from overnight.errors import ConfigError, DataError

MANY = "a,b\n" + "".join(f"{i},{i}\n" for i in range(10_050))  # more rows than types are guessed from


def read(load, folder, text: str | bytes, options: dict[str, object], name: str = "t.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load("csv", {"tables": {"t": name}, **options})


def said(load, folder, text: str | bytes, options: dict[str, object], name: str = "t.csv") -> str:
    """What is said when the table is read whole."""
    try:
        content = read(load, folder, text, options, name)
    except (DataError, ConfigError) as error:
        return str(error)
    with pytest.raises(pl.exceptions.PolarsError):
        content.frames["t"].collect()
    return str(content.misfit())


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    "odd",
    [
        "012345", "+5", "-07", "00", "1e400", "1e-400", "1E5", "12e3", "NaN", "nan", "inf", "-Infinity", "0x1F", "1_000",
        "9007199254740993.0", "9223372036854775808", "123456789012345678901234567890", "1 000", "(5)", "5%", "−5", "١٢",
        '"007"', "5\u00a0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [MANY, "a,b\n1.5,1\n", "a,b\n7,1\n"])
def test_a_number_that_would_not_come_back_makes_its_column_text(load, folder, before: str, odd: str) -> None:
    content = read(load, folder, f"{before}{odd},1\n", {})
    table = content.frames["t"].collect()
    assert table["a"].to_list() == [row.split(",")[0] for row in before.split()[1:]] + [odd.strip('"')]
    assert [rule for rule in content.cleaned if "column 'a' stays text" in rule]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1e+05", "2.5e3", "3e-2"], [1e5, 2500.0, 0.03]),
        ([".5", "5.", "-0.5"], [0.5, 5.0, -0.5]),
        (["0", "0.50"], [0.0, 0.5]),
        (["9007199254740994", "5.5"], [2.0**53 + 2, 5.5]),
        (["4.9e-324", "1.7976931348623157e308"], [5e-324, 1.7976931348623157e308]),
        (["-9223372036854775808", "9223372036854775807"], [-(2**63), 2**63 - 1]),
        (["0.1", "0.12345678901234567890123"], [0.1, 0.12345678901234568]),
        (["True", "false"], [True, False]),
        (["yes", "no"], ["yes", "no"]),
        (["2024-02-29", "2023-12-31"], [date(2024, 2, 29), date(2023, 12, 31)]),
        (["1700000000", "1700000001"], [1700000000, 1700000001]),
        (["00:15", "00:30"], ["00:15", "00:30"]),
    ],
)
def test_values_that_come_back(load, folder, texts, values) -> None:
    content = read(load, folder, "x\n" + "\n".join(texts) + "\n", {})
    assert content.frames["t"].collect()["x"].to_list() == values
    assert content.cleaned == {}


@pytest.mark.parametrize(
    ("kind", "value", "cause"),
    [
        ("float", "1e400", "'1e400' is not a float"),
        ("float", "-1e-400", "'-1e-400' is not a float"),
        ("float", "9007199254740993", "'9007199254740993' is not a float"),
        ("float", "12,5", "more fields"),
        ("int", "9223372036854775808", "'9223372036854775808' is not an int"),
        ("int", "5.0", "'5.0' is not an int"),
        ("int", "5 5", "'5 5' is not an int"),
        ("bool", "maybe", "'maybe' is not a bool"),
        ("date", "2024-02-30", "is not a date|no form that is known"),
        ("date %d.%m.%Y", "3.1.24", "'3.1.24' is not a date of the form %d.%m.%Y"),
        ("time", "25:00", "no form that is known"),
        ("datetime %Y-%m-%d %H:%M:%S%.f", "2024-01-01 10:00:00.1234567", "is not a datetime"),
    ],
)
def test_a_value_that_a_given_type_cannot_hold_is_named(
    load, folder, kind: str, value: str, cause: str
) -> None:
    text = said(load, folder, f"a,b\n,1\n{value},1\n", {"types": {"a": kind}})
    assert any(part in text for part in cause.split("|"))
    assert "no form" in text or "t.csv: line 3" in text


def test_numbers_with_leading_zeros_are_counted_where_the_entry_says_int(load, folder) -> None:
    content = read(load, folder, "a\n007\n+8\n9\n", {"types": {"a": "int"}})
    assert content.frames["t"].collect()["a"].to_list() == [7, 8, 9]
    assert content.cleaned == {"number of column 'a' with a plus or leading zeros read as its value": 2}


@pytest.mark.parametrize(
    ("text", "options", "values"),
    [
        ("x;y\n1,5;2\n3;4\n", {"decimal": ","}, [1.5, 3.0]),
        ("x;y\n1.234,5;2\n3;4\n", {"decimal": ",", "thousands": "."}, [1234.5, 3.0]),
        ("x;y\n1 234;2\n12 345 678;4\n", {"thousands": " "}, [1234, 12345678]),
        ("x;y\n1,234;2\n12,34;4\n", {"thousands": ","}, ["1,234", "12,34"]),
        ("x;y\n1,5;2\n1.5;4\n", {"decimal": ","}, ["1,5", "1.5"]),
        ("x;y\n1,5;2\n3;4\n", {}, ["1,5", "3"]),
    ],
)
def test_decimal_commas_and_thousands(load, folder, text: str, options, values) -> None:
    content = read(load, folder, text, {"delimiter": ";", **options})
    assert content.frames["t"].collect()["x"].to_list() == values


def test_a_point_is_no_decimal_comma(load, folder) -> None:
    text = said(load, folder, "x;y\n1.5;2\n", {"delimiter": ";", "decimal": ",", "types": {"x": "float"}})
    assert "line 2: column 'x', row 1 (after the header): '1.5' is not a float" in text


# ------------------------------------------------------------------------------------------------ dates and times


@pytest.mark.parametrize(
    ("texts", "values", "remark"),
    [
        (["02/03/2024", "03/04/2024"], None, "day first or month first"),
        (["02/03/2024", "13/04/2024"], [date(2024, 3, 2), date(2024, 4, 13)], ""),
        (["02-03-2024", "03-14-2024"], [date(2024, 2, 3), date(2024, 3, 14)], ""),
        (["24-01-03", "24-02-03"], None, "year of two digits"),
        (["2024-01-03", "24-02-03"], None, "year of two digits"),
        (["3.1.24", "4.1.24"], None, "year of two digits"),
        (["2024-01-03", "2024-01-03 10:00"], None, "is not a date of the form"),
        (["2024-02-28", "2024-02-30"], None, "'2024-02-30' is not a date"),
        (["2024-01-01T10:00:00Z", "2024-01-01T10:00:00"], None, "'2024-01-01T10:00:00' is not a datetime"),
        (["2024-01-01 10:00:00.123456789"], None, "is not a date of a form that is known"),
        (["2024-01-01T10:00:00+02:00"], [datetime(2024, 1, 1, 8, tzinfo=UTC)], ""),
        (["1/2/2024 3:04:05 PM", "12/25/2024 11:00:00 AM"],
         [datetime(2024, 1, 2, 15, 4, 5), datetime(2024, 12, 25, 11)], ""),  # noqa: DTZ001
        (["31.12.2024 23:59"], [datetime(2024, 12, 31, 23, 59)], ""),  # noqa: DTZ001
    ],
)  # fmt: skip
def test_dates_are_read_where_one_form_alone_fits(load, folder, texts, values, remark: str) -> None:
    content = read(load, folder, "d\n" + "\n".join(texts) + "\n", {})
    assert content.frames["t"].collect()["d"].to_list() == (values or texts)
    assert [remark in rule for rule in content.cleaned] == ([True] if remark else [])


def test_dates_that_are_ambiguous_need_a_form(load, folder) -> None:
    assert "state `d: date %d/%m/%Y` or `%m/%d/%Y`" in said(
        load, folder, "d\n02/03/2024\n", {"types": {"d": "date"}}
    )
    content = read(load, folder, "d\n02/03/2024\n", {"types": {"d": "date %m/%d/%Y"}})
    assert content.frames["t"].collect()["d"].to_list() == [date(2024, 2, 3)]


def test_local_times_become_utc_and_clock_changes_are_counted(load, folder) -> None:
    text = "t\n2024-10-27 02:30:00\n2024-03-31 02:30:00\n2024-07-01 12:00:00\n2024-12-01 12:00:00\n"
    content = read(load, folder, text, {"timezone": "Europe/Berlin"})
    assert content.frames["t"].collect()["t"].to_list() == [
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
        None,
        datetime(2024, 7, 1, 10, tzinfo=UTC),
        datetime(2024, 12, 1, 11, tzinfo=UTC),
    ]
    assert content.cleaned == {
        "time of 't' that Europe/Berlin has twice read as the earlier": 1,
        "time of 't' that Europe/Berlin leaves out counts as missing": 1,
    }
    assert "strict is set" in said(load, folder, text, {"timezone": {"t": "Europe/Berlin"}, "strict": True})


def test_a_time_with_a_zone_keeps_it(load, folder) -> None:
    content = read(load, folder, "t\n2024-07-01T00:00:00Z\n", {"timezone": {"t": "Europe/Berlin"}})
    assert content.frames["t"].collect()["t"].to_list() == [datetime(2024, 7, 1, tzinfo=UTC)]


# ------------------------------------------------------------------------------------------------ other files


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        (b"\0" * 4096, {}, ["line 1: a NUL byte"]),
        (b"a,b\n1,\0\n", {}, ["line 2: a NUL byte"]),
        ("a,b\n1,2\n".encode("utf-16"), {}, ["encoding: utf-16"]),
        ("a,b\n1,2\n".encode("utf-16-le"), {}, ["NUL byte", "encoding: utf-16"]),
        ("a,b\nx,1\nhä,2\n".encode("cp1252"), {}, ["line 3: the byte 0xe4 is not utf-8", "cp1252"]),
        ('[{"a": 1}]', {}, ["found JSON text"]),
        ('{"a": 1}\n{"a": 2}\n', {}, ["found JSON text"]),
        ("<?xml version='1.0'?><a/>", {}, ["found XML text"]),
        (b"SQLite format 3\0" + b"x" * 99, {}, ["found a SQLite file"]),
        (b"%PDF-1.4 x", {}, ["found a pdf file"]),
        (b"PAR1\0\0", {}, ["found a parquet file"]),
        (b"PK\x03\x04" + b"\0" * 26 + b"xl/workbook.xml", {}, ["found a xlsx"]),
        (b"xxxxxxxxDUCK" + b"\0" * 99, {}, ["found a DuckDB file"]),
        ("a;b\n1;2\n", {}, ["set the entry's delimiter: ';'"]),
        ("a\tb\n1\t2\n", {}, ["set the entry's delimiter: '\\t'"]),
        ("a;b,c;d\n1;2,3;4\n", {}, ["delimiter ',' gives 2 columns, but ';' 3"]),
        ("sep=;\na;b\n1;2\n", {"delimiter": ";"}, ["line 1 names the delimiter", "skip_rows: 1"]),
        ("\n\n\n", {}, ["holds no row"]),
        ("a,b\n\n\n", {}, ["has a header, but no row"]),
        ("1,2\n3,4\n", {}, ["line 1 should name the columns", "header: false"]),
        ("a,b\n1,2\n3,4,5\n6,7\n", {}, ["line 3 has 3 fields", "bad_rows: quarantine"]),
        ("a,b\n\n1,2\n'x,y',4\n", {}, ["line 4 has 3 fields", "quote"]),
        ("Report 2024\n\na,b,c\n1,2,3\n", {}, ["line 3 has 3 fields, but line 1 has 1", "skip_rows: 2"]),
        ("# made\na,b\n1,2\n", {}, ["comment: '#'"]),
        ("a,b\n1,2,x\n3,4,y\n", {}, ["line 2 has 3 fields, but line 1 has 2", "columns: [...]"]),
        ("a,b\n1,2\n3", {}, ["breaks off in its last line"]),
        ('a,b\n1,2\n5" pipe,3\n', {}, ['line 3: a " inside a value', "quote: ''"]),
        ('a,b\n"x"y,3\n', {}, ['line 2: a " inside a value']),
        ('a,b\n"x,3\ny,4\n', {}, ['line 2: a "', "never closed"]),
        ('a,b\n"he said \\"hi\\"",3\n', {}, ['line 2: a "']),
        ("a,b\n1,x\ry\n", {}, ["line 2: a carriage return"]),
        ("a,b\n1,2\n", {"skip_rows": 9}, ["holds no row"]),
        ("1,2\n", {"header": False, "columns": ["x"]}, ["2 fields, but columns names 1"]),
        ("1,2\n", {"header": False, "columns": ["x", "x"]}, ["names a column twice"]),
        ("a,b\n1,2\n", {"columns": ["x", "y"]}, ["set header: false"]),
        ("a,b\n1,2\n", {"timezone": "Mars/Base"}, ["'Mars/Base' is no time zone"]),
        ("a,b\n1,2\n", {"timezone": {"c": "UTC"}}, ["names the column 'c', which no table has"]),
        ("a,b\n1,2\n", {"types": {"c": "int"}}, ["names the column 'c', which no table has"]),
        ("a,b\n1,2\n", {"quote": "ab"}, ["quote"]),
        ("a,b\n1,2\n", {"decimal": ",", "thousands": ","}, ["decimal and thousands are both"]),
        ("a,b\n1,2\n", {"strict": True, "bad_rows": "quarantine"}, ["give one of them"]),
    ],
)  # fmt: skip
def test_refusals_name_line_cause_and_cure(load, folder, text, options, parts: list[str]) -> None:
    message = said(load, folder, text, options)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("text", "options", "rows", "rules"),
    [
        ("a,b\r1,2\r3,4\r", {}, [(1, 2), (3, 4)], ["file with CR alone at the end of lines read line by line"]),
        ("a,b\n\r1,2\n\r3,4\n\r", {}, [(1, 2), (3, 4)], ["file with LF CR at the end of lines read line by line"]),
        ("a,b\n1,2,\n3,4,\n", {}, [(1, 2), (3, 4)], ["column without name and values left out"]),
        ("a,b,\n1,2,\n3,4,\n", {}, [(1, 2), (3, 4)], ["column without name and values left out"]),
        ("a,b,\n1,2\n3,4\n", {}, [(1, 2), (3, 4)], []),
        ("a,b,c\n1,2\n3,4\n", {"types": {"c": "int"}}, [(1, 2, None), (3, 4, None)], ["row with too few fields: the rest counts as missing"]),
        ("a,b\n1\n3,4\n", {}, [(1, None), (3, 4)], ["row with too few fields: the rest counts as missing"]),
        ("1\n3,4\n5,6\n", {"header": False}, [(1, None), (3, 4), (5, 6)], ["row with too few fields: the rest counts as missing"]),
        ("Report\n\na,b\n1,2\n", {"skip_rows": 2}, [(1, 2)], []),
        ("# c\na,b\n1,2\n# d\n3,4\n", {"comment": "#"}, [(1, 2), (3, 4)], ["comment line left out"]),
        ("1,2\n3,4\n", {"header": False}, [(1, 2), (3, 4)], []),
        ("2019,2020\n3,4\n", {"header": True}, [(3, 4)], []),
        ('a,b\n5" pipe,3\n', {"quote": ""}, [('5" pipe', 3)], []),
        ("a,b\n'x,y',3\n", {"quote": "'"}, [("x,y", 3)], []),
        ('a,b\n1, "x,y"\n2 ,z\n', {}, [(1, "x,y"), (2, "z")], ["value with blanks around it trimmed"]),
        ('a,b\n" x ",2\n', {}, [(" x ", 2)], []),
        ('a,b\n"x\r\ny",2\r\n', {}, [("x\r\ny", 2)], []),
        ('a,b\n"x""y",""\n', {}, [('x"y', None)], []),
        ("a , b\n1, ?\n 2,3\n", {"nulls": ["?"]}, [(1, None), (2, 3)], ["value with blanks around it trimmed"]),
        ("a\tb\n1 \t 2\n", {"delimiter": "\t"}, [(1, 2)], ["value with blanks around it trimmed"]),
        ("a b\n1 2\n", {"delimiter": " "}, [(1, 2)], []),
        ("\n\na,b\n1,2\n,\n3,4\n\n", {}, [(1, 2), (3, 4)], ["blank row dropped"]),
        ("a,b\nNA,NA\n1,2\n", {"nulls": ["NA"]}, [(None, None), (1, 2)], []),
        ("c,d\nDE,1\nNA,2\n", {}, [("DE", 1), (None, 2)], ["NA or null read as missing"]),
        ('c,d\n"NA",1\nDE,NA\n', {}, [(None, 1), ("DE", None)], ["NA or null read as missing"]),
        ("a,b\n1, ?\n", {"nulls": [" ? "]}, [(1, None)], ["value with blanks around it trimmed"]),
        ("a,b\n1,2\n", {"delimiter": ";"}, [("1,2",)], ["file of one column, where the delimiter ',' would give 2"]),
        ("\ufeff1,2\n3,4\n", {"header": False}, [(1, 2), (3, 4)], []),
        ("PAR1,PAR2\n1,2\n", {}, [(1, 2)], []),
        ("a,b\n1," + "x" * 200_000 + "\n", {}, [(1, "x" * 200_000)], []),
        ('a,b\n1,"' + "x\n" * 200_000 + '"\n2,y\n', {}, [(1, "x\n" * 200_000), (2, "y")], []),
    ],
)  # fmt: skip
def test_odd_files_that_are_read(load, folder, text: str, options, rows, rules: list[str]) -> None:
    content = read(load, folder, text, options)
    assert content.frames["t"].collect().rows() == rows
    assert sorted(content.cleaned) == rules
    assert content.rows == {"t": len(rows)}
    if rules and "NA or null" not in rules[0]:
        assert "strict is set" in said(load, folder, text, {**options, "strict": True})


def test_a_header_of_another_width_is_no_bad_row(load, folder) -> None:
    text = "a,b,\n1,x\ny,2\n3\n"
    content = read(load, folder, text, {"types": {"a": "int"}, "bad_rows": "quarantine"})
    assert content.bad_rows["t"].select("line", "row").rows() == [(3, "y,2"), (4, "3")]
    assert content.frames["t"].collect().rows() == [(1, "x")]
    assert "line 3: column 'a'" in said(load, folder, text, {"types": {"a": "int"}})


def test_what_trim_false_keeps(load, folder) -> None:
    table = read(load, folder, "a , b\n1, ?\n 2,3\n", {"nulls": ["?"], "trim": False}).frames["t"].collect()
    assert table.to_dict(as_series=False) == {"a ": ["1", " 2"], " b": [" ?", "3"]}


@pytest.mark.parametrize("end", ["x,4\n", '"q\nq",y\nx,4\n', "\n\nx,4\n", " x , 4\n"])
def test_the_line_of_a_wrong_value_is_that_of_the_file(load, folder, end: str) -> None:
    text = 'a,b\n1,"two\nlines"\n' + "1,é\n" * 70_000 + end
    lines = text.split("\n")
    line = 1 + next(i for i, line in enumerate(lines) if line.strip().startswith(('"q', "x")))
    assert f"line {line}: column 'a'" in said(load, folder, text, {"types": {"a": "int"}})


@pytest.mark.parametrize("types", [{}, {"a": "text", "b": "text", "c": "text"}])
def test_a_short_row_does_not_hide_a_long_one(load, folder, types) -> None:
    even = "many,letters,here\n" * 20
    text = f"a,b,c\n{even}short,of one\n{even}long,by,one,field\n{even}" + even * 1_000
    for strict in (False, True):
        said_ = said(load, folder, text, {"types": types, "strict": strict})
        assert "line 43 has 4 fields" in said_
    content = read(load, folder, text, {"types": types, "bad_rows": "quarantine"})
    assert content.bad_rows["t"]["line"].to_list() == [22, 43]


# ------------------------------------------------------------------------------------------------ several files, bad rows


def test_bad_rows_are_set_aside_with_line_and_reason(load, folder) -> None:
    text = 'a,b\n1,x\n2,y,z\n\n"oops",w\n4\n5,"k\nk"\n6.5,n\n'
    content = read(load, folder, text, {"types": {"a": "int"}, "bad_rows": "quarantine"})
    assert content.frames["t"].collect().rows() == [(1, "x"), (5, "k\nk")]
    assert content.rows == {"t": 2}
    assert content.bad_rows["t"].rows() == [
        ("t.csv", 3, "3 fields instead of 2", "2,y,z"),
        ("t.csv", 5, "column 'a' is not an int", "oops,w"),
        ("t.csv", 6, "1 fields instead of 2", "4"),
        ("t.csv", 9, "column 'a' is not an int", "6.5,n"),
    ]
    assert content.misfit() is None


@pytest.mark.parametrize(
    ("files", "more", "rows"),
    [
        (["one.csv", "two.csv"], {}, [(1, 2), (4, 3)]),
        ("*o*.csv", {}, [(1, 2), (4, 3)]),
        (["one.csv", "less.csv"], {"union": "fill"}, [(1, 2), (5, None)]),
        (["one.csv", "text.csv"], {}, [(1.0, "2"), (2.5, "x")]),
        (["one.csv", "less.csv"], {}, "lacks b, unlike one.csv; set the table's union: fill"),
        (["less.csv", "one.csv"], {}, "has b besides, unlike less.csv"),
        (["one.csv", "text.csv"], {"types": {"a": "int"}}, "text.csv: line 2: column 'a'"),
        ("no*.csv", {}, "no file fits"),
        ([], {}, "at least 1 item"),
    ],
)
def test_one_table_of_several_files(load, folder, files, more, rows) -> None:
    for name, text in {
        "one": "a,b\n1,2\n",
        "two": "b,a\n3,4\n",
        "less": "a\n5\n",
        "text": "a,b\n2.5,x\n",
    }.items():
        (folder / f"{name}.csv").write_text(text)
    options = {"tables": {"t": {"file": files, **more}}}
    if isinstance(rows, str):
        (folder / "t.csv").write_text("a\n1\n")
        assert rows in said(load, folder, "a\n1\n", options)
    else:
        assert load("csv", options).frames["t"].collect().rows() == rows


def test_zstd(load, folder) -> None:
    packed = pa.compress(b"a,b\n1,2\n", "zstd", asbytes=True)
    assert read(load, folder, packed, {}, "t.csv.zst").frames["t"].collect().rows() == [(1, 2)]
    assert "damaged or of another format" in said(load, folder, packed[:-4], {}, "u.csv.zst")


def test_what_the_lines_of_a_large_file_hold_is_remembered_until_it_changes(load, folder, checkout) -> None:
    even = b"1234567,1234567,1234567,1234567\n" * 600_000
    for odd, count in ((b"5,6\n", 1), (b"5,6\n" * 3, 3)):
        (folder / "t.csv").write_bytes(b"a,b,c,d\n" + even + odd)
        for _ in range(2):
            content = load("csv", {"tables": {"t": "t.csv"}})
            assert content.cleaned == {"row with too few fields: the rest counts as missing": count}
            assert content.rows == {"t": 600_000 + count}
    assert len(list((checkout / ".overnight" / "unpacked").glob("*/t.csv-*.json"))) == 2


def test_eight_hundred_columns_of_every_type(load, folder) -> None:
    kinds = ["7", "1.5", "x", "007", "2024-01-03", "true"]
    names = [f"c{i}" for i in range(800)]
    row = ",".join(kinds[i % len(kinds)] for i in range(800))
    content = read(load, folder, ",".join(names) + f"\n{row}\n{row}\n", {})
    dtypes = [pl.Int64, pl.Float64, pl.String, pl.String, pl.Date, pl.Boolean]
    assert content.frames["t"].collect().dtypes == [dtypes[i % len(kinds)] for i in range(800)]


def test_inferred_types_as_an_entry_states_them(folder) -> None:
    (folder / "t.csv").write_text("a,b,c,d\n1,x,2.5,31.12.2024\n")
    options = csv.Options.model_validate({"tables": {"t": "t.csv"}})
    found = csv.types(folder, options)
    assert found == {"t": {"a": "int", "b": "text", "c": "float", "d": "date %d.%m.%Y"}}
    stated = csv.Options.model_validate({"tables": {"t": {"file": "t.csv", "types": found["t"]}}})
    assert csv.types(folder, stated) == found


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("x y z\n1 2 3\n4 5 6\n", "3 words in each row; if blanks part its columns, .* delimiter: ' '"),
        ("x   y\n1   2\n4   5\n", "2 words in each row"),
        ("Report of May,,\nx,y,z\n1,2,3\n", "line 1 names 1 of 3 columns; .* skip_rows: 1"),
    ],
)
def test_rows_that_are_parted_otherwise_are_no_columns(load, folder, text: str, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        read(load, folder, text, {})


def test_a_column_of_texts_with_blanks_stays_one(load, folder) -> None:
    text = "street and number\nMain Street 5\nOld Market Place 7\n"
    assert read(load, folder, text, {}).frames["t"].collect().shape == (2, 1)
    assert read(load, folder, "x y\n1 2\n", {"delimiter": ","}).frames["t"].collect().rows() == [("1 2",)]


@pytest.mark.parametrize("files", [["a.csv", "./a.csv"], ["*.csv", "a.csv"]])
def test_a_file_that_an_entry_names_twice_is_not_read_twice(load, folder, files: list[str]) -> None:
    (folder / "a.csv").write_text("x\n1\n")
    with pytest.raises(DataError, match=r"a\.csv: the entry names it twice"):
        load("csv", {"tables": {"t": files}})


def test_codes_that_are_one_number_are_named(load, folder) -> None:
    rule = "column 'v': '1.10' and '1.1' are one number; if they are codes, state `v: text`"
    assert read(load, folder, "v\n1.10\n1.1\n1.2\n", {}).cleaned[rule] == 1
    assert not read(load, folder, "v\n1.10\n1.20\n1.00\n1\n", {}).cleaned
    assert not read(load, folder, "v\n1.10\n1.1\n", {"types": {"v": "float"}}).cleaned


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (["1.5"] * 10_001 + ["1.10", "1.1"], ["column 'v': '1.10' and '1.1' are one number"]),
        (["7"] * 10_001 + ["2.50", "2.500"], ["column 'v': '2.50' and '2.500' are one number"]),
        (["1.10"] + ["3.25"] * 10_050 + ["1.1"], ["column 'v': '1.10' and '1.1' are one number"]),
        (["4.75"] * 10_001 + ["1.00", "1.0"], ["column 'v': '1.00' and '1.0' are one number"]),
        (["4.75"] * 10_001 + ["1.10", "1.20", "1.5e10", "1.5e1"], []),
        (["4.75", "4.70"] * 5_001, []),
    ],
)
def test_codes_that_are_one_number_are_named_wherever_they_stand(load, folder, rows, wanted) -> None:
    found = read(load, folder, "v\n" + "\n".join(rows) + "\n", {})
    said = [rule for rule in found.cleaned if "are one number" in rule]
    assert [rule.split("; ")[0] for rule in said] == wanted
    assert found.frames["t"].collect_schema()["v"] == pl.Float64


BOM = "\ufeff"
AGAIN, MARK = (
    "header that stands again among the rows left out",
    "byte order mark at the start of a line removed",
)


@pytest.mark.parametrize(
    ("text", "rows", "cleaned"),
    [
        (f"{BOM}{BOM}a,b\n1,x\n", [(1, "x")], {MARK: 1}),
        (f"{BOM}a,b\n1,x\n{BOM}a,b\n2,y\n", [(1, "x"), (2, "y")], {MARK: 1, AGAIN: 1}),
        (f"{BOM}a,b\r\n1,x\r\n{BOM}2,y\r\n", [(1, "x"), (2, "y")], {MARK: 1}),
        (f'{BOM}"a","b"\n1,x\n{BOM}"a","b"\n2,y', [(1, "x"), (2, "y")], {MARK: 1, AGAIN: 1}),
        ("a,b\n1,x\na,b\na,bc\n", [("1", "x"), ("a", "bc")], {AGAIN: 1}),
        (f"a,b\n1,x{BOM}y\n", [(1, f"x{BOM}y")], {}),
    ],
)
def test_files_that_were_put_together(load, folder, text: str, rows: list, cleaned: dict) -> None:
    content = read(load, folder, text, {})
    assert content.frames["t"].collect().rows() == rows
    assert {k: n for k, n in content.cleaned.items() if "stays text" not in k} == cleaned


def test_a_mark_of_utf8_is_no_text_of_another_encoding(load, folder) -> None:
    assert "set the entry's encoding: utf-8" in said(load, folder, f"{BOM}a\n1\n", {"encoding": "latin-1"})
