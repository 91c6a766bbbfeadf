"""The recommendation in sentences, in the reader's language.

Comes in: report.json, whose `recommendation` holds the facts. Goes out: lines of text that quote the numbers they
rest on. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afina.evaluation.pareto import PRICES, measured
from afina.report.run_folder import finite
from afina.report.words import Language


def advice_lines(report: Mapping[str, Any], words: Language) -> list[str]:
    """One sentence or two a line; the first says which system. Empty where the report holds no recommendation."""
    facts: Mapping[str, Any] | None = report.get("recommendation")
    if not facts:
        return []
    said = _Said(report, facts, words)
    why = facts["why"]
    by_text = "_text" if facts["quality"] == "chrf" and facts["priority"] == "accuracy" else ""
    priority, metric = words(f"for_{facts['priority']}{by_text}"), words(facts["quality"])
    if facts["choice"] is None:
        described = said.described(facts["best"]) if facts["best"] else ""
        return [words(f"advice_{why}", priority=priority, metric=metric, described=described, n=facts["num_clusters"])]
    lines = [words("advice", priority=priority, described=said.described(facts["choice"])), said.why()]
    lines += [*said.explains(), *said.cheaper()]
    if facts["equals"] and facts["choice"] != facts["best"]:
        lines.append(words("advice_not_equal"))
    if facts["small_test"]:
        lines.append(words("advice_small", n=facts["num_clusters"]))
    num_tests = len(facts["tests"])
    return [
        *lines,
        words("advice_basis", best=facts["best"], metric=metric, n=words.count(report["num_test"]), tests=num_tests),
    ]


class _Said:
    """Parts of sentences about one report."""

    def __init__(self, report: Mapping[str, Any], facts: Mapping[str, Any], words: Language) -> None:
        self.facts, self.words = facts, words
        self.metric = words(facts["quality"])
        self.systems = {system["name"]: system for system in report["systems"]}
        self.tests = {test["b"]: test for test in facts["tests"]}

    def described(self, name: str) -> str:
        system, quality = self.systems[name], self.facts["quality"]
        return self.words(
            "described",
            name=name,
            metric=self.metric,
            value=self.words.number(measured(system, quality)[quality]),
            interval=self.words.interval(measured(system, quality).get(f"{quality}_ci")),
            cost=self.words.money(system["cost_per_1000_usd"]),
            latency=self.words.duration(system["latency_p50_s"]),
        )

    def why(self) -> str:
        facts, words = self.facts, self.words
        best, equals = facts["best"], facts["equals"]
        if facts["why"] == "clear":
            return self._clear()
        if facts["choice"] == best:
            reason = self._reason([best, *equals])
            return words(
                "advice_best_of_equals",
                metric=self.metric,
                also=words("also", reason=words(reason)) if reason else "",
                equals=words.join(list(equals)),
                are=words("is_one" if len(equals) == 1 else "are_many"),
            )
        return words(
            "advice_instead",
            described=self.described(best),
            metric=self.metric,
            choice=facts["choice"],
            reason=words(self._reason([best, *equals]) or "fastest"),
            n=len(equals) + 1,
            equals=words.join([best, *equals]),
            **self._gap(self.tests[facts["choice"]], sign=-1),
        )

    def _clear(self) -> str:
        explained = self.facts["priority"] == "explanation"
        rivals = [t for t in self.facts["tests"] if not explained or self.systems[t["b"]]["reasoning_rate"]]
        if not rivals:
            return self.words("advice_only")
        nearest = min(rivals, key=lambda test: test["difference"])
        key = "advice_clear_explained" if explained else "advice_clear"
        return self.words(key, metric=self.metric, nearest=nearest["b"], **self._gap(nearest))

    def _reason(self, names: Sequence[str]) -> str | None:
        """What sets the choice apart from the others named: its price, its speed; None where nothing does."""
        priority, mine = self.facts["priority"], self.systems[self.facts["choice"]]
        costs, times = ([self.systems[name][PRICES[price]] for name in names] for price in ("cost", "latency"))
        if priority == "explanation":
            return None
        is_cheapest, is_fastest = mine[PRICES["cost"]] == min(costs), mine[PRICES["latency"]] == min(times)
        if priority == "latency" or min(costs) == max(costs):
            return "fastest" if is_fastest and min(times) < max(times) else None
        if not is_cheapest:
            return None
        return "fastest_of_cheapest" if priority == "accuracy" and costs.count(min(costs)) > 1 else "cheapest"

    def explains(self) -> list[str]:
        """What the explanation costs, where a system without one answers better."""
        if self.facts["priority"] != "explanation":
            return []
        silent = [s for s in self.systems.values() if not s["reasoning_rate"] and s["name"] in self.tests]
        if not silent:
            return []
        quality = self.facts["quality"]
        top = max(silent, key=lambda system: measured(system, quality)[quality])
        value = self.words.number(measured(top, quality)[quality])
        return [self.words("advice_explains", name=top["name"], value=value, **self._gap(self.tests[top["name"]]))]

    def cheaper(self) -> list[str]:
        priority = self.facts["priority"]
        told = [
            self.words(
                f"cheaper_{priority}",
                name=name,
                cost=self.words.money(self.systems[name]["cost_per_1000_usd"]),
                latency=self.words.duration(self.systems[name]["latency_p50_s"]),
                **self._gap(self.tests[name], sign=-1, with_p=False),
            )
            for name in self.facts["cheaper"]
        ]
        return (
            [self.words(f"advice_cheaper_{priority}", metric=self.metric, listed=self.words.join(told))] if told else []
        )

    def _gap(self, test: Mapping[str, Any], *, sign: int = 1, with_p: bool = True) -> dict[str, str]:
        """A test's numbers; sign -1: as the second minus the first."""
        low, high = (self.words.signed(bound, 2) for bound in sorted(sign * bound for bound in test["ci"]))
        apart = "; " if self.words.code == "pt" else ", "
        found = {
            "difference": self.words.signed(sign * test["difference"], 2),
            "interval": f"[{low}{apart}{high}]",
        }
        if with_p and finite(test["p_holm"]):
            p = self.words.p_value(test["p_holm"])
            found["p"] = p if p.startswith("<") else f"= {p}"
        return found
