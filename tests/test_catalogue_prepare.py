"""A catalogue's file -> shards: every row accounted for, whatever the file holds, and whenever it is interrupted."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars
import pytest

from afina.catalogue.deciding import draw_uids
from afina.catalogue.export import export
from afina.catalogue.prepare import Catalogue, parse_shards, prepare_catalogue, summary_lines
from afina.catalogue.scratch import only_one
from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import DataError, MachineError, RunError
from afina.data.dedupe import Components, jaccard, normalise_text
from afina.data.training_file import check

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
SUBJECTS = ["lamp", "kettle", "ladder", "blanket", "guitar", "tent", "clock", "basket", "mirror", "saddle"]
QUALITIES = ["small", "large", "blue", "heavy", "woven", "folding", "brass", "quiet", "painted", "curved", "sturdy"]


def product(number: int, words: int = 25) -> dict[str, Any]:
    """A clean row of its own."""
    rng = random.Random(number)
    text = " ".join(
        f"{rng.choice(QUALITIES)} {rng.choice(SUBJECTS)} {rng.randrange(10_000)}" for _ in range(words // 3)
    )
    return {
        "uid": f"{number:09d}X",
        "title": f"The {rng.choice(QUALITIES)} {rng.choice(SUBJECTS)} {number}",
        "content": f"Made for you: {text}.",
        "target_ind": [rng.randrange(1_000_000) for _ in range(rng.randrange(5))],
        "target_rel": [1.0],
    }


def written(path: Path, rows: list[Any]) -> Path:
    """A row is an object, or the bytes of a line."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def prepared(path: Path, folder: Path, seed: int = 1, shares: Mapping[str, float] = SHARES, **config: Any) -> Catalogue:
    return prepare_catalogue(CatalogueConfig(path=path, **config), folder, seed=seed, shares=shares)


def rows_of(catalogue: Catalogue) -> list[dict[str, Any]]:
    return [row for path in catalogue.shard_paths() for row in polars.read_parquet(path).iter_rows(named=True)]


def rejected_of(catalogue: Catalogue) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (catalogue.folder / "rejected.jsonl").read_text().splitlines()]


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that a preparation leaves, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- kinds of files --------------------------------------------------------------------------------


def packings(folder: Path, data: bytes) -> list[Path]:
    def zipped(name: str, members: dict[str, bytes], method: int) -> Path:
        with zipfile.ZipFile(folder / name, "w", method) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return folder / name

    plain, packed, doubled = folder / "a.json", folder / "a.json.gz", folder / "two.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    cut = data.index(b"\n", len(data) // 2)
    doubled.write_bytes(gzip.compress(data[:cut]) + gzip.compress(data[cut:]))
    others = {"LF/lbl.json": b'{"uid": "x"}\n', "LF/Yf.txt": b"x"}
    return [
        plain,
        packed,
        doubled,
        zipped("deflated.zip", {**others, "LF/trn.json": data}, zipfile.ZIP_DEFLATED),
        zipped("stored.zip", {**others, "LF/trn.json.gz": gzip.compress(data)}, zipfile.ZIP_STORED),
        zipped("twice.zip", {"trn.json.gz": gzip.compress(data)}, zipfile.ZIP_DEFLATED),
        zipped("other.zip", {"catalogue.json": data}, zipfile.ZIP_BZIP2),
    ]


def test_every_packing_of_the_same_lines_gives_the_same_shards(tmp_path: Path) -> None:
    source = written(tmp_path / "source", [product(number) for number in range(60)])
    paths = packings(tmp_path, source.read_bytes())
    found = [prepared(path, tmp_path / f"out-{path.name}") for path in paths]
    assert len(found) == 7
    assert {catalogue.num_rows for catalogue in found} == {60}
    assert len({json.dumps(catalogue.manifest["shards"]) for catalogue in found}) == 1
    assert [catalogue.manifest["source"]["kind"] for catalogue in found] == ["plain", *["gzip"] * 2, *["zip"] * 4]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    written(folder / "b.jsonl", [product(number) for number in range(10, 20)])
    (folder / "a.jsonl.gz").write_bytes(
        gzip.compress(written(tmp_path / "x", [product(n) for n in range(10)]).read_bytes())
    )
    (folder / "README.md").write_text("no catalogue")
    catalogue = prepared(folder, tmp_path / "out")
    assert [row["uid"] for row in rows_of(catalogue)] == [product(number)["uid"] for number in range(20)]
    assert [row["line"] for row in rows_of(catalogue)] == [*range(1, 11), *range(1, 11)]
    assert catalogue.report["notes"] == ["passed over in the folder: README.md"]


def test_shards_are_cut_by_kept_rows_in_file_order(tmp_path: Path) -> None:
    rows = [product(number) for number in range(100)]
    rows[3]["content"] = ""
    catalogue = prepared(written(tmp_path / "a", rows), tmp_path / "out", shard_rows=40)
    assert [shard["rows"] for shard in catalogue.manifest["shards"]] == [40, 40, 19]
    assert catalogue.shard_paths("1") == [tmp_path / "out" / "shards" / "shard-00001.parquet"]
    table = polars.read_parquet(catalogue.shard_paths("0,2"))
    assert table.columns == ["uid", "title", "content", "line", "cluster", "split"]
    assert table.height == 59
    for number in range(3):
        lines = catalogue.file(number, "jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == polars.read_parquet(catalogue.file(number)).to_dicts()


# -- values ----------------------------------------------------------------------------------------


def test_uids_keep_their_digits_and_numbers_their_spelling(tmp_path: Path) -> None:
    uids = ["0000031909", "000100039X", "7", "12345678901234567890123"]
    lines = [json.dumps({**product(number), "uid": uid}).encode() for number, uid in enumerate(uids[:2])]
    lines += [
        b'{"uid": %s, "title": "A lamp %s", "content": "It is bright."}' % (u.encode(), u.encode()) for u in uids[2:]
    ]
    lines += [
        b'{"uid": "n", "title": 1984, "content": 1.50}',
        b'{"uid": "m", "uid": "o", "title": "T", "content": "C c"}',
    ]
    rows = rows_of(prepared(written(tmp_path / "a", lines), tmp_path / "out", boilerplate="keep"))
    assert [row["uid"] for row in rows] == [*uids, "n", "m"]
    assert (rows[4]["title"], rows[4]["content"]) == ("1984", "1.50")


def test_a_catalogue_without_uids_is_called_by_its_lines(tmp_path: Path) -> None:
    rows = [{key: value for key, value in product(number).items() if key != "uid"} for number in range(12)]
    catalogue = prepared(written(tmp_path / "a.jsonl", [b"", *rows]), tmp_path / "out")
    assert [row["uid"] for row in rows_of(catalogue)] == [f"line-{number}" for number in range(2, 14)]
    assert "has no column 'uid'" in catalogue.report["notes"][0]


def test_of_a_uid_that_stands_twice_the_first_row_stays(tmp_path: Path) -> None:
    rows = [product(number) for number in range(30)]
    rows[20]["uid"] = rows[4]["uid"]
    rows[25] |= {"uid": "other", "content": rows[20]["content"], "title": rows[20]["title"]}
    catalogue = prepared(written(tmp_path / "a", rows), tmp_path / "out")
    assert rejected_of(catalogue) == [
        {
            "line": 21, "uid": rows[4]["uid"], "kind": "duplicate uid",
            "reason": "line 5 has the same uid and is kept", "source": "a",
        }
    ]  # fmt: skip
    assert "other" in {row["uid"] for row in rows_of(catalogue)}, "what was dropped must not make others duplicates"


# -- lines that are no rows ------------------------------------------------------------------------

BROKEN: list[tuple[bytes, str, str]] = [
    (b"not json", "invalid JSON", "is no valid JSON: Expecting value at column 1"),
    (b'{"uid": "q", "title": "T", "content": "cut', "invalid JSON", "Unterminated string"),
    (b'{"uid": "q", "title": NaN, "content": "c"}', "invalid JSON", "NaN is no number"),
    (b"[" * 100_000, "invalid JSON", "recursion"),
    (b'["a", "list"]', "no object", "found a list"),
    (b"null", "no object", "found null"),
    (b'{"uid": null, "title": "T", "content": "c"}', "no uid", "the column uid is empty"),
    (b'{"title": "T", "content": "c"}', "no uid", "the column uid is empty"),
    (b'{"uid": "' + b"9" * 201 + b'", "title": "T", "content": "c"}', "uid too long", "uid of 201 characters"),
    (b'{"uid": "q\\nr", "title": "T", "content": "c"}', "unusable uid", "the uid holds control characters"),
    (b'{"uid": "q", "title": null, "content": "c"}', "no title", "the column title is empty"),
    (b'{"uid": "q", "content": "c"}', "no title", "the column title is empty"),
    (b'{"uid": "q", "title": "T"}', "no content", "the column content is empty"),
    (b'{"uid": "q", "title": "<img src=x>", "content": "c"}', "no title", "holds no text"),
    (b'{"uid": "q", "title": "T", "content": "&#160; <br>"}', "no content", "holds no text"),
    (b'{"uid": "q", "title": ["T"], "content": "c"}', "no text", "title is a list, expected text"),
    (b'{"uid": "q", "title": "T", "content": {"a": 1}}', "no text", "content is an object, expected text"),
    (b'{"uid": "q", "title": true, "content": "c"}', "no text", "title is true or false"),
    (b'{"uid": "q", "title": "' + b"T" * 200_000 + b'", "content": "c"}', "title too long", "200000 characters"),
    (b'{"uid": "q", "title": "T", "content": "' + b"ab " * 70_000 + b'"}', "content too long", "209999 characters"),
    (b'{"uid": "q", "title": "A lamp", "content": "a lamp!"}', "content equals title", "no more than the title"),
]


@pytest.mark.parametrize("alone", [False, True], ids=["in one block", "each in a file"])
def test_every_line_that_is_no_row_is_named_with_place_and_reason(tmp_path: Path, alone: bool) -> None:
    batches = [[case] for case in BROKEN] if alone else [BROKEN]
    for number, batch in enumerate(batches):
        good = [product(n) for n in range(40)]
        path = written(tmp_path / f"{number}.jsonl", [*good[:20], *(line for line, _, _ in batch), *good[20:]])
        catalogue = prepared(path, tmp_path / f"out-{number}")
        found = rejected_of(catalogue)
        assert [row["line"] for row in found] == list(range(21, 21 + len(batch)))
        for row, (_, kind, reason) in zip(found, batch, strict=True):
            assert row["kind"] == kind, row
            assert reason in row["reason"]
            assert len(row["reason"]) <= 200
        assert catalogue.num_rows == 40
        assert catalogue.report["rejected"] == dict(
            Counter(kind for _, kind, _ in sorted(batch, key=lambda b: b[1])).most_common()
        )


def test_bytes_of_other_encodings_are_repaired_and_counted(tmp_path: Path) -> None:
    rows: list[Any] = [product(number) for number in range(10)]
    rows.append('{"uid": "l", "title": "Açúcar", "content": "Café com leite"}'.encode("latin-1"))
    rows.append(
        '{"uid": "m", "title": "Both',
    )
    rows[-1] = '{"uid": "m", "title": "Pão", "content": "It'.encode() + b"\x92" + b's \xe9t\xe9."}'
    rows.append(b'{"uid": "n", "title": "Half \\ud83d", "content": "a \\ud83d\\ude00 b \\u0000 c \x00 d\te"}')
    catalogue = prepared(written(tmp_path / "a", rows), tmp_path / "out")
    found = {row["uid"]: (row["title"], row["content"]) for row in rows_of(catalogue)}
    assert found["l"] == ("Açúcar", "Café com leite")
    assert found["m"] == ("Pão", "It’s été.")
    assert found["n"] == ("Half \ufffd", "a 😀 b c d e")
    assert catalogue.report["steps"]["not_utf8_repaired"] == 2


def test_marks_blank_lines_and_other_line_ends_are_no_rows(tmp_path: Path) -> None:
    lines = [json.dumps(product(number)).encode() for number in range(10)]
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines[:5]) + b"\r\n\r\n  \n\n" + b"\n".join(lines[5:]))
    catalogue = prepared(tmp_path / "a", tmp_path / "out")
    assert [row["line"] for row in rows_of(catalogue)] == [1, 2, 3, 4, 5, 9, 10, 11, 12, 13]
    assert catalogue.report["rows"] == {"read": 10, "kept": 10, "rejected": 0, "cleaned": 10}


# -- files that are refused ------------------------------------------------------------------------


def cut_gzip(folder: Path, data: bytes) -> Path:
    (folder / "cut.gz").write_bytes(gzip.compress(data)[:-500])
    return folder / "cut.gz"


def damaged_zip(folder: Path, data: bytes) -> Path:
    with zipfile.ZipFile(folder / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trn.json", data)
    raw = bytearray((folder / "bad.zip").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (folder / "bad.zip").write_bytes(raw)
    return folder / "bad.zip"


def cut_zip(folder: Path, data: bytes) -> Path:
    path = damaged_zip(folder, data)
    path.write_bytes(path.read_bytes()[:-300])
    return path


def zip_of(*names: str) -> Callable[[Path, bytes], Path]:
    def make(folder: Path, data: bytes) -> Path:
        with zipfile.ZipFile(folder / "many.zip", "w") as archive:
            for name in names:
                archive.writestr(name, data)
        return folder / "many.zip"

    return make


def file_of(data: bytes) -> Callable[[Path, bytes], Path]:
    def make(folder: Path, _: bytes) -> Path:
        (folder / "file").write_bytes(data)
        return folder / "file"

    return make


REFUSED: list[tuple[str, Callable[[Path, bytes], Path], str]] = [
    ("cut gzip", cut_gzip, r"cut\.gz: the gzip file is cut short or damaged somewhere after line [\d,]+ \("),
    ("damaged zip", damaged_zip, r"bad\.zip!trn\.json: the zip file is cut short or damaged somewhere after line"),
    ("cut zip", cut_zip, r"bad\.zip: the zip is cut short or damaged \(File is not a zip file\)"),
    ("two members", zip_of("a.json", "b.json"), r"the zip holds a\.json, b\.json, expected one file .*\.member="),
    ("many members", zip_of(*(f"{n}.json" for n in range(3000))), r"0\.json, 1\.json, .* and 2995 more, expected one"),
    ("two train files", zip_of("a/trn.json", "b/trn.json"), r"expected one file"),
    ("empty zip", zip_of(), r"the zip holds no files"),
    ("empty", file_of(b""), r"the file is empty"),
    ("blank", file_of(b"\n\n  \n"), r"expected one JSON object on each line"),
    ("binary", file_of(bytes(range(256)) * 40), r"file:1: is no valid JSON"),
    ("utf-16", file_of('{"title": "a"}'.encode("utf-16")), r"is UTF-16, expected UTF-8"),
    ("document", file_of(b'{\n "0": {\n  "title": "a"\n }\n}\n'), r"one JSON document over several lines"),
    ("array", file_of(b'[{"title": "a"},\n{"title": "b"}]\n'), r"one JSON document over several lines"),
    ("chat", file_of(b'{"messages": []}\n'), r"no column catalogue\.title: title, .*; found messages\. Name"),
    ("no usable", file_of(b'{"uid": "1", "title": "", "content": ""}\n' * 9),
     r"9 of 9 rows .* 9 × no title \(first: file:1, "),
    ("two rows", file_of(b'{"uid": "1", "title": "a", "content": "b"}\n{"uid": "2", "title": "c", "content": "d"}\n'),
     r"found 2 usable rows in 2 clusters of duplicates, expected at least 3, one each for train, validation, test"),
    ("absent", lambda folder, _: folder / "absent.json", r"absent\.json: no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path, bytes], Path], message: str
) -> None:
    data = written(tmp_path / "data", [product(number) for number in range(400)]).read_bytes()
    path = make(tmp_path, data)
    with pytest.raises(DataError, match=message):
        prepared(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json*")), "a refused file must leave no catalogue"


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb.gz", "wb", compresslevel=1) as file:
        file.write(json.dumps(product(1)).encode() + b"\n")
        for _ in range(80):
            file.write(b"a" * (1 << 20))
    assert (tmp_path / "bomb.gz").stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"bomb\.gz:2: the line has more than 64 MiB"):
        prepared(tmp_path / "bomb.gz", tmp_path / "out")


def test_more_unusable_rows_than_allowed_are_refused_with_the_commonest_reasons(tmp_path: Path) -> None:
    rows: list[Any] = [product(number) for number in range(10)]
    rows += (
        [{**product(number), "content": ""} for number in range(10, 16)] + [b"x"] * 3 + [{**rows[0], "uid": "again"}]
    )
    path = written(tmp_path / "a", rows)
    with pytest.raises(DataError) as caught:
        prepared(path, tmp_path / "out", max_rejected=0.4)
    assert str(caught.value).startswith(
        f"{path}: 9 of 20 rows cannot be used (45%), catalogue.max_rejected allows 40%. The commonest reasons: "
        "6 × no content (first: a:11, the column content is empty, absent, or holds no text); "
        "3 × invalid JSON (first: a:17"
    )
    assert prepared(path, tmp_path / "out", max_rejected=0.45).num_rows == 10


# -- repetitions and the split ---------------------------------------------------------------------


def repetitive(folder: Path) -> Path:
    rows = [product(number) for number in range(200)]
    rows[50] |= {"title": rows[7]["title"], "content": rows[7]["content"]}
    rows[60]["content"] = rows[8]["content"]
    rows[61]["content"] = rows[8]["content"].upper()
    rows[70]["content"] = rows[9]["content"] + " And one more word."
    rows[80]["content"] = rows[80]["title"] + "!"
    return written(folder / "repetitive.jsonl", rows)


def test_repetitions_are_counted_and_kept_or_dropped_as_the_recipe_says(tmp_path: Path) -> None:
    path = repetitive(tmp_path)
    keep = dict.fromkeys(["content_equals_title", "boilerplate", "exact_duplicates", "near_duplicates"], "keep")
    found = {"content_equals_title": 1, "exact_duplicates": 1, "boilerplate": 2, "near_duplicates": 1}
    for choices, lost in (
        (keep, 0),
        ({}, 4),
        ({**keep, "near_duplicates": "drop"}, 1),
        ({"near_duplicates": "drop"}, 5),
    ):
        catalogue = prepared(path, tmp_path / "out", **choices)
        assert {name: of["rows"] for name, of in catalogue.report["found"].items()} == found, choices
        assert catalogue.num_rows == 200 - lost
        assert [row["line"] for row in rejected_of(catalogue)] == sorted(
            {51, 61, 62, 71, 81} - {r["line"] for r in rows_of(catalogue)}
        )
        assert catalogue.report["rejected"].get("near duplicate", 0) == (choices.get("near_duplicates") == "drop")
    rows = {row["line"]: row for row in rows_of(prepared(path, tmp_path / "out", **keep))}
    for first, others in ((8, [51]), (9, [61, 62]), (10, [71])):
        assert {(rows[line]["cluster"], rows[line]["split"]) for line in [first, *others]} == {
            (rows[first]["cluster"], rows[first]["split"])
        }


def plain_draw(uid: str, seed: int) -> int:
    """FNV-1a and MurmurHash3's finisher, one byte at a time."""
    mask = (1 << 64) - 1
    value = (0xCBF29CE484222325 ^ (seed * 0x100000001B3)) & mask
    for byte in uid.encode():
        value = ((value ^ byte) * 0x100000001B3) & mask
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = ((value ^ (value >> 33)) * factor) & mask
    return value ^ (value >> 33)


def test_a_product_is_drawn_by_its_uid_and_the_seed_alone(tmp_path: Path) -> None:
    uids = ["", "0", "0000031909", "000100039X", "line-12", "ação", "x" * 200]
    for seed in (0, 1, -3, 2**70):
        assert draw_uids(polars.Series(uids), seed).tolist() == [plain_draw(uid, seed) for uid in uids]
    rows = [product(number) for number in range(400)]
    few = prepared(written(tmp_path / "few", rows[:200]), tmp_path / "out-few")
    many = prepared(written(tmp_path / "many", rows[200:] + rows[:200]), tmp_path / "out-many")
    places = {row["uid"]: row["split"] for row in rows_of(many)}
    assert all(places[row["uid"]] == row["split"] for row in rows_of(few)), "others must not move a product"
    other = prepared(tmp_path / "few", tmp_path / "out-other", seed=2)
    assert [row["split"] for row in rows_of(other)] != [row["split"] for row in rows_of(few)]
    shares = {split: of["rows"] / 400 for split, of in many.report["splits"].items()}
    assert shares == pytest.approx(SHARES, abs=0.05)  # three standard deviations of 400 draws


@pytest.mark.parametrize("count", [3, 4, 7, 20])
def test_each_split_of_a_small_catalogue_has_a_row(tmp_path: Path, count: int) -> None:
    for seed in range(6):
        catalogue = prepared(written(tmp_path / "a", [product(n) for n in range(count)]), tmp_path / "out", seed=seed)
        assert min(of["rows"] for of in catalogue.report["splits"].values()) >= 1
        assert sum(of["rows"] for of in catalogue.report["splits"].values()) == count


# -- an independent count --------------------------------------------------------------------------


def counted_again(path: Path) -> dict[str, Any]:
    """The report's numbers, in plain Python: one row after the other, every pair compared."""
    import html

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [(row["title"], row["content"]) for row in rows]
    letters = [["".join(filter(str.isalnum, html.unescape(text).casefold())) for text in pair] for pair in texts]
    normal: list[int] = []
    for number, (_, content) in enumerate(texts):
        only_a_remark = content.strip(" -").startswith("This text refers to") and content.count(".") == 1
        if not only_a_remark and letters[number][0] != letters[number][1]:
            normal.append(number)
    return {"rows": len(rows), "entities": sum(any(html.unescape(t) != t for t in pair) for pair in texts),
            "remarks": sum("This text refers to" in content for _, content in texts), "usable": normal}  # fmt: skip


@pytest.mark.shared
def test_an_independent_count_of_the_shared_rows_agrees(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "products" / "lf_amazon_head_500.jsonl"
    catalogue = prepared(path, tmp_path / "out")
    again, report, rows = counted_again(path), catalogue.report, rows_of(catalogue)
    assert report["rows"]["read"] == again["rows"] == 500
    assert report["steps"]["entities_unescaped"] == again["entities"]
    assert report["steps"]["remarks_removed"] == again["remarks"]
    # Repetitions among the clean texts: every pair of them.
    assert len(again["usable"]) == 500 - report["rejected"]["no content"] - report["rejected"]["content equals title"]
    everything = prepared(path, tmp_path / "all", exact_duplicates="keep", boilerplate="keep")
    kept = rows_of(everything)
    assert [row["line"] - 1 for row in kept] == again["usable"]
    texts = [(normalise_text(row["title"]), normalise_text(row["content"])) for row in kept]
    grams = [frozenset(hash(tuple(c.split()[i : i + 3])) for i in range(len(c.split()) - 2)) for _, c in texts]
    components, exact, boilerplate, near = Components(len(texts)), 0, 0, 0
    for later, (title, content) in enumerate(texts):
        before = texts[:later]
        first = next((number for number, (_, other) in enumerate(before) if other == content), later)
        exact += (title, content) in before
        boilerplate += first < later and texts[first][0] != title
        alike = [n for n in range(first) if jaccard(grams[n], grams[first]) >= 0.8 and texts[n][1] != content]
        near += bool(alike)
        for number in [*alike, first, *(n for n, (other, _) in enumerate(before) if other == title)]:
            components.join(number, later)
    assert report["found"]["exact_duplicates"]["rows"] == exact
    assert report["found"]["boilerplate"]["rows"] == boilerplate
    assert report["found"]["near_duplicates"]["rows"] == near
    roots = [components.find(number) for number in range(len(texts))]
    assert everything.report["clusters"] == {
        "clusters": len(set(roots)),
        "largest": Counter(roots).most_common(1)[0][1],
    }
    # The rest follows from the shards themselves.
    assert report["rows"]["kept"] == len(rows) == 500 - sum(report["rejected"].values())
    assert Counter(row["kind"] for row in rejected_of(catalogue)) == report["rejected"]
    for split, of in report["splits"].items():
        mine = [row for row in rows if row["split"] == split]
        assert of == {"rows": len(mine), "clusters": len({row["cluster"] for row in mine})}
    assert sum(of["clusters"] for of in report["splits"].values()) == report["clusters"]["clusters"], (
        "a cluster is split"
    )
    for column, spread in report["characters"].items():
        lengths = sorted(len(row[column]) for row in rows)
        wanted = {f"p{p}": lengths[-(-len(lengths) * p // 100) - 1] for p in (50, 90, 99)}
        assert spread == {
            "min": lengths[0],
            **wanted,
            "max": lengths[-1],
            "mean": round(sum(lengths) / len(lengths), 1),
        }
    assert report["languages"]["sampled"] == len(rows)
    assert sum(report["languages"]["contents"].values()) == len(rows)
    left_out = len(rejected_of(catalogue))
    assert f"rows: 500 read, {left_out} left out, {len(rows)} kept" in summary_lines(report)


def test_tokens_are_counted_over_the_sample_that_the_report_names(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [product(number, words=3 * (number % 7 + 1)) for number in range(50)])
    catalogue = prepare_catalogue(
        CatalogueConfig(path=path), tmp_path / "out", seed=1, shares=SHARES,
        count_tokens=lambda texts: [len(text.split()) for text in texts],
    )  # fmt: skip
    lengths = sorted(len(row["content"].split()) for row in rows_of(catalogue))
    tokens = catalogue.report["tokens"]
    assert tokens["sampled"] == 50
    assert tokens["content"] == {
        "min": lengths[0],
        "p50": lengths[24],
        "p90": lengths[44],
        "p99": lengths[49],
        "max": lengths[-1],
    }
    assert any("tokens of a content (sample of 50)" in line for line in summary_lines(catalogue.report))


# -- again, otherwise, at once ---------------------------------------------------------------------


def test_what_is_there_is_not_made_again_and_what_changed_is(tmp_path: Path) -> None:
    path = repetitive(tmp_path)
    said: list[str] = []
    config = CatalogueConfig(path=path)
    first = prepare_catalogue(config, tmp_path / "out", seed=1, shares=SHARES, tell=said.append)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != ".lock"}
    later = config.model_copy(update={"shards": "all", "max_rejected": 0.1, "system": "Sell", "max_train_rows": 5})
    again = prepare_catalogue(later, tmp_path / "out", seed=1, shares=SHARES, tell=said.append)
    assert again == first
    assert said == [f"{tmp_path / 'out'}: prepared before, from the same source and settings"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert prepared(path, tmp_path / "out", seed=2).key != first.key
    with path.open("ab") as file:
        file.write(json.dumps(product(999)).encode() + b"\n")
    assert prepared(path, tmp_path / "out").num_rows == first.num_rows + 1
    assert {name for name in outcome(tmp_path / "out") if "work" in name} == set()


def test_fewer_shards_leave_none_of_the_earlier_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [product(number) for number in range(40)])
    prepared(path, tmp_path / "out", shard_rows=10)
    prepared(path, tmp_path / "out", shard_rows=30)
    assert sorted(p.name for p in (tmp_path / "out" / "shards").glob("*.parquet")) == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]


def test_a_folder_that_is_not_whole_is_named(tmp_path: Path) -> None:
    catalogue = prepared(written(tmp_path / "a", [product(n) for n in range(20)]), tmp_path / "out")
    assert Catalogue.load(tmp_path / "out") == catalogue
    path = catalogue.file(0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"shard-00000\.parquet is not as it was written\. Run: afina prepare"):
        Catalogue.load(tmp_path / "out")
    assert prepared(tmp_path / "a", tmp_path / "out") == catalogue, "a damaged shard is made again"
    with pytest.raises(RunError, match="holds no complete catalogue"):
        Catalogue.load(tmp_path)


def test_two_processes_cannot_prepare_one_folder(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [product(number) for number in range(20)])
    with only_one(tmp_path / "out"), pytest.raises(RunError, match="another process is preparing this catalogue"):
        prepared(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0-2", [0, 1, 2]), ("3,0-1,1", [0, 1, 3]), ("all", [0, 1, 2, 3]), ("3-3", [3])]
)
def test_shards_are_named_by_numbers_and_ranges(text: str, numbers: list[int]) -> None:
    assert parse_shards(text, 4) == numbers


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("4", 4, "the catalogue has 4 shards, 0 to 3; there is no 4"),
        ("2-9", 4, "there is no 9"),
        ("1", 1, "the catalogue has one shard, 0; there is no 1"),
        ("3-1", 4, "expected the smaller number first: 1-3"),
        ("a", 4, "expected numbers of shards as 0, 0-4 or 0,7, or all"),
        ("", 4, "expected numbers"),
        ("1,,2", 4, "expected numbers"),
        ("-1", 4, "expected numbers"),
    ],
)
def test_a_shard_that_there_is_not_is_refused_by_name(text: str, count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_shards(text, count)


# -- killed, and out of space ----------------------------------------------------------------------

SCRIPT = """
import functools, json, resource, sys
from pathlib import Path
from afina.catalogue import prepare, stream
from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import AfinaError

if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:3])
    shard_rows, most_bytes = map(int, sys.argv[3:5])
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    prepare.blocks = functools.partial(stream.blocks, size=100_000)
    config = CatalogueConfig(path=source, shard_rows=shard_rows)
    try:
        prepare.prepare_catalogue(config, folder, seed=1, shares={"train": 0.8, "validation": 0.1, "test": 0.1})
    except AfinaError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def dirty_file(folder: Path, words: int = 60) -> Path:
    rows: list[Any] = [product(number, words) for number in range(3000)]
    for number in range(0, 3000, 7):
        rows[number]["content"] = "<p>Caf&eacute; &amp;amp; more.</p>  " + rows[number]["content"]
    for number in range(0, 3000, 11):
        rows[number]["content"] = ""
    for number in range(0, 3000, 50):
        rows[number] = b"broken"
    rows[777] = {**product(777), "uid": rows[776]["uid"]}
    rows[1500] = {**product(1500), "content": rows[1]["content"]}
    path = folder / "dirty.jsonl.gz"
    path.write_bytes(gzip.compress(written(folder / "dirty", rows).read_bytes()))
    return path


def begin(folder: Path, source: Path, out: Path, shard_rows: int = 400, most_bytes: int = 0) -> subprocess.Popen[str]:
    """most_bytes: that a file may have, as if the disk were full then; 0 for no limit."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(source), str(out), str(shard_rows), str(most_bytes)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def end_of_group(group: int, seconds: float = 20) -> bool:
    """Whether all processes of the group are gone within that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_and_ends_the_same(tmp_path: Path) -> None:
    source, rng = dirty_file(tmp_path), random.Random(5)
    began = time.monotonic()
    whole = begin(tmp_path, source, tmp_path / "whole")
    assert whole.wait(timeout=50) == 0
    usual_s = time.monotonic() - began
    wanted = outcome(tmp_path / "whole")
    assert {"manifest.json", "report.json", "rejected.jsonl", "shards/shard-00000.parquet"} <= set(wanted)
    kills = 0
    for _ in range(10):
        process = begin(tmp_path, source, tmp_path / "killed")
        time.sleep(rng.uniform(0.05, 0.9) * usual_s)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert end_of_group(process.pid), "a worker outlives the process that started it"
        shards = {name for name in outcome(tmp_path / "killed") if name.startswith("shards/shard")}
        left = outcome(tmp_path / "killed")
        assert all(left[name] == wanted[name] for name in shards), "half a shard stands under its name"
        if process.returncode == 0:  # it was done before: from the beginning again
            assert left == wanted
            subprocess.run(["rm", "-r", str(tmp_path / "killed")], check=True)
    assert kills >= 5
    last = begin(tmp_path, source, tmp_path / "killed")
    assert last.wait(timeout=50) == 0, last.stderr and last.stderr.read()
    assert outcome(tmp_path / "killed") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [20_000, 4_500_000])  # too little for a part; for all but a shard's JSON Lines
def test_a_full_disk_is_one_line_and_leaves_no_half_shard(tmp_path: Path, most_bytes: int) -> None:
    source = dirty_file(tmp_path, words=300)
    process = begin(tmp_path, source, tmp_path / "out", 3000, most_bytes)
    _, error = process.communicate(timeout=50)
    assert process.returncode == 1
    message = error.strip().splitlines()[-1]
    assert message.startswith("MachineError: ")
    assert "the disk is full, or a limit is reached. Free some space, or choose another folder" in message
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "manifest.json").exists()
    left = outcome(tmp_path / "out")
    assert not [name for name in left if ".tmp" in name]
    assert ("shards/shard-00000.parquet" in left) == (most_bytes > 1_000_000)
    assert begin(tmp_path, source, tmp_path / "out", 3000).wait(timeout=50) == 0
    whole = outcome(tmp_path / "out")
    assert all(whole[name] == data for name, data in left.items() if name.startswith("shards/"))
    assert Catalogue.load(tmp_path / "out").report["rows"]["read"] == 3000


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [product(number) for number in range(20)])
    (tmp_path / "file").write_text("a file")
    with pytest.raises(MachineError, match="a file stands where a folder is needed"):
        prepared(path, tmp_path / "file" / "out")


# -- training files --------------------------------------------------------------------------------


def test_training_files_say_the_same_in_every_format(tmp_path: Path) -> None:
    rows: list[Any] = [product(number) for number in range(120)]
    rows[5] |= {"title": "Braces {0} {title}", "content": "Um livro que não é sobre a cidade, mas sobre as ruas."}
    catalogue = prepared(written(tmp_path / "a", rows), tmp_path / "out", shard_rows=60)
    config = CatalogueConfig(path=tmp_path / "a", system="Sell.")
    paths = export(catalogue, "0-1", ["completion", "alpaca", "chat", "openai"], config)
    assert len(paths) == 16, "two shards, two splits, four formats"
    known = {row["uid"]: row for row in rows_of(catalogue)}
    train = [row for row in known.values() if row["split"] == "train"]

    def lines(name: str, ending: str = "") -> list[Any]:
        files = sorted((tmp_path / "out" / "formats" / name).glob(f"shard-0000?{ending}.jsonl"))
        assert len(files) == 2
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    completion, alpaca, chat = lines("completion"), lines("alpaca"), lines("chat")
    assert [(row["prompt"], row["completion"]) for row in completion] == [
        (f"{r['title']}\n\n", r["content"]) for r in train
    ]
    assert [row["output"] for row in alpaca] == [row["content"] for row in train]
    assert chat == lines("openai")
    for row, said, messages in zip(train, alpaca, (turn["messages"] for turn in chat), strict=True):
        assert [message["role"] for message in messages] == ["system", "user", "assistant"]
        assert [message["content"] for message in messages] == ["Sell.", said["input"], row["content"]]
        assert said["instruction"] == "Sell."
        assert row["title"] in said["input"]
    assert len({said["input"].replace(row["title"], "") for row, said in zip(train, alpaca, strict=True)}) >= 3
    validation = {row["output"] for row in lines("alpaca", "-validation")}
    assert validation == {row["content"] for row in known.values() if row["split"] == "validation"}
    for path in paths:
        if "alpaca" not in path.parts and "validation" not in path.name:
            checked = check(path, completion_model="completion" in path.parts)
            assert checked.num_examples >= 10
            assert checked.num_bad_lines == 0
    again = {path: path.read_bytes() for path in paths}
    export(catalogue, [0, 1], ["completion", "alpaca", "chat", "openai"], config)
    assert {path: path.read_bytes() for path in paths} == again
    export(catalogue, "1", ["chat"], config)
    assert len(list((tmp_path / "out" / "formats" / "chat").iterdir())) == 2, "files of other shards would be stale"


def test_a_product_is_asked_for_in_the_language_of_its_description(tmp_path: Path) -> None:
    from afina.catalogue.export import Questions

    asking = Questions(CatalogueConfig(path=tmp_path))
    portuguese = "Um livro que não é sobre a cidade, mas sobre as ruas."
    english = "This is a book about the city and its streets."
    starts = {asking.ask(str(number), "X", portuguese).split()[0] for number in range(30)}
    assert starts == {"Do", "Descreva", "O"}
    assert {asking.ask(str(number), "X", english).split()[0] for number in range(30)} == {"What", "Can", "Tell"}
    assert asking.ask("7", "A {title} {0}", english).count("A {title} {0}") == 1
    only = Questions(CatalogueConfig(path=tmp_path, questions=["{title}?"]))
    assert only.ask("1", "X", english) == "X?"


def test_a_missing_library_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afina.catalogue.libraries import library

    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(written(tmp_path / "a", [product(number) for number in range(20)]).read_bytes()))
    monkeypatch.setitem(sys.modules, "isal.igzip", None)
    library.cache_clear()
    with pytest.raises(
        MachineError, match=r"isal, which is not installed\. Install it: pip install 'afina\[assistant\]'"
    ):
        prepared(path, tmp_path / "out")
    library.cache_clear()
