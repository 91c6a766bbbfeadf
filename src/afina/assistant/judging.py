"""The evaluation stage of a catalogue: every system on unseen products, and whether sources, search and refusals hold.

Comes in: an opened run. Goes out: what report.json holds: what `comparing` finds of any task, and the sections
catalogue, retrieval, citations and absent (docs/formats.md). A product is made absent by hiding it, its near-duplicates
and its namesakes from the search: every test product gives a question that can be answered and one that cannot.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from afina import comparing, pipeline
from afina.assistant.indexing import index
from afina.assistant.manifest import make_answerable, near_duplicates
from afina.assistant.training import train
from afina.catalogue.catalogue import Catalogue
from afina.core.errors import RecipeError
from afina.core.predictor import Prediction
from afina.core.progress import progress
from afina.core.storage import read_json
from afina.data.prepare import Prepared
from afina.evaluation.citations import citation_scores
from afina.evaluation.retrieval import Ranked, retrieval_scores
from afina.evaluation.runner import SystemRun, run_system
from afina.pipeline.splits import catalogue_of
from afina.retrieval.index import ProductIndex
from afina.runs import Run
from afina.strategies.grounded.answer import Answer
from afina.strategies.grounded.grounded import Grounded
from afina.strategies.grounded.measuring import Probe, judged, make_probes
from afina.training.hosted import Agree

SECTIONS_VERSION = 1
SOURCES = "sources"
DEPTH = 5  # of the retrieval that is judged


def evaluate(opened: Run, agree: Agree) -> dict[str, Any]:
    """Train and index what is missing, ask every system, judge. Returns what report.json holds."""
    recipe = opened.recipe
    if recipe.train.provider is not None:
        if SOURCES in recipe.compare:
            raise RecipeError(
                "compare: sources needs a model on this machine, but train.provider is "
                f"{recipe.train.provider}. Remove one."
            )
        return comparing.evaluate(opened, agree)
    path = opened.folder / "report.json"
    if opened.is_done("evaluate", opened.evaluate_key) and path.exists():
        return read_json(path)
    prepared = pipeline.prepare(opened)
    catalogue = catalogue_of(opened)
    found = index(opened, catalogue)
    train(opened)
    make_answerable(opened, prepared, catalogue, found)
    return comparing.evaluate(opened, agree, {SOURCES: partial(_answers, found)}, partial(_sections, catalogue, found))


def _answers(found: ProductIndex, opened: Run, prepared: Prepared) -> SystemRun:
    """The tuned model with sources, asked about every test product."""
    test = prepared.splits["test"]
    predictor = _WithProgress(Grounded.load(opened.folder, index=found))
    return run_system(predictor, test, SOURCES, opened.recipe.train.base_model)


class _WithProgress:
    """Answers in batches, and shows how far it is."""

    def __init__(self, grounded: Grounded) -> None:
        self.grounded, self.name = grounded, grounded.name

    def predict(self, inputs: Sequence[Any]) -> list[Prediction]:
        step, made = self.grounded.settings.batch_size, list[Prediction]()
        with progress(self.name, len(inputs)) as bar:
            for start in range(0, len(inputs), step):
                made += self.grounded.predict(inputs[start : start + step])
                bar.advance(len(inputs[start : start + step]))
        return made


# -- what only a catalogue can be judged by ---------------------------------------------------------


def _sections(
    catalogue: Catalogue, found: ProductIndex, opened: Run, prepared: Prepared, result: Mapping[str, Any]
) -> dict[str, Any]:
    config, test = opened.recipe.catalogue, prepared.splits["test"]
    assert config is not None, "called for catalogue recipes only"
    alike = near_duplicates(catalogue, [row.id for row in test])
    probes = make_probes(found, test, config.questions, opened.recipe.seed, alike)
    sections = {
        "catalogue": _catalogue_section(catalogue, opened),
        "retrieval": _retrieval_section(opened, found, probes),
    }
    if SOURCES in opened.recipe.compare:
        sections |= _grounded_sections(opened, found, probes)
    return sections


def _catalogue_section(catalogue: Catalogue, opened: Run) -> dict[str, Any]:
    config = opened.recipe.catalogue
    assert config is not None, "called for catalogue recipes only"
    report = catalogue.report
    steps = [{"name": "read", "rows": report["rows"]["read"], "dropped": None, "changed": None}]
    steps += [_step(name, changed=count) for name, count in report["steps"].items() if count]
    steps += [_step(name, dropped=count) for name, count in report["rejected"].items()]
    steps.append({"name": "kept", "rows": report["rows"]["kept"], "dropped": None, "changed": None})
    return {
        "version": SECTIONS_VERSION,
        "num_products": catalogue.num_rows,
        "num_shards": catalogue.num_shards,
        "shards_used": config.shards,
        "splits": {name: of["rows"] for name, of in report["splits"].items()},
        "steps": steps,
        "languages": (report["languages"] or {}).get("contents") or {},
    }


def _step(name: str, *, dropped: int | None = None, changed: int | None = None) -> dict[str, Any]:
    return {"name": name.replace("_", " "), "rows": None, "dropped": dropped, "changed": changed}


def _retrieval_section(opened: Run, found: ProductIndex, probes: Sequence[Probe]) -> dict[str, Any]:
    """Title to passage over the whole catalogue: a near-duplicate of the product counts as right."""
    ranked: list[Ranked] = []
    seconds: list[float] = []
    for probe in probes:
        began = time.perf_counter()
        hits = found.search(probe.question, DEPTH)
        seconds.append(time.perf_counter() - began)
        ranked.append(Ranked([hit.passage.uid for hit in hits], probe.alike, probe.row.cluster))
    p50, p95 = (float(np.percentile(seconds, q)) for q in (50, 95))
    scores = retrieval_scores(ranked, opened.recipe.seed)
    return {
        "version": SECTIONS_VERSION,
        "sets": [{"name": "unseen products by title", **scores, "latency_p50_s": p50, "latency_p95_s": p95}],
    }


def _grounded_sections(opened: Run, found: ProductIndex, probes: Sequence[Probe]) -> dict[str, Any]:
    """Citations of questions that can be answered, and refusals of those that cannot."""
    grounded = Grounded.load(opened.folder, index=found)
    questions = [probe.question for probe in probes]
    nothing: list[Collection[str]] = [() for _ in probes]
    present = _asked(grounded, questions, nothing, "sources: present products")
    absent = _asked(grounded, questions, [probe.alike for probe in probes], "sources: absent products")
    rows = [*judged(present, [probe.alike for probe in probes], found), *judged(absent, nothing, found)]
    scores = citation_scores(rows).to_json()
    common = {"version": SECTIONS_VERSION, "system": SOURCES}
    refusals = ("refusal_precision", "refusal_recall", "answered")
    return {
        "citations": {**common, **{name: share for name, share in scores.items() if name not in refusals}},
        "absent": {
            **common,
            "num_absent": len(probes),
            "num_present": len(probes),
            "min_support": grounded.settings.min_support,
            **{name: scores[name] for name in refusals},
        },
    }


def _asked(
    grounded: Grounded, questions: Sequence[str], without: Sequence[Collection[str]], label: str
) -> list[Answer]:
    step, made = grounded.settings.batch_size, list[Answer]()
    with progress(label, len(questions)) as bar:
        for start in range(0, len(questions), step):
            made += grounded.answers(questions[start : start + step], without[start : start + step])
            bar.advance(len(questions[start : start + step]))
    return made
