"""Does a student trained with reasoning do better than one trained on labels alone?

    python benchmarks/reasoning.py path/to/noticias.csv [--seeds 1 2 3] [--write-docs] [KEY=VALUE ...]

The table: Brazilian economic news items with three summary sentences (f1 to f3), the polarity and the emotion of each,
and one written chain of thought for the whole item (`pensamento`). Its sentence that speaks of f1 becomes the reasoning
of f1, and so on. Three students of afina/nano learn from the same rows, with the same seeds and updates: labels alone,
reasoning and then labels, labels with the reasoning as a second task. Everything else is `afina compare`.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from harness import BUILD, write_result

from afina.cli.table import result_lines
from afina.comparing import compare
from afina.core.recipe_file import make_recipe
from afina.runs import open_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "noticias.yaml"
PARTS = ("f1", "f2", "f3")
REASONING = "pensamento"
BEGIN, END = "<!-- reasoning: begin (benchmarks/reasoning.py --write-docs) -->", "<!-- reasoning: end -->"
NAMES = {
    "majority": "majority",
    "tfidf": "TF-IDF + logistic regression",
    "student-gold": "labels alone",
    "student-reasoning": "reasoning, then labels",
    "student-two-task": "labels, reasoning as a second task",
}
STUDENTS = ("gold", "reasoning", "two-task")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÀ-Ú])")


def reasoning_of(text: str, part: str) -> str:
    """The sentences of a chain of thought that speak of one part; "" where none does."""
    named = re.compile(rf"\b{part}\b", re.IGNORECASE)
    return " ".join(sentence for sentence in SENTENCE_END.split(text.strip()) if named.search(sentence))


def write_table(source: Path, target: Path) -> tuple[int, int]:
    """The table with a column of reasoning for each part; (rows, sentences without one)."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {f"{REASONING}_{part}": reasoning_of(row[REASONING], part) for part in PARTS}
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return len(rows), sum(not row[f"{REASONING}_{part}"] for row in rows for part in PARTS)


def recipe_of(table: Path, seeds: list[int], output: Path) -> dict[str, Any]:
    """recipes/noticias.yaml with the reasoning, three students and their comparison."""
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    raw["task"] |= {"name": "reasoning", "reasoning": REASONING}
    raw["data"] |= {"path": str(table), "test_size": 0.3}
    raw["data"]["columns"] = {REASONING: {part: f"{REASONING}_{part}" for part in PARTS}}
    raw["answer"] = {"max_text_tokens": 160}
    raw["distill"] = {"teacher": "table", "students": list(STUDENTS), "seeds": seeds}
    raw["compare"] = ["majority", "tfidf", *(f"student-{kind}" for kind in STUDENTS)]
    raw["comparison"] = {"reference": "student-gold"}
    raw["output_dir"] = str(output)
    return raw


# -- the page of docs ------------------------------------------------------------------------------


def section(report: Mapping[str, Any], rows: int, without: int) -> str:
    """The tables of docs/reasoning.md."""
    groups = list(report["groups"])
    systems = {entry["name"]: entry for entry in report["systems"]}
    seeds = max((entry.get("seeds") or [] for entry in report["systems"]), key=len)
    lines = [
        f"{rows} news items, three sentences each ({without} without reasoning); {report['num_test']} items in "
        f"{report['num_clusters']} clusters are the test, asked once; seeds {', '.join(map(str, seeds))}.",
        "",
        "| | " + " | ".join(f"{group}: accuracy | macro-F1" for group in groups) + " | all six right | answer tokens "
        "| one answer |",
        "|---|" + "--:|" * (2 * len(groups) + 3),
    ]
    for name, entry in systems.items():
        cells = [_value(entry["fields"][group], metric) for group in groups for metric in ("accuracy", "macro_f1")]
        cells += [_value(entry, "exact_match"), f"{entry['completion_tokens']:.0f}"]
        cells += [f"{1000 * entry['latency_p50_s']:.0f} ms"]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    lines += ["", "In brackets: 95 % intervals over clusters of test rows; after ±: standard deviation over seeds.", ""]
    lines += ["| against labels alone | measure | difference | p (Holm) |", "|---|---|--:|--:|"]
    for test in report["tests"]:
        low, high = test["ci"]
        sign = -1 if test["a"] == "student-gold" else 1
        other = test["b"] if sign < 0 else test["a"]
        low, high = (low, high) if sign > 0 else (-high, -low)
        lines.append(
            f"| {NAMES[other]} | {test['field']}: {test['metric'].replace('_', ' ')} | "
            f"{sign * test['difference']:+.3f} [{low:+.3f}, {high:+.3f}] | {test['p_holm']:.3f} |"
        )
    return "\n".join(lines)


def _value(place: Mapping[str, Any], metric: str) -> str:
    low, high = place[f"{metric}_ci"]
    spread = (place.get("seed_std") or {}).get(metric)
    around = "" if spread is None else f" ± {spread:.3f}"
    return f"{place[metric]:.3f}{around} [{low:.3f}, {high:.3f}]"


def write_docs(text: str) -> None:
    page = ROOT / "docs" / "reasoning.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--output", type=Path, default=BUILD / "reasoning")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    table = args.output / "noticias.csv"
    rows, without = write_table(args.table, table)
    raw = recipe_of(table, args.seeds, args.output / "run")
    if args.epochs:
        raw["train"]["num_train_epochs"] = args.epochs
    report = compare(open_recipe(make_recipe(raw)), lambda lines, cost_usd: None)
    print("\n".join(result_lines(report)))
    text = section(report, rows, without)
    print(f"\n{text}")
    kept = [{"name": entry["name"], **_flat(entry)} for entry in report["systems"]]
    print(f"kept in {write_result('reasoning-noticias', kept, {}, {}, [report['verdict']])}")
    if args.write_docs:
        write_docs(text)


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry.get(key) for key in ("fields", "exact_match", "exact_match_ci", "seeds", "completion_tokens")}


if __name__ == "__main__":
    main()
