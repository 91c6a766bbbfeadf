"""A product's texts, cleaned: one text in plain Python, and a whole table of them where few need it.

Comes in: titles and contents as they stand in the source. Goes out: clean ones, and the steps that changed each. The
order matters: characters, then markup, then white space, remarks and glued sentences.

`clean_text` is the definition. `clean_column` gives the same: it asks polars which rows could be changed at all, leaves
the others as they are, and closes double spaces itself.
"""

from __future__ import annotations

import polars

from afina.catalogue.markup import strip_markup
from afina.catalogue.repair import repair_characters
from afina.catalogue.wording import MAYBE_GLUED, REMARK_MARK, normalise_space, separate_sentences, strip_remarks

# What changed a text, as bits of a number; the names are those of the report.
ENTITIES, CHARACTERS, MARKUP, WHITE_SPACE, REMARKS, GLUED_SENTENCES = (1 << place for place in range(6))
STEP_NAMES = {
    ENTITIES: "entities_unescaped",
    CHARACTERS: "characters_repaired",
    MARKUP: "html_stripped",
    WHITE_SPACE: "white_space_normalised",
    REMARKS: "remarks_removed",
    GLUED_SENTENCES: "sentences_separated",
}
RULES = (
    (MARKUP, strip_markup),
    (WHITE_SPACE, normalise_space),
    (REMARKS, strip_remarks),
    (GLUED_SENTENCES, separate_sentences),
)
# Rows that Python must see: an entity, a tag, anything outside printable ASCII, a remark, a glued sentence.
SUSPICIOUS = rf"&[#A-Za-z]|<[A-Za-z/!]|[^ -~]|{REMARK_MARK}|{MAYBE_GLUED}"


def clean_text(text: str) -> tuple[str, int]:
    """The clean text and the steps that changed it."""
    sound, unescaped, repaired = repair_characters(text)
    steps = unescaped * ENTITIES + repaired * CHARACTERS
    for step, function in RULES:
        done = function(sound)
        if done != sound:
            steps += step
            sound = done
    return sound, steps


def clean_column(texts: polars.Series) -> tuple[polars.Series, polars.Series]:
    """What `clean_text` gives for every text: clean texts, and steps as uint8. No nulls come in."""
    # 1. In texts of printable ASCII, white space is spaces. Whatever a rule looks for, it looks at it without doubles.
    closed = texts.str.replace_all("  +", " ").str.strip_chars(" ")
    steps = (closed.str.len_bytes() != texts.str.len_bytes()).cast(polars.UInt8) * WHITE_SPACE
    # 2. The texts that a rule could change, one at a time.
    suspects = closed.str.contains(SUSPICIOUS)
    if suspects.any():
        cleaned = [clean_text(text) for text in texts.filter(suspects).to_list()]
        places = suspects.arg_true()
        closed = closed.scatter(places, [text for text, _ in cleaned])
        steps = steps.scatter(places, polars.Series([step for _, step in cleaned], dtype=polars.UInt8))
    return closed, steps
