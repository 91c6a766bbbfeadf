"""Cleaning a product's texts: what each rule changes, what it leaves, and that the fast way is the plain one."""

from __future__ import annotations

import csv
import gzip
import json
import re
import time
from pathlib import Path

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.catalogue.clean import (
    CHARACTERS,
    ENTITIES,
    GLUED_SENTENCES,
    MARKUP,
    REMARKS,
    STEP_NAMES,
    WHITE_SPACE,
    clean_column,
    clean_text,
)
from afina.catalogue.judging import clean_row, clean_table, repeats_title
from afina.catalogue.language import count_languages, guess_language
from afina.catalogue.repair import looks_garbled
from afina.catalogue.rows import ROWS
from afina.core.catalogue_config import ENGLISH_QUESTIONS, PORTUGUESE_QUESTIONS, CatalogueConfig

CHANGED = [
    # entities: named, decimal, hexadecimal, escaped twice and three times, C1 codes, without their semicolon
    ("Kerr&#8217;s cat", "Kerr’s cat", ENTITIES),
    ("Kerr&#x2019;s cat", "Kerr’s cat", ENTITIES),
    ("caf&eacute; &mdash; open", "café — open", ENTITIES),
    ("it&#x92;s &#147;new&#148;", "it’s “new”", ENTITIES),
    ("rock &amp;amp; roll &amp;#8217;n", "rock & roll ’n", ENTITIES),
    ("a &amp;amp;amp; b", "a & b", ENTITIES),
    ("&quot;Yes&quot; &amp no", '"Yes" & no', ENTITIES),
    ("Kerr&#39s cat", "Kerr's cat", ENTITIES),
    ("1&#160;kg", "1 kg", ENTITIES | WHITE_SPACE),
    ("P&EACUTE;REZ", "PÉREZ", ENTITIES),
    # characters
    ("itâ€™s", "it’s", CHARACTERS),
    ("cafÃ© com aÃ§Ãºcar", "café com açúcar", CHARACTERS),
    ("it&acirc;&euro;&trade;s", "it’s", ENTITIES | CHARACTERS),
    ("it\x92s", "it’s", CHARACTERS),
    ("cafe\u0301", "café", CHARACTERS),
    # HTML
    ("<b>Bold</b> and <i class='x'>italic</i>", "Bold and italic", MARKUP),
    ("One.<br>Two<br/>three<p>four</p>", "One. Two three four", MARKUP | WHITE_SPACE),
    ("<ul><li>first</li><li>second</li></ul>", "first second", MARKUP | WHITE_SPACE),
    ('<img src="a.png" alt="a > b">A mug', "A mug", MARKUP),
    ("&lt;p&gt;Good &amp;amp; cheap&lt;/p&gt;", "Good & cheap", ENTITIES | MARKUP | WHITE_SPACE),
    ('<span class="a-size-medium a-color-secondary"', "", MARKUP),
    ('A mug <img alt="cut he', "A mug", MARKUP | WHITE_SPACE),
    ("before<!-- a <b> comment -->after", "beforeafter", MARKUP),
    ("<script>if (a<b) alert('x')</script>Text<style>p {}</style>", "Text", MARKUP),
    ("a < b <b>and</b> c <3 d", "a < b and c <3 d", MARKUP),
    # white space and what cannot be seen
    ("  two   spaces\tand a\r\nline\u00a0end ", "two spaces and a line end", WHITE_SPACE),
    ("soft\u00adhyphen zero\u200bwidth \u202eback\x00 \x07bell", "softhyphen zerowidth back bell", WHITE_SPACE),
    # remarks on editions, glued as they are distributed
    ("A novel.This text refers to thePaperbackedition.", "A novel.", REMARKS),
    ("A novel. This text refers to an alternateHardcoveredition.", "A novel.", REMARKS),
    ("This text refers to an out of print or unavailable edition of this title.", "", REMARKS),
    ("Good. --This text refers to the Kindle Edition edition. Bad.", "Good. Bad.", REMARKS),
    ("Good.This text refers to theKindle Editionedition.", "Good.", REMARKS),
    ("One.This text refers to thePrint on Demand (Paperback)edition.Two", "One. Two", REMARKS),
    ("Good.This text refers to an out of print...", "Good.", REMARKS),
    # sentences
    ("I like movies.The next one", "I like movies. The next one", GLUED_SENTENCES),
    ("Is it good?A friend says so!We agree.I do", "Is it good? A friend says so! We agree. I do", GLUED_SENTENCES),
    ("(Jan.)Copyright 2000 Reed.", "(Jan.) Copyright 2000 Reed.", GLUED_SENTENCES),
    ("wait...There it is", "wait... There it is", GLUED_SENTENCES),
]
UNCHANGED = [
    "",
    "A plain text, with a comma; and 'quotes'.",
    "AT&T and Black & Decker, R&D; Q&A",
    "https://example.com/?a=1&lt=3&copy=2",
    "&notanentity; &#xZZ; &;",
    "a < b, 3 > 2, <3, x <b and y> c, <sigh>, -->",
    "if a<b then c",
    "“Typographic” quotes – and dashes… stay",
    "Ação, coração, não; Größe; Ελλάδα; Москва; 日本語",
    "U.S.A. and Ph.D. and e.g. this",
    "see example.com, Amazon.Com, Node.js, Vue.Js, ASP.NET and System.Collections.Generic",
    "version 3.5, fig.A, file.Html, www.Some.Site, me@mail.Provider",
    "This text refers to nothing in particular",
    "👩‍🚀 and می‌خواهم keep their joiners",
    "C++ <iostream> and List<String>",
]


@pytest.mark.parametrize(("text", "clean", "steps"), CHANGED)
def test_each_rule_changes_what_it_should(text: str, clean: str, steps: int) -> None:
    assert clean_text(text) == (clean, steps)


@pytest.mark.parametrize("text", UNCHANGED)
def test_what_is_sound_stays_as_it_is(text: str) -> None:
    assert clean_text(text) == (text, 0)


def test_cleaning_comes_before_anything_that_reads_punctuation() -> None:
    # A published cleaner of the same catalogue made 8217 of this.
    assert "8217" not in clean_text("best&#8211;selling Kerr&amp;#8217;s")[0]


def test_half_of_the_rules_fire_in_one_text_and_each_is_counted() -> None:
    text = "<p>It&#8217;s  good.This text refers to thePaperbackedition.</p> cafÃ©! Read.More here"
    assert clean_text(text) == ("It’s good. café! Read. More here", sum(STEP_NAMES))


# -- the fast way ----------------------------------------------------------------------------------

PIECES = [
    "word", "The", "a", "A", "I", "edition", "e.g.", "3.5", " ", "  ", "\t", "\n", "\u00a0", "\u200b", "\x00",
    "\x85", ".", "!", "?", "...", ")", "”", "“", "’", "'", '"', "<", ">", "<b>", "</b>", "<br/>", "<p class='",
    '<img src="', "<!--", "-->", "</", "& ", "&amp;", "&amp;amp;", "&#8217;", "&#x92;", "&lt;b&gt;", "&#0;",
    "&nbsp", "&", ";", "â€™", "Ã©", "Ã ", "é", "e\u0301", "Œ", "Â", "ГўВЂВ", "\ufffd", "This text refers to",
    " the", "Paperback", "This", " text", "--", "/", "com", "www.", "@", "日本", "👩‍🚀",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_a_column_is_cleaned_as_its_texts_are(texts: list[str]) -> None:
    clean, steps = clean_column(polars.Series("text", texts, dtype=polars.String))
    assert list(zip(clean.to_list(), steps.to_list(), strict=True)) == [clean_text(text) for text in texts]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", " ", "B00X", "1" * 300, "a\nb"]), TEXTS, TEXTS), max_size=8), st.booleans()
)
def test_a_table_is_judged_as_its_rows_are(rows: list[tuple[str, str, str]], keep: bool) -> None:
    config = CatalogueConfig(
        path=Path("x"), max_title_chars=20, max_content_chars=40, min_content_chars=3,
        content_equals_title="keep" if keep else "drop",
    )  # fmt: skip
    compare_with_rows(rows, config)


def compare_with_rows(rows: list[tuple[str, str, str]], config: CatalogueConfig) -> None:
    table = polars.DataFrame([(line, *row) for line, row in enumerate(rows, 1)], schema=ROWS, orient="row")
    done = clean_table(table, config)
    judged = [(line, row[0], clean_row(*row, config)) for line, row in enumerate(rows, 1)]
    assert done.table.rows() == [(line, uid, row.title, row.content) for line, uid, row in judged if not row.kind]
    assert done.rejected.rows() == [(line, uid[:200], row.kind, row.reason) for line, uid, row in judged if row.kind]
    assert done.num_cleaned == sum(row.cleaned for *_, row in judged)
    assert done.num_equal == sum(row.equal for *_, row in judged)
    assert done.steps == {name: sum(bool(row.steps & step) for *_, row in judged) for step, name in STEP_NAMES.items()}


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_neighbourhoods_tell_of_mojibake_what_the_whole_text_tells(text: str) -> None:
    from ftfy.badness import is_bad

    assert looks_garbled(text) == is_bad(text)


@pytest.mark.shared
def test_all_shared_rows_are_cleaned_alike_both_ways(shared_data: Path) -> None:
    rows = [(f"u{number}", title, content) for number, (title, content) in enumerate(shared_rows(shared_data))]
    assert len(rows) == 500 + 500 + 3686 + 200 + 162
    compare_with_rows(rows, CatalogueConfig(path=Path("x")))
    changed = [clean_text(text)[1] for row in rows for text in row[1:]]
    idle = [name for step, name in STEP_NAMES.items() if not any(steps & step for steps in changed)]
    assert not idle, f"rules that found nothing in 5,048 rows: {idle}"


def shared_rows(shared: Path) -> list[tuple[str, str]]:
    """(title, content) of everything that looks like a catalogue."""
    products, dirt = shared / "products", shared / "dirt"
    rows = [json.loads(line) for line in (products / "lf_amazon_head_500.jsonl").read_text().splitlines()]
    pairs = [(row["title"], row["content"]) for row in rows]
    raw = [json.loads(line)["messages"] for line in (products / "lf_amazon_raw_500.jsonl").read_text().splitlines()]
    pairs += [(messages[0]["content"], messages[1]["content"]) for messages in raw]
    items = json.loads((products / "industrial_items.json").read_text())
    pairs += [(item["title"], item["description"]) for item in items.values()]
    with gzip.open(dirt / "magazines_200.json.gz", "rt") as file:
        pairs += [(row["title"], " ".join(row["description"])) for row in map(json.loads, file)]
    with (dirt / "tweets_mg_200.csv").open(encoding="utf-8", newline="") as file:
        pairs += [(row["Username"], row["Text"]) for row in csv.DictReader(file)]
    return pairs


@pytest.mark.shared
def test_no_dirt_is_left_in_the_shared_rows(shared_data: Path) -> None:
    clean = [clean_text(text)[0] for pair in shared_rows(shared_data)[:1000] for text in pair]
    for dirt in (
        r"&#?\w+;",
        r"This text refers to (the|an alternate)",
        r"<[a-z/]",
        r"[\x00-\x1f\x80-\x9f\u00a0]",
        "  ",
    ):
        found = [text for text in clean if re.search(dirt, text)]
        assert not found, f"{dirt} is left in {len(found)} of {len(clean)} texts, as {found[0][:200]}"


# -- hostile texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece", ["<a b='", "<!--", "<b ", "&amp;", "&", "ab.Cd", "a.Cd ", "This text refers to the ", "\u00e2\u20ac", "<p"]
)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    clean_text(text)
    # A pattern that reads on from every beginning takes minutes; an honest one well below a second.
    assert time.process_time() - began < 10


def test_a_title_of_200000_characters_is_rejected_before_it_is_cleaned() -> None:
    row = clean_row("u", "&amp;" * 40_000, "text", CatalogueConfig(path=Path("x")))
    assert (row.kind, row.cleaned) == ("title too long", False)
    assert row.reason == "200000 characters, catalogue.max_title_chars is 2000"


# -- contents that repeat their titles -------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "content", "equal"),
    [
        ("A Mug", "A mug.", True),
        ("A Mug", "A-MUG!!!", True),
        ("Café", "CAFÉ...", True),
        ("A Mug", "A mug, blue", False),
        ("!!!", "???", False),
        ("!!!", "!!!", True),
        ("A", "a" + "!" * 40, False),  # someone meant something with it
    ],
)
def test_a_content_may_say_no_more_than_its_title(title: str, content: str, equal: bool) -> None:
    assert repeats_title(title, content) is equal


# -- languages -------------------------------------------------------------------------------------


def test_the_languages_of_questions_and_descriptions_are_told_or_left_open() -> None:
    assert {guess_language(question) for question in ENGLISH_QUESTIONS} == {"en"}
    assert {guess_language(question) for question in PORTUGUESE_QUESTIONS} == {"pt"}
    assert guess_language("Um livro sobre a cidade, com fotos que mostram as ruas.") == "pt"
    assert guess_language("4 x AA 1.5V") is None


def test_languages_are_counted_most_frequent_first() -> None:
    english = "This is a book about the city and its streets, with many photographs of them."
    portuguese = "Este é um livro sobre a cidade e as suas ruas, com muitas fotografias delas."
    assert count_languages([english, portuguese, english, "12 34"]) == {"en": 2, "none": 1, "pt": 1}
