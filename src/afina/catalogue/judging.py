"""Which rows can be used: cleaned, and judged by the recipe's limits.

Comes in: rows as they were read. Goes out: clean rows, and for each of the others what it is counted by and why. A row
that is blank in the source is not cleaned first. `clean_row` is the definition; `clean_table` gives the same for a
block, and tests hold one against the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import polars

from afina.catalogue.clean import STEP_NAMES, clean_column, clean_text
from afina.catalogue.rows import REJECTED
from afina.core.catalogue_config import CatalogueConfig

MAX_UID_CHARS = 200
RAW_TIMES = 10  # as long as allowed, in the source: an entity is up to ten characters
BLANK = " \t\r\n"
CONTROL = r"[\x00-\x1f\x7f]"
EQUALS_TITLE = "content equals title"

Rule = tuple[str, Callable[[str, str, str], bool], polars.Expr]


@dataclass
class CleanTable:
    """table: usable rows, as `rows.ROWS`. rejected: as `rows.REJECTED`. num_cleaned: rows that were not blank.

    steps: name -> rows it changed, of those cleaned. num_equal: whose content repeats the title, dropped or not.
    """

    table: polars.DataFrame
    rejected: polars.DataFrame
    num_cleaned: int = 0
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STEP_NAMES.values(), 0))
    num_equal: int = 0


@dataclass(frozen=True)
class CleanRow:
    """kind, reason: empty for a usable row. steps: bits of `clean.STEP_NAMES`. equal: the content repeats the title."""

    title: str
    content: str
    kind: str = ""
    reason: str = ""
    cleaned: bool = False
    steps: int = 0
    equal: bool = False


def clean_row(uid: str, title: str, content: str, config: CatalogueConfig) -> CleanRow:
    """One row, cleaned and judged."""
    if kind := _first_broken(_raw_rules(config), uid, title, content):
        return CleanRow(title, content, kind, _reason(kind, uid, title, content, config))
    (title, of_title), (content, of_content) = clean_text(title), clean_text(content)
    steps = of_title | of_content
    if kind := _first_broken(_clean_rules(config), uid, title, content):
        return CleanRow(title, content, kind, _reason(kind, uid, title, content, config), True, steps)
    equal = repeats_title(title, content)
    if equal and config.content_equals_title == "drop":
        reason = _reason(EQUALS_TITLE, uid, title, content, config)
        return CleanRow(title, content, EQUALS_TITLE, reason, True, steps, equal)
    return CleanRow(title, content, cleaned=True, steps=steps, equal=equal)


def clean_table(table: polars.DataFrame, config: CatalogueConfig, cleaning: bool = True) -> CleanTable:
    """What `clean_row` gives for every row, in order. cleaning: False only judges, for a measurement."""
    table, rejected = _judge(table, _raw_rules(config), config)
    done = CleanTable(table, rejected, table.height)
    if cleaning:
        title, of_title = clean_column(table["title"])
        content, of_content = clean_column(table["content"])
        table = table.with_columns(title=title, content=content)
        steps = of_title | of_content
        done.steps = {name: int((steps & step > 0).sum()) for step, name in STEP_NAMES.items()}
    table, broken = _judge(table, _clean_rules(config), config)
    equal = _repeating_titles(table)
    done.num_equal = int(equal.sum())
    if config.content_equals_title == "drop" and done.num_equal:
        dropped = _with_reason(table.filter(equal).with_columns(kind=polars.lit(EQUALS_TITLE)), config)
        broken, table = polars.concat([broken, dropped]), table.filter(~equal)
    done.table, done.rejected = table, polars.concat([rejected, broken]).sort("line")
    return done


# -- the rules -------------------------------------------------------------------------------------


def _raw_rules(config: CatalogueConfig) -> list[Rule]:
    """(kind, in Python, in polars), in the order in which a row is judged. All of them on rows as they were read."""
    return [
        ("no uid", lambda u, t, c: not u.strip(BLANK), _blank("uid")),
        ("uid too long", lambda u, t, c: len(u) > MAX_UID_CHARS, _longer("uid", MAX_UID_CHARS)),
        ("unusable uid", lambda u, t, c: bool(re.search(CONTROL, u)), polars.col("uid").str.contains(CONTROL)),
        ("no title", lambda u, t, c: not t.strip(BLANK), _blank("title")),
        ("no content", lambda u, t, c: not c.strip(BLANK), _blank("content")),
        *_length_rules(config, RAW_TIMES),
    ]


def _clean_rules(config: CatalogueConfig) -> list[Rule]:
    return [
        ("no title", lambda u, t, c: not t, polars.col("title") == ""),
        ("no content", lambda u, t, c: not c, polars.col("content") == ""),
        *_length_rules(config, 1),
        (
            "content too short",
            lambda u, t, c: len(c) < config.min_content_chars,
            polars.col("content").str.len_chars() < config.min_content_chars,
        ),
    ]


def _length_rules(config: CatalogueConfig, times: int) -> list[Rule]:
    most_t, most_c = config.max_title_chars * times, config.max_content_chars * times
    return [
        ("title too long", lambda u, t, c: len(t) > most_t, _longer("title", most_t)),
        ("content too long", lambda u, t, c: len(c) > most_c, _longer("content", most_c)),
    ]


def _blank(column: str) -> polars.Expr:
    return polars.col(column).str.strip_chars(BLANK) == ""


def _longer(column: str, most: int) -> polars.Expr:
    # Bytes first: they are known, characters must be counted.
    return (polars.col(column).str.len_bytes() > most) & (polars.col(column).str.len_chars() > most)


def _first_broken(rules: list[Rule], uid: str, title: str, content: str) -> str:
    return next((kind for kind, broken, _ in rules if broken(uid, title, content)), "")


def _judge(
    table: polars.DataFrame, rules: list[Rule], config: CatalogueConfig
) -> tuple[polars.DataFrame, polars.DataFrame]:
    """Rows that break no rule, and the others with the first that they break."""
    kinds = polars.coalesce([polars.when(broken).then(polars.lit(kind)) for kind, _, broken in rules])
    table = table.with_columns(kind=kinds)
    rejected = _with_reason(table.filter(polars.col("kind").is_not_null()), config)
    return table.filter(polars.col("kind").is_null()).drop("kind"), rejected


# -- reasons ---------------------------------------------------------------------------------------


def _reason_parts(config: CatalogueConfig) -> dict[str, tuple[str, str]]:
    """Kind -> what is said of it, with {} for the length of the column that is named behind."""
    return {
        "no uid": (f"the column {config.uid} is empty or absent", ""),
        "uid too long": (f"uid of {{}} characters, at most {MAX_UID_CHARS} are allowed", "uid"),
        "unusable uid": ("the uid holds control characters", ""),
        "no title": (f"the column {config.title} is empty, absent, or holds no text", ""),
        "no content": (f"the column {config.content} is empty, absent, or holds no text", ""),
        "title too long": (f"{{}} characters, catalogue.max_title_chars is {config.max_title_chars}", "title"),
        "content too long": (f"{{}} characters, catalogue.max_content_chars is {config.max_content_chars}", "content"),
        "content too short": (f"{{}} characters, catalogue.min_content_chars is {config.min_content_chars}", "content"),
        EQUALS_TITLE: ("the content says no more than the title", ""),
    }


def _reason(kind: str, uid: str, title: str, content: str, config: CatalogueConfig) -> str:
    said, column = _reason_parts(config)[kind]
    return said.format(len({"uid": uid, "title": title, "content": content}[column])) if column else said


def _with_reason(rejected: polars.DataFrame, config: CatalogueConfig) -> polars.DataFrame:
    """rejected: rows with their kind."""
    reasons = [
        polars.when(polars.col("kind") == kind).then(
            polars.format(said, polars.col(column).str.len_chars()) if column else polars.lit(said)
        )
        for kind, (said, column) in _reason_parts(config).items()
    ]
    return rejected.with_columns(
        reason=polars.coalesce(reasons), uid=polars.col("uid").str.slice(0, MAX_UID_CHARS)
    ).select(list(REJECTED))


# -- contents that repeat their title --------------------------------------------------------------


def repeats_title(title: str, content: str) -> bool:
    """The content has the title's letters and digits and no others, whatever stands between them."""
    if len(content) > 2 * len(title) + 20:
        return False
    letters = _letters(title)
    return letters == _letters(content) if letters else title == content


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _repeating_titles(table: polars.DataFrame) -> polars.Series:
    title, content = polars.col("title"), polars.col("content")
    near = table.select(content.str.len_chars() <= 2 * title.str.len_chars() + 20).to_series()
    found = polars.Series([False] * table.height, dtype=polars.Boolean)
    if near.any():
        pairs = table.filter(near).select("title", "content").iter_rows()
        found = found.scatter(near.arg_true(), [repeats_title(*pair) for pair in pairs])
    return found
