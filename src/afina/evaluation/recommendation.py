"""Which system to use, by what the user puts first; and whether the numbers decide that.

Comes in: entries of report.json, and paired tests of one system against all others. Goes out: facts: who, why, and
what speaks against it. It writes no sentence (`report.advice` does, in the reader's language).

"Not shown to be worse" is read as the statistics mean it: too little is known to tell the two apart. It never means
that they are equal, so each loss comes with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afina.evaluation.paired import LEVEL, SMALL_TEST, least_p
from afina.evaluation.pareto import PRICES, front, quality

PRIORITIES = ("accuracy", "cost", "latency", "explanation")

Entry = Mapping[str, Any]
Against = Callable[[int], list[dict[str, Any]]]
"""Position of a system -> its paired tests (a) against each other system (b), in order, with Holm's p."""


def recommend(
    entries: Sequence[Entry], against: Against, priority: str, num_clusters: int, metric: str
) -> dict[str, Any]:
    """The facts of a recommendation. metric: the quality that it goes by.

    choice: a system's name, or None. decided: the numbers separate it from every system that it was weighed against.
    best: the highest quality, among those that explain themselves where that is the priority. why: "clear" (best is
    better than every other), "not_separated" (some are not shown to be worse: `equals`), or the reason why there is
    no choice: "alone", "no_reasoning", "nothing_right", "too_small". tests: of best (a) against each other system
    (b), a family of its own. cheaper: systems on the Pareto front of the price that matters that cost less than the
    choice; they are shown to be worse, and their tests say by how much.
    """
    assert priority in PRIORITIES, f"priority is {priority!r}"
    facts: dict[str, Any] = {
        "priority": priority,
        "quality": metric,
        "choice": None,
        "decided": False,
        "why": "alone",
        "best": None,
        "equals": [],
        "cheaper": [],
        "tests": [],
        "num_clusters": num_clusters,
        "small_test": num_clusters < SMALL_TEST,
    }
    able = [i for i, e in enumerate(entries) if priority != "explanation" or e["reasoning_rate"] > 0]
    if len(entries) < 2:
        return facts
    if not able:
        return {**facts, "why": "no_reasoning"}
    best = min(able, key=lambda i: (-quality(entries[i], metric), *_prices(entries[i]), i))
    facts["best"] = entries[best]["name"]
    if quality(entries[best], metric) == 0:
        return {**facts, "why": "nothing_right"}
    facts["tests"] = tests = against(best)
    if least_p(num_clusters) * len(tests) >= LEVEL:
        return {**facts, "why": "too_small"}
    others = [i for i in range(len(entries)) if i != best]
    worse = {i for i, test in zip(others, tests, strict=True) if test["p_holm"] < LEVEL and test["difference"] > 0}
    equals = [i for i in able if i != best and i not in worse]
    choice, cheaper = _choose(entries, [best, *equals], priority, metric)
    return {
        **facts,
        "choice": entries[choice]["name"],
        "decided": not equals,
        "why": "not_separated" if equals else "clear",
        "equals": [entries[i]["name"] for i in equals],
        "cheaper": [entries[i]["name"] for i in cheaper],
    }


def _prices(entry: Entry) -> tuple[float, float]:
    return entry[PRICES["cost"]], entry[PRICES["latency"]]


def _choose(entries: Sequence[Entry], able: Sequence[int], priority: str, metric: str) -> tuple[int, list[int]]:
    """The recommended among those that may be the best (the best first), and who is cheaper still.

    accuracy: the cheapest of them, the fastest where cost is equal. cost, latency: the same, on the Pareto front of
    that price. explanation: the best itself, for what it says cannot be weighed by these numbers.
    """
    if priority == "explanation":
        return able[0], []
    if priority == "accuracy":
        return min(able, key=lambda i: (*_prices(entries[i]), -quality(entries[i], metric), i)), []
    key = PRICES[priority]
    on_front = front([quality(e, metric) for e in entries], [e[key] for e in entries])
    # Never empty: of the systems with the highest quality, none of which is worse, the cheapest is on the front.
    candidates = [i for i in able if i in on_front]
    second = PRICES["latency" if priority == "cost" else "cost"]
    choice = min(candidates, key=lambda i: (entries[i][key], -quality(entries[i], metric), entries[i][second], i))
    return choice, [i for i in on_front if entries[i][key] < entries[choice][key]]
