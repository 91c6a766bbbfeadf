"""A made-up comparison of many systems: random answers of known skill, scored by the real `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afina.core import schema as schemas
from afina.core.predictor import Example, Prediction, Usage
from afina.core.storage import write_json, write_jsonl
from afina.core.task import Task
from afina.evaluation.runner import SystemRun, evaluate

POLARITY = ["positivo", "negativo", "neutro"]
EMOTION = ["alegria", "tristeza", "raiva", "medo", "surpresa", "neutro"]
SENTENCE = {"polaridade": POLARITY, "emocao": EMOTION}
TASK = Task(
    "noticias",
    "i",
    {"f1": "f1", "f2": "f2"},
    schemas.normalise(schemas.from_shorthand({"f1": SENTENCE, "f2": SENTENCE})),
    part_inputs={"f1": (("frase", "f1"),), "f2": (("frase", "f2"),)},
)
# name, strategy, skill, US$ per answer, seconds per answer, seeds
SYSTEMS: list[tuple[str, str, float, float, float, tuple[int, ...]]] = [
    ("majority", "majority", 0.35, 0.0, 2e-6, ()),
    ("tfidf", "tfidf", 0.62, 0.0, 8e-4, ()),
    ("zero-shot", "zero-shot", 0.45, 0.0, 0.11, ()),
    ("specialist", "finetuned", 0.78, 0.0, 0.03, (1, 2, 3)),
    ("few-shot", "few-shot", 0.62, 0.00021, 0.6, ()),
    ("cot", "cot", 0.75, 0.00064, 1.9, ()),
    ("vote-of-cots", "vote", 0.8, 0.0033, 4.1, ()),
    ("negotiate", "negotiate", 0.79, 0.0051, 7.7, ()),
    ("cascade", "cascade", 0.82, 0.0011, 1.2, ()),
    ("teacher", "teacher", 0.84, 0.0104, 2.4, ()),
    ("student-gold", "student-gold", 0.72, 0.0, 0.031, (1, 2, 3)),
    ("student-reasoning", "student-reasoning", 0.74, 0.0, 0.19, (1, 2, 3)),
    ("student-two-task", "student-two-task", 0.755, 0.0, 0.031, (1, 2, 3)),
    ("student-mixed", "student-mixed", 0.7, 0.0, 0.03, (1, 2, 3)),
]
REASONED = {"cot", "vote-of-cots", "negotiate", "teacher", "student-reasoning"}
SAID = "O trecho fala de queda nas vendas; o tom é de alerta, mas sem ataque a ninguém. Logo a polaridade é negativa."


def labelled_rows(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)

    def answer() -> dict[str, Any]:
        return {"polaridade": str(rng.choice(POLARITY)), "emocao": str(rng.choice(EMOTION))}

    texts = {"f1": "O dólar caiu 1,2% e a bolsa subiu.", "f2": "Analistas temem que o alívio dure pouco."}
    return [Example(str(i), texts, {"f1": answer(), "f2": answer()}, cluster=i) for i in range(count)]


def answers(
    rows: Sequence[Example], name: str, skill: float, usd: float, seconds: float, seed: int
) -> list[Prediction]:
    """Each field is right with probability `skill`; one answer in 40 of a paid system fails."""
    rng = np.random.default_rng(seed)
    found = []
    for row in rows:
        output: dict[str, Any] = {}
        for field in TASK.fields:
            gold, labels = schemas.get(row.output, field.path), list(field.labels or ())
            others = [label for label in labels if label != gold]
            schemas.assign(output, field.path, gold if rng.random() < skill else str(rng.choice(others)))
        usage = Usage(180, 40, 12, usd, int(usd > 0), int(usd > 0 and rng.random() < 0.05))
        latency = seconds * float(rng.lognormal(0, 0.3))
        if usd and rng.random() < 0.025:
            found.append(Prediction(error="no answer after 2 retries", usage=usage, latency_s=latency))
            continue
        sure = {} if name in ("majority", "few-shot") else {f.path: float(rng.uniform(0.5, 1)) for f in TASK.fields}
        reasoning = {"f1": SAID, "f2": SAID} if name in REASONED else {}
        found.append(
            Prediction(output, sure, usage=usage, latency_s=latency, reasoning=reasoning, trace=trace(name, output))
        )
    return found


def trace(name: str, output: dict[str, Any]) -> list[dict[str, Any]]:
    if name == "negotiate":
        first = {"part": "f1", "turn": 1, "speaker": "generator", "model": "teacher", "reasoning": SAID}
        second = {"part": "f1", "turn": 2, "speaker": "discriminator", "model": "teacher", "reasoning": SAID}
        return [
            {**first, "answer": {"polaridade": "neutro", "emocao": "medo"}},
            {**second, "answer": output["f1"], "agree": False},
            {**first, "turn": 3, "answer": output["f1"], "outcome": "agreed"},
        ]
    if name == "vote-of-cots":
        return [{"voter": "cot", "sample": i, "output": output, "reasoning": {"f1": SAID}} for i in range(3)]
    if name == "cascade":
        first = {"strategy": "finetuned", "answered": False, "output": output, "sureness": 0.61, "threshold": 0.8}
        return [first, {"strategy": "teacher", "answered": True, "output": output}]
    return []


def systems(rows: Sequence[Example], num_systems: int = len(SYSTEMS)) -> list[SystemRun]:
    found = []
    for number, (name, strategy, skill, usd, seconds, seeds) in enumerate(SYSTEMS[:num_systems]):
        runs = [answers(rows, name, skill, usd, seconds, 100 * number + run) for run in range(max(1, len(seeds)))]
        base = None if strategy in ("majority", "tfidf") else "afina/nano"
        wall_s = seconds * len(rows) * len(runs)
        trained = 214.0 if seeds else 0.0
        found.append(SystemRun(name, strategy, base, runs[0], wall_s, trained, 1 << 30, (), seeds, tuple(runs[1:])))
    return found


def comparison(num_test: int = 90, num_systems: int = len(SYSTEMS), **chosen: Any) -> dict[str, Any]:
    rows = labelled_rows(num_test)
    return evaluate(TASK, rows, [], systems(rows, num_systems), seed=0, **chosen)


def curve() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    points = []
    for system, top in (("student-gold", 0.5), ("student-two-task", 0.56)):
        for rows in (25, 50, 100, 200, 400):
            for seed in (1, 2, 3):
                value = float(top - 0.9 / rows**0.5 + rng.normal(0, 0.015))
                points.append(
                    {
                        "system": system,
                        "rows": rows,
                        "seed": seed,
                        "accuracy": value,
                        "ci": [value - 0.09, value + 0.09],
                    }
                )
    return {"curve": points, "curve_lines": {"teacher": 0.66, "tfidf": 0.31}}


def write_comparison(folder: Path, num_test: int = 90, **chosen: Any) -> Path:
    """A run folder as a comparison leaves it, without the files of training."""
    rows = labelled_rows(num_test)
    runs = systems(rows)
    report = evaluate(TASK, rows, [], runs, seed=0, **chosen)
    write_json(folder / "report.json", report | curve())
    for run in runs:
        lines = [
            {"id": e.id, "output": p.output, "confidence": dict(p.confidence), "error": p.error}
            | ({"reasoning": dict(p.reasoning)} if p.reasoning else {})
            | ({"trace": list(p.trace)} if p.trace else {})
            for e, p in zip(rows, run.predictions, strict=True)
        ]
        write_jsonl(folder / "predictions" / f"{run.name}.jsonl", lines)
    shown = next(run for run in runs if run.strategy == "finetuned")
    examples = [
        {
            "id": e.id, "inputs": dict(e.inputs), "gold": e.output, "output": p.output,
            "confidence": dict(p.confidence), "correct": p.output == e.output,
        }
        for e, p in zip(rows, shown.predictions, strict=True)
    ]  # fmt: skip
    write_json(folder / "examples.json", examples)
    return folder
