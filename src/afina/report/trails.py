"""How answers came about: the reasoning, votes and debates that systems recorded, made ready for the page.

Comes in: a run's files. Goes out: for each system that tells, a few items with their steps. Steps are what strategies
put into `Prediction.trace`; one whose keys are not known is shown key by key, so nothing recorded is hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from afina.report.run_folder import RunFiles, finite
from afina.report.words import Language

NUM_ITEMS = 3  # of each system
KNOWN = {
    "part", "turn", "speaker", "model", "reasoning", "answer", "agree", "error", "outcome", "voter", "sample", "output",
    "confidence", "trace", "whole_answer_of", "because", "strategy", "answered", "sureness", "threshold",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """who: the speaker, voter or strategy. notes: short remarks. answer: (field path, value). inner: its own steps."""

    who: str
    notes: list[str]
    answer: list[tuple[str, Any]]
    reasoning: list[tuple[str, str]]
    error: str | None
    inner: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """One test item's answer. right: None where its label is not known."""

    id: str
    inputs: Mapping[str, Any]
    gold: list[tuple[str, Any]]
    answer: list[tuple[str, Any]]
    reasoning: list[tuple[str, str]]
    steps: list[Step]
    error: str | None
    right: bool | None


def trails(run: RunFiles, words: Language) -> dict[str, list[Item]]:
    """System -> the items whose answers took most steps, then the longest reasoning; only systems that tell.

    Inputs and labels come from examples.json, answers from predictions/.
    """
    known = {item.get("id"): item for item in run.examples or []}
    found: dict[str, list[Item]] = {}
    for system in run.systems:
        rows = [row for row in run.answers(system["name"]) if row.get("trace") or row.get("reasoning")]
        rows.sort(key=lambda row: -_length(row))
        items = [_item(row, known.get(row.get("id"), {}), words) for row in rows[:NUM_ITEMS]]
        if items:
            found[system["name"]] = items
    return found


def _length(row: Mapping[str, Any]) -> int:
    """Characters of steps and reasoning; steps weigh most."""
    steps = row.get("trace") or []
    return 100_000 * len(steps) + len(json.dumps([steps, row.get("reasoning")]))


def _item(row: Mapping[str, Any], example: Mapping[str, Any], words: Language) -> Item:
    gold = example.get("gold")
    return Item(
        str(row.get("id")),
        example.get("inputs") or {},
        list(flat(gold)) if gold is not None else [],
        list(flat(row.get("output"))) if row.get("output") is not None else [],
        _reasoning(row.get("reasoning")),
        steps_of(row, words),
        row.get("error"),
        row.get("output") == gold if gold is not None else None,
    )


def steps_of(row: Mapping[str, Any], words: Language) -> list[Step]:
    """The recorded steps of one answer."""
    trace = row.get("trace")
    if not isinstance(trace, list):
        return []
    return [_step(entry, words) for entry in trace if isinstance(entry, Mapping)]


def _step(entry: Mapping[str, Any], words: Language) -> Step:
    who = [str(entry[key]) for key in ("speaker", "voter", "strategy") if entry.get(key) is not None]
    if entry.get("model") and entry["model"] not in who:
        who.append(f"({entry['model']})")
    if finite(entry.get("turn")):
        who.append(words("turn", n=entry["turn"]))
    if finite(entry.get("sample")):
        who.append(words("sample", n=entry["sample"] + 1))
    if entry.get("part"):
        who.append(str(entry["part"]))
    notes: list[str] = []
    if isinstance(entry.get("agree"), bool):
        notes.append(words("agrees" if entry["agree"] else "disagrees"))
    if entry.get("answered") is True:
        notes.append(words("stands"))
    if finite(entry.get("threshold")):
        value, threshold = words.number(entry.get("sureness")), words.number(entry["threshold"])
        notes.append(words("sureness", value=value, threshold=threshold))
    if entry.get("outcome") is not None:
        notes.append(words("outcome", text=entry["outcome"]))
    if "whole_answer_of" in entry:
        who += [f"{key} {value}" for key, value in flat(entry["whole_answer_of"])]
        notes.append(words("whole_vote", because=entry.get("because")))
    notes += [f"{path}: {value}" for path, value in flat({k: v for k, v in entry.items() if k not in KNOWN})]
    answer = entry.get("output", entry.get("answer"))
    return Step(
        " ".join(who),
        notes,
        list(flat(answer)) if answer is not None else [],
        _reasoning(entry.get("reasoning")),
        entry.get("error"),
        steps_of(entry, words),
    )


def _reasoning(said: Any) -> list[tuple[str, str]]:
    """(part, text) pairs; the part "" is the whole answer."""
    if isinstance(said, str):
        return [("", said)] if said else []
    return [(str(part), str(text)) for part, text in said.items() if text] if isinstance(said, Mapping) else []


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, leaf) pairs of nested mappings; lists are leaves."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
