"""A table -> the text of a first recipe, with comments that say what was guessed.

Comes in: a path. Goes out: YAML that `core.config.load_recipe` reads. The guesses are by shape: long
text is an input, few repeated values are labels, 0/1 columns are one multi-label field. Knows nothing
of meaning: the reader is asked to check.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from afina.core.errors import DataError
from afina.data.columns import is_blank, text_of
from afina.data.formats import read_table
from afina.data.table import Table

MOST_LABELS = 30
SAMPLED_ROWS = 5_000
TEXT_CHARACTERS = 20  # mean length from which a column is text
PORTUGUESE = frozenset("de que não uma para com os do da em um é dos por mais as ao foi são".split())  # noqa: SIM905
ENGLISH = frozenset("the of and to in is that for it was on are with this from have or by".split())  # noqa: SIM905
INSTRUCTIONS = {
    ("pt", False): "Leia o texto e responda com os campos pedidos.",
    ("pt", True): "Escreva a resposta para o texto abaixo.",
    ("en", False): "Read the text and answer with the fields asked for.",
    ("en", True): "Write the answer to the text below.",
}


@dataclass
class Column:
    """What a column looks like. values: its non-empty cells as text."""

    name: str
    values: list[str]
    share_filled: float

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.values)

    @property
    def mean_length(self) -> float:
        return sum(map(len, self.values)) / max(1, len(self.values))

    @property
    def numeric(self) -> bool:
        return all(re.fullmatch(r"-?\d+(\.\d+)?", text) for text in self.values)

    @property
    def digits(self) -> float:
        """Share of digits among the characters: high for dates and codes."""
        return sum(c.isdigit() for text in self.values[:200] for c in text) / max(1, sum(map(len, self.values[:200])))

    @property
    def kind(self) -> str:
        """empty, constant, indicator, id, labels, number, text or other."""
        counts = self.counts
        if not counts:
            return "empty"
        folded = {text.casefold() for text in counts}
        if folded <= {"0", "1", "0.0", "1.0", "true", "false"} and len(folded) > 1 and self.share_filled > 0.9:
            return "indicator"
        if len(counts) == 1:
            return "constant"
        unique = len(counts) == len(self.values) and self.share_filled > 0.99
        if re.search(r"(^|_)(id|key|uid|index|asin|uuid)$", self.name, re.IGNORECASE) and unique:
            return "id"
        numeric = self.numeric
        few = len(counts) <= min(12 if numeric else MOST_LABELS, max(2, len(self.values) // 4))
        if few and self.mean_length < 40:
            return "labels"
        if numeric:
            return "id" if unique and self.name.startswith("column_") else "number"
        spaced = " " in "".join(self.values[:50])
        return "text" if self.mean_length >= TEXT_CHARACTERS and spaced and self.digits < 0.3 else "other"


@dataclass
class Guess:
    """The recipe's pieces before they are written."""

    inputs: list[str] = field(default_factory=list)
    output: Any = None
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    id_column: str | None = None
    reasoning: str | None = None
    comments: list[str] = field(default_factory=list)
    language: str = "en"


def propose_recipe(path: Path, *, written_to: Path | None = None) -> str:
    """YAML of a recipe for the table at `path`.

    written_to: folder in which the recipe will stand; data.path is written relative to it (default: here).
    Raises DataError if the table cannot be read, or has no text column to read from.
    """
    path = Path(path)
    table = read_table(path)
    if not table.rows:
        raise DataError(
            f"{path}:{table.rejections[0].line}: no row can be read; the first: {table.rejections[0].reason}. "
            "Mend the file, or write the recipe by hand with data.format, data.delimiter or data.header."
        )
    guess = _guess(table, path)
    location = Path(os.path.relpath(path, written_to or Path.cwd()))
    return _write(guess, location if not path.is_absolute() else path, path)


def _columns(table: Table) -> list[Column]:
    sample = table.rows[:SAMPLED_ROWS]
    found: list[Column] = []
    for name in table.columns:
        cells = [row.values.get(name) for row in sample]
        values = [text_of(cell) for cell in cells if not is_blank(cell)]
        found.append(Column(name, [text for text in values if text], len(values) / len(sample)))
    return found


def _guess(table: Table, path: Path) -> Guess:
    columns = {column.name: column for column in _columns(table)}
    kinds = {name: column.kind for name, column in columns.items()}
    guess = Guess(id_column=next((name for name, kind in kinds.items() if kind == "id"), None))
    if table.format in ("chat", "alpaca"):
        _guess_conversation(guess, table, columns)
    else:
        texts = [name for name, kind in kinds.items() if kind == "text"]
        labels = [name for name, kind in kinds.items() if kind == "labels"]
        indicators = [name for name, kind in kinds.items() if kind == "indicator"]
        guess.reasoning = _reasoning(texts, labels, columns)
        texts = [name for name in texts if name != guess.reasoning]
        if not texts:
            found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(
                f"{path}: found no column of text to read from; the columns are {found}. "
                "Write task.inputs by hand; if the first line is already data, name the columns in data.header."
            )
        _guess_fields(guess, texts, labels, indicators, columns)
        numbers = [name for name, kind in kinds.items() if kind == "number"]
        _guess_rest(guess, texts, numbers, columns)
    if not guess.inputs:
        raise DataError(f"{path}: found no column of text to read from. Write task.inputs by hand.")
    guess.language = _language([text for name in guess.inputs for text in columns[name].values[:200]])
    return guess


def _guess_conversation(guess: Guess, table: Table, columns: dict[str, Column]) -> None:
    names = ("instruction", "input") if table.format == "alpaca" else ("system", "history", "user")
    answer = "output" if table.format == "alpaca" else "assistant"
    guess.inputs = [name for name in names if columns[name].values and len(columns[name].counts) > 1]
    guess.inputs = guess.inputs or [names[-1]]
    column = columns[answer]
    guess.output = list(column.counts) if column.kind == "labels" else "text"
    guess.columns[""] = answer


def _reasoning(texts: Sequence[str], labels: Sequence[str], columns: dict[str, Column]) -> str | None:
    """The text that names labels where the other texts do not."""
    known = {label.casefold() for name in labels for label in columns[name].counts if len(label) > 3}
    naming: dict[str, float] = {}
    for name in texts:
        sample = columns[name].values[:200]
        naming[name] = sum(1 for text in sample if any(label in text.casefold() for label in known)) / len(sample)
    ranked = sorted(naming, key=lambda name: -naming[name])
    if len(ranked) < 2 or naming[ranked[0]] < 0.5 or naming[ranked[1]] > 0.5 * naming[ranked[0]]:
        return None
    return ranked[0]


def _guess_fields(
    guess: Guess, texts: Sequence[str], labels: Sequence[str], indicators: Sequence[str], columns: dict[str, Column]
) -> None:
    grouped = {text: [name for name in labels if re.match(rf"{re.escape(text)}[._]", name)] for text in texts}
    grouped = {text: names for text, names in grouped.items() if names}
    if grouped:
        # Labels named after a text: each text is a question of its own.
        guess.inputs = list(grouped)
        pooled = _pooled_labels(grouped, columns)
        guess.output = {_safe(t): {_last(n, t): pooled[_last(n, t)] for n in names} for t, names in grouped.items()}
        guess.columns = {f"{_safe(t)}.{_last(n, t)}": n for t, names in grouped.items() for n in names}
        if len(grouped) > 1 and len({tuple(map(str, fields)) for fields in guess.output.values()}) == 1:
            shown = "texto" if _language(columns[guess.inputs[0]].values[:200]) == "pt" else "text"
            guess.parts = {_safe(text): {shown: text} for text in grouped}
        left = [name for name in labels if name not in guess.columns.values()]
        if left or len(texts) > len(grouped):
            others = [*(name for name in texts if name not in grouped), *left]
            guess.comments.append(f"Not used: {', '.join(others)}.")
        return
    guess.inputs = list(texts)
    guess.output = {}
    worded = [name for name in labels if not columns[name].numeric]
    if worded and len(worded) < len(labels):
        guess.comments.append(f"Numbers with few values, not used: {', '.join(n for n in labels if n not in worded)}.")
        labels = worded
    if len(indicators) > 1:
        guess.output["labels"] = [list(indicators)]
        guess.columns["labels"] = {name: name for name in indicators}
    elif indicators:
        guess.output[_safe(indicators[0])] = "bool"
        guess.columns[_safe(indicators[0])] = indicators[0]
    for name in labels:
        guess.output[_safe(name)] = _label_values(columns[name].counts)
        guess.columns[_safe(name)] = name


def _pooled_labels(grouped: dict[str, list[str]], columns: dict[str, Column]) -> dict[str, list[str]]:
    """Field name -> labels seen in any of the texts' columns of that name, most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for text, names in grouped.items():
        for name in names:
            counts.setdefault(_last(name, text), Counter()).update(columns[name].values)
    return {name: _label_values(counter) for name, counter in counts.items()}


def _label_values(counts: Counter[str]) -> list[str]:
    """Labels, most frequent first; spellings that differ in case are one."""
    found: dict[str, str] = {}
    for label, _ in counts.most_common():
        found.setdefault(label.casefold(), label)
    return list(found.values())


def _guess_rest(guess: Guess, texts: Sequence[str], numbers: Sequence[str], columns: dict[str, Column]) -> None:
    """Numbers as comments; where nothing is a label, the last text is the answer."""
    if guess.output:
        for name in numbers:
            values = [float(text) for text in columns[name].values]
            kind = "int" if all(value == int(value) for value in values) else "number"
            guess.comments.append(f"A number that could be asked for: {name}: {kind}({min(values):g}..{max(values):g})")
        return
    if len(texts) > 1:
        guess.inputs, guess.output, guess.columns = list(texts[:-1]), "text", {"": texts[-1]}
        guess.comments.append(f"No column looks like labels, so {texts[-1]} is taken for the answer.")
    elif numbers:
        values = [float(text) for text in columns[numbers[0]].values]
        kind = "int" if all(value == int(value) for value in values) else "number"
        guess.output = {_safe(numbers[0]): f"{kind}({_plain(min(values))}..{_plain(max(values))})"}
        guess.columns = {_safe(numbers[0]): numbers[0]}
    else:
        guess.output, guess.columns = {"label": ["first", "second"]}, {"label": "label"}
        guess.comments.append("No column looks like labels: write the labels and their column.")


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:f}".rstrip("0")


def _safe(name: str) -> str:
    """A column's name as a field's: no dots, no question mark at the end."""
    return re.sub(r"[.\s]+", "_", name).strip("_").removesuffix("?") or "field"


def _last(name: str, text: str) -> str:
    return _safe(name[len(text) + 1 :])


def _language(texts: Sequence[str]) -> str:
    words = Counter(word for text in texts for word in re.findall(r"\w+", text.casefold()))
    portuguese, english = (sum(words[word] for word in known) for known in (PORTUGUESE, ENGLISH))
    return "pt" if portuguese > english else "en"


# -- writing -----------------------------------------------------------------------------------


def _inline(value: Any) -> str:
    """YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _write(guess: Guess, location: Path, path: Path) -> str:
    name = _safe(path.name.split(".")[0]).lower() or "task"
    instruction = INSTRUCTIONS[guess.language, guess.output == "text"]
    lines = [
        f"# A first recipe for {path.name}. What was guessed from the table's shape is marked: check it.",
        *(f"# {comment}" for comment in guess.comments),
        "task:",
        f"  name: {_inline(name)}",
        f"  instruction: {_inline(instruction)}  # say what you want in your own words",
        f"  inputs: {_inline(guess.inputs)}  # guessed: columns of text",
    ]
    if isinstance(guess.output, dict):
        lines.append("  output:  # guessed: columns with few distinct values")
        lines += [f"    {_inline(key)}: {_inline(value)}" for key, value in guess.output.items()]
    else:
        lines.append(f"  output: {_inline(guess.output)}")
    if guess.parts:
        lines.append("  parts:  # each field is asked by itself, and what is learned of one serves all")
        lines += [f"    {_inline(key)}: {_inline(value)}" for key, value in guess.parts.items()]
    if guess.reasoning:
        lines.append(f"  # reasoning: {_inline(guess.reasoning)}  # names labels: could be written before the answer")
    lines += ["data:", f"  path: {_inline(str(location))}"]
    if guess.id_column:
        lines.append(f"  id_column: {_inline(guess.id_column)}")
    if guess.columns:
        lines.append("  columns:  # answer field: column")
        lines += [f"    {_inline(key)}: {_inline(value)}" for key, value in guess.columns.items()]
    lines += [
        "  test_size: 0.2",
        "  validation_size: 0.1",
        "  # labels: {FIELD: {text in the table: label}}  # where spellings differ",
        "train:",
        "  base_model: afina/nano  # or a local folder, or a Hugging Face model id",
        f"compare: [{'nearest' if guess.output == 'text' else 'majority, tfidf'}, zero-shot, finetuned]",
    ]
    return "\n".join(lines) + "\n"
