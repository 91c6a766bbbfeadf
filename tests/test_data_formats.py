"""Reading tables of every format, and refusing what is none, with the right words."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import polars
import pytest

from afina.core.errors import AfinaError, DataError
from afina.data.formats import read_table, write_predictions
from afina.data.table import count_kinds

ROWS = [{"text": "Ação subiu", "label": "positivo"}, {"text": 'Ele disse: "não", e saiu', "label": "negativo"}]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def as_csv(delimiter: str = ",") -> str:
    quoted = ['"' + row["text"].replace('"', '""') + '"' + delimiter + row["label"] for row in ROWS]
    return "\n".join([f"text{delimiter}label", *quoted]) + "\n"


CONTENTS = {
    "a.csv": as_csv(),
    "semicolon.csv": as_csv(";"),
    "a.tsv": as_csv("\t"),
    "mark.csv": b"\xef\xbb\xbf" + as_csv().encode(),
    "latin.csv": as_csv().encode("latin-1"),
    "wide.csv": as_csv().encode("utf-16"),
    "windows.csv": as_csv().replace("\n", "\r\n"),
    "a.jsonl": "\n".join(json.dumps(row) for row in ROWS) + "\n",
    "array.json": json.dumps(ROWS),
    "inside.json": json.dumps({"version": 1, "data": ROWS}),
    "lines.json.gz": "\n".join(json.dumps(row) for row in ROWS),
    "packed.csv.gz": as_csv(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    table = read_table(written(tmp_path, name, CONTENTS[name]))
    assert [dict(row.values) for row in table.rows] == ROWS
    assert table.columns == ["text", "label"]
    assert len(table.sha256) == 64


def test_parquet(tmp_path: Path) -> None:
    polars.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert [dict(row.values) for row in table.rows] == ROWS
    assert table.format == "parquet"


def test_what_was_found_out_is_said(tmp_path: Path) -> None:
    notes = {name: read_table(written(tmp_path, name, CONTENTS[name])).notes for name in CONTENTS}
    assert notes["latin.csv"] == ["read as Latin-1: byte 0xE7 at line 2 is no UTF-8"]
    assert notes["semicolon.csv"] == ["delimiter: ';'"]
    assert notes["lines.json.gz"] == ["named as JSON, but holds JSON Lines: read as such"]
    assert notes["inside.json"] == ["rows are the array 'data'"]
    assert notes["a.csv"] == []


def test_windows_1252_and_mixed_encodings(tmp_path: Path) -> None:
    dash = read_table(written(tmp_path, "w.csv", "text\npreço – “alto”\n".encode("cp1252")))
    assert dash.rows[0].values["text"] == "preço – “alto”"
    assert dash.encoding == "Windows-1252"
    mixed = "text,label\nAção é boa,x\n".encode() + "ruim ç,y\n".encode("latin-1") + "não há,z\n".encode()
    table = read_table(written(tmp_path, "m.csv", mixed))
    assert [row.line for row in table.rows] == [2, 4]
    assert [(r.line, r.reason) for r in table.rejections] == [(3, "byte 0xE7 is no UTF-8")]
    assert table.notes == ["1 bytes are no UTF-8, the first is 0xE7 at line 3; the rows with them are rejected"]


def test_quoted_line_breaks_keep_the_starting_line(tmp_path: Path) -> None:
    text = 'id,text\n1,"one\n\nthree"\n\n2,plain\n3,"a\nb"\n'
    table = read_table(written(tmp_path, "a.csv", text))
    assert [(row.line, row.values["text"]) for row in table.rows] == [(2, "one\n\nthree"), (6, "plain"), (7, "a\nb")]
    assert table.notes == ["1 blank lines skipped"]


def test_ragged_rows_are_counted_with_line_and_cells(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n"))
    assert [row.line for row in table.rows] == [2, 5]
    assert [(r.line, r.reason, r.raw) for r in table.rejections] == [
        (3, "found 1 cell, expected 2", "3"),
        (4, "found 3 cells, expected 2", "4,5,6"),
    ]


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.csv", 'a,b\n1,2\n"open,4\n5,6\n7,8\n'))
    assert [row.line for row in table.rows] == [2, 4, 5]
    assert [(r.line, r.reason) for r in table.rejections] == [(3, "a quote is opened here and never closed")]


def test_nameless_columns(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.csv", ",text,,\n0,abc,,\n1,def,,\n"))
    assert table.columns == ["column_1", "text"]
    assert table.notes[0] == "2 columns without name and values ignored (columns 3, 4)"


def test_alpaca_and_chat(tmp_path: Path) -> None:
    alpaca = read_table(written(tmp_path, "a.json", json.dumps([{"instruction": "soma", "output": "2"}])))
    assert alpaca.format == "alpaca"
    assert alpaca.rows[0].values == {"instruction": "soma", "input": "", "output": "2"}
    turns = [("system", "S"), ("user", "um"), ("assistant", "1"), ("user", "dois"), ("assistant", "2")]
    record = {"messages": [{"role": role, "content": text} for role, text in turns], "id": 7}
    broken = {"messages": [{"role": "assistant", "content": "x"}]}
    chat = read_table(written(tmp_path, "c.jsonl", json.dumps(record) + "\n" + json.dumps(broken)))
    assert chat.rows[0].values == {
        "system": "S", "history": "user: um\nassistant: 1", "user": "dois", "assistant": "2", "id": 7,
    }  # fmt: skip
    assert "expected a user's message" in chat.rejections[0].reason


def test_bad_json_lines_are_rejections(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.jsonl", '{"a": 1}\n{"a": \n[1]\n{"a": "\\ud83d"}\n{"a": "\u2028"}\n'))
    assert [row.line for row in table.rows] == [1, 5]
    assert count_kinds(table.rejections) == {"invalid JSON": 1, "no object": 1, "broken text encoding": 1}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "the file is empty"),
        ("blank.csv", b" \n\n", "holds only white space"),
        ("header.csv", b"a,b\n", "found column names (a, b) and no rows"),
        ("nul.csv", b"a,b\n1,\x00\n", ":2: found a NUL byte (at byte 6): a binary file"),
        ("book.csv", b"PK\x03\x04xxxx", "an Excel workbook. Export the sheet as CSV"),
        ("control.csv", bytes([1, 2, 3, 4, 5, 6]) * 99, "found control characters throughout"),
        ("twice.csv", b"a,b,a\n1,2,3\n", ":1: the column name 'a' stands 2 times (columns 1, 3)"),
        ("fake.parquet", b"hello", "is named Parquet, but does not begin with PAR1"),
        ("broken.parquet", b"PAR1xxxxPAR1", "is no readable Parquet file"),
        ("broken.json", b'[{"a": 1},\n{"a" 2}]', ":2: is no valid JSON: Expecting ':' delimiter at column 6"),
        ("number.json", b"3", "found a single int, expected an array of objects"),
        ("two.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "found an object with the arrays a, b"),
        ("none.json", b"[]", "holds no records"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_and_a_cut_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a folder"):
        read_table(tmp_path)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n" * 100)[:-20])
    with pytest.raises(DataError, match="damaged or cut off"):
        read_table(path)
    path.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"is named \.gz, but is no gzip file"):
        read_table(path)


PREDICTIONS = [
    {"id": "1", "output": {"b": "é", "a": [1]}, "confidence": {"b": 0.5}, "error": None},
    {"id": "2", "output": None, "confidence": None, "error": "cannot be read"},
]


def test_predictions_are_written_by_suffix(tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        write_predictions(tmp_path / f"p.{suffix}", PREDICTIONS)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"id": "1", "output": '{"b":"é","a":[1]}', "confidence": '{"b":0.5}', "error": ""}
    assert rows[1] == {"id": "2", "output": "", "confidence": "", "error": "cannot be read"}
    assert [json.loads(line) for line in (tmp_path / "p.jsonl").open()] == PREDICTIONS
    frame = polars.read_parquet(tmp_path / "p.parquet")
    assert frame.columns == ["id", "output", "confidence", "error"]
    assert frame.rows()[1] == ("2", None, None, "cannot be read")
    with pytest.raises(AfinaError, match=r"written as .csv, .jsonl or .parquet"):
        write_predictions(tmp_path / "p.xlsx", PREDICTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "p.jsonl", "p.parquet"]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "header", "rows", "rejected", "format"),
    [
        ("noticias/noticias.csv", None, 220, {}, "csv"),
        ("brighter/train.csv", None, 2226, {}, "csv"),
        ("xed_br/raw.tsv", ["text", "emotion"], 12285, {"wrong number of cells": 230}, "tsv"),
        ("xed_br/clean.tsv", ["text", "emotion"], 12285, {}, "tsv"),
        ("tweetsentbr/train_text.txt", ["text"], 1839, {}, "lines"),
        ("tweetsentbr/train_labels.txt", ["label"], 1839, {}, "lines"),
        ("dirt/tweets_mg_200.csv", None, 162, {}, "csv"),
        ("dirt/magazines_200.json.gz", None, 200, {}, "jsonl"),
        ("products/industrial_items.json", None, 3686, {}, "json"),
        ("products/lf_amazon_raw_500.jsonl", None, 500, {}, "chat"),
        ("products/hetpqa_dev.tsv", None, 398, {}, "tsv"),
    ],
)
def test_real_files(
    shared_data: Path, name: str, header: list[str] | None, rows: int, rejected: dict[str, int], format: str
) -> None:
    table = read_table(shared_data / name, header=header)
    assert (len(table.rows), count_kinds(table.rejections), table.format) == (rows, rejected, format)
    assert all(set(row.values) <= set(table.columns) for row in table.rows)


@pytest.mark.shared
def test_xed_rows_are_those_of_the_cleaned_file(shared_data: Path) -> None:
    raw = read_table(shared_data / "xed_br/raw.tsv", header=["text", "emotion"])
    clean = read_table(shared_data / "xed_br/clean.tsv", header=["text", "emotion"])
    assert len(raw.rows) == len(clean.rows) == 12285
    same = sum(
        a.values["emotion"].replace(" ", "") == b.values["emotion"] for a, b in zip(raw.rows, clean.rows, strict=True)
    )
    assert same == 12285
    assert raw.rejections[0].line == 1553
    assert "11 lines with stray quotes were read as plain text" in raw.notes


@pytest.mark.shared
def test_tweets_without_names_and_with_lost_characters(shared_data: Path) -> None:
    notes = read_table(shared_data / "dirt/tweets_mg_200.csv").notes
    assert notes[0].startswith("15 columns without name and values ignored")
    assert any("characters lost before the file came here" in note for note in notes)
