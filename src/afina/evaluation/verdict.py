"""The report in plain words: what the numbers support, and never more.

Comes in: the mapping that `runner.evaluate` makes. Goes out: text. It computes no statistic of its own; a
difference is called one only where p after Holm's correction is below 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from afina.core.task import Task
from afina.evaluation.paired import LEVEL, SMALL_TEST, SPECIALIST, least_p

FEW = 4  # systems; more are told measure by measure, not pair by pair
STUDENT = "student-"  # what strategies of trained students begin with
FRIENDLY = {
    "majority": "the majority answer",
    "tfidf": "TF-IDF",
    "zero-shot": "the base model zero-shot",
}
METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "mae": "mean absolute error",
    "exact_match": "exact match",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
}
OF_THE_ANSWER = ("exact_match", "chrf", "rouge_l")  # measures that need no field's name
LOOPS, SILENT = 0.2, 0.05  # from here on, repetition and empty answers are told
LOWER_IS_BETTER = {"mae"}


def verdict(task: Task, report: Mapping[str, Any]) -> str:
    """Sentences, one a line: are the answers valid; where is the specialist better, worse, or not shown to differ.

    Of free text: is anything said, does it go round in circles, and how likely each model finds the gold texts.
    report: `systems`, `tests`, `num_test` and `num_clusters` of report.json are read.
    """
    systems: Sequence[Mapping[str, Any]] = report["systems"]
    if not systems:
        return f"No system answered the test of {task.name}, so there is nothing to compare."
    specialists = [s for s in systems if s["strategy"] == SPECIALIST]
    if task.free_text:
        sentences = list[str]()
    elif len(systems) > FEW:
        sentences = [_validity_of_all(systems)]
    else:
        sentences = [_validity(s, report["num_test"], len(systems) > 1) for s in specialists or systems]
    if not specialists and not any(s["strategy"].startswith(STUDENT) for s in systems):
        sentences.append("No specialist is among the systems, so whether fine-tuning helps cannot be told.")
    elif specialists and len(systems) < 2:
        sentences.append(
            "The specialist was compared with no other system, so whether it beats a baseline cannot be told."
        )
    tests: Sequence[Mapping[str, Any]] = report["tests"]
    pairs = list(dict.fromkeys((test["a"], test["b"]) for test in tests))
    friendly = {s["name"]: _who(systems, s["name"], len(specialists) > 1) for s in systems}
    if len(pairs) < FEW:
        for a, b in pairs:
            sentences += _comparison(friendly[a], friendly[b], [t for t in tests if (t["a"], t["b"]) == (a, b)])
    else:
        sentences += _by_measure(tests, friendly)
    sentences += _limits(tests, report["num_clusters"])
    if task.free_text:
        sentences += [*_likelihoods(systems), *_habits(systems)]
    return "\n".join(sentences)


def _validity(system: Mapping[str, Any], num_test: int, named: bool) -> str:
    whose = f" of {system['name']}" if named and system["strategy"] != "finetuned" else ""
    return f"{percent(system['valid_rate'])} of {num_test} answers{whose} are valid."


def _validity_of_all(systems: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for many systems: which of them gave invalid answers."""
    short = [f"{s['name']} ({percent(s['valid_rate'])})" for s in systems if s["valid_rate"] < 1]
    if not short:
        return f"All answers of all {len(systems)} systems are valid."
    return f"All answers are valid but those of {_listed(short)}."


def _habits(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    """Empty answers, and answers that go round in circles, where they are many enough to matter."""
    silent = [f"{s['name']} ({percent(s['text']['empty_share'])})" for s in systems if s["text"]["empty_share"]]
    many = any(s["text"]["empty_share"] > SILENT for s in systems)
    looping = [
        f"{s['name']} ({percent(s['text']['repetition'])})" for s in systems if (s["text"]["repetition"] or 0.0) > LOOPS
    ]
    sentences = [f"{'Many answers are empty' if many else 'Empty answers'}: {_listed(silent)}."] if silent else []
    if looping:
        sentences.append(f"Goes round in circles (share of 4-word runs that the answer had said): {_listed(looping)}.")
    return sentences


def _likelihoods(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [(s["name"], s["perplexity"]["bits_per_byte"]) for s in systems if s.get("perplexity")]
    if not known:
        return []
    told = [f"{name} {bits:.2f}" for name, bits in known]
    return [f"Bits per byte of the gold texts under the model (less is better): {_listed(told)}."]


def percent(share: float) -> str:
    """Rounded down, so that 100 % means all of them."""
    tenths = math.floor(share * 1000 + 1e-9) / 10
    return f"{tenths:.0f} %" if tenths == int(tenths) else f"{tenths:.1f} %"


def _who(systems: Sequence[Mapping[str, Any]], name: str, several: bool) -> str:
    strategy = next(s["strategy"] for s in systems if s["name"] == name)
    alike = sum(s["strategy"] == strategy for s in systems) > 1
    if strategy == "finetuned":
        return f"the specialist {name}" if several else "the specialist"
    return name if alike else FRIENDLY.get(strategy, name)


def _comparison(a: str, b: str, tests: Sequence[Mapping[str, Any]]) -> list[str]:
    better = [t for t in tests if t["p_holm"] < LEVEL and _gain(t) > 0]
    worse = [t for t in tests if t["p_holm"] < LEVEL and _gain(t) < 0]
    unclear = [t for t in tests if t not in better and t not in worse]
    clauses = []
    if better:
        clauses.append(f"is better than {b} on {_places(better, _significant)}")
    if worse:
        clauses.append(f"is worse than {b} on {_places(worse, _significant)}")
    sentences = [f"{a[0].upper()}{a[1:]} {' and '.join(clauses)}."] if clauses else []
    if unclear:
        sentences.append(f"No difference from {b} shown on {_places(unclear, _undecided)}.")
    return sentences


def _by_measure(tests: Sequence[Mapping[str, Any]], friendly: Mapping[str, str]) -> list[str]:
    """One sentence a measure, for one system against many or many against one."""
    sentences: list[str] = []
    alone = list(dict.fromkeys(test["a"] for test in tests))
    many: Sequence[str | None] = alone if len(alone) < len({test["b"] for test in tests}) else [None]
    for field, metric in dict.fromkeys((test["field"], test["metric"]) for test in tests):
        found = [t for t in tests if (t["field"], t["metric"]) == (field, metric)]
        where = METRICS[metric] if metric in OF_THE_ANSWER else f"{METRICS[metric]} of {field}"
        for first in many:
            told = [t for t in found if first in (None, t["a"])]
            sentences.append(f"{where[0].upper()}{where[1:]}: {_outcomes(told, first, friendly)}.")
    return sentences


def _outcomes(tests: Sequence[Mapping[str, Any]], first: str | None, friendly: Mapping[str, str]) -> str:
    """first: the system that all are compared with as `a`; None where `b` is the same in all."""
    rival, against = ("b", friendly[first]) if first is not None else ("a", friendly[tests[0]["b"]])
    decided = {True: list[str](), False: list[str]()}
    unclear: list[str] = []
    for test in tests:
        if test["p_holm"] < LEVEL and test["difference"] != 0:
            told = f"{friendly[test[rival]]} ({_signed(test['difference'])}, p = {_p(test['p_holm'])})"
            decided[_gain(test) > 0].append(told)
        else:
            unclear.append(friendly[test[rival]])
    is_first = first is not None
    clauses = [
        f"{against} is {word} than {_listed(names)}" if is_first else f"{word} than {against}: {_listed(names)}"
        for word, names in (("better", decided[True]), ("worse", decided[False]))
        if names
    ]
    if unclear:
        clauses.append(f"no difference {f'from {against} ' if not is_first else ''}shown: {_listed(unclear)}")
    return "; ".join(clauses)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _gain(test: Mapping[str, Any]) -> float:
    return -test["difference"] if test["metric"] in LOWER_IS_BETTER else test["difference"]


def _places(tests: Sequence[Mapping[str, Any]], describe: Any) -> str:
    """Fields in order, each with its metrics: "polaridade (...; ...) and emocao (...)"; of free text the metrics."""
    fields: dict[str, list[str]] = {}
    for test in tests:
        if test["metric"] in ("chrf", "rouge_l"):
            name, told = METRICS[test["metric"]], describe(test).removeprefix(METRICS[test["metric"]] + " ")
        else:
            name = "the whole answer" if test["metric"] == "exact_match" else test["field"]
            told = describe(test)
        fields.setdefault(name, []).append(told)
    return _listed([f"{name} ({'; '.join(found)})" for name, found in fields.items()])


def _significant(test: Mapping[str, Any]) -> str:
    return f"{METRICS[test['metric']]} {_signed(test['difference'])}, p = {_p(test['p_holm'])}"


def _undecided(test: Mapping[str, Any]) -> str:
    low, high = test["ci"]
    return f"{METRICS[test['metric']]} {_signed(test['difference'])} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    text = f"{value:+.2f}" if abs(value) < 100 else f"{value:+.4g}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _p(value: float) -> str:
    """Never rounded across the level: 0.0496 is not 0.05."""
    if value < 0.001:
        return f"{value:.4f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _quotes_intervals(tests: Sequence[Mapping[str, Any]]) -> bool:
    return len({(test["a"], test["b"]) for test in tests}) < FEW


def _limits(tests: Sequence[Mapping[str, Any]], num_clusters: int) -> list[str]:
    """What the size of the test keeps from being told."""
    sentences = []
    if tests:
        brackets = "In brackets: 95 % intervals." if _quotes_intervals(tests) else "In brackets: the difference."
        sentences.append(
            f"{brackets} The p values are corrected for all {len(tests)} comparisons (Holm)."
            if len(tests) > 1
            else f"{brackets} The p value is of the one comparison made."
        )
        if least_p(num_clusters) * len(tests) >= LEVEL:
            sentences.append(
                f"With {num_clusters} independent test items, hardly any difference could reach p < {LEVEL}: who is "
                "better cannot be told from this test."
            )
            return sentences
    if num_clusters < SMALL_TEST:
        sentences.append(
            f"The test has only {num_clusters} independent items, so small differences cannot be told from chance."
        )
    return sentences
