"""The report and the model card, made from a sample run that looks like a real one."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from afina.core.errors import AfinaError, RunError
from afina.core.storage import write_json, write_jsonl
from afina.report import write_card, write_report
from afina.report.html import flat
from afina.report.plots import nice_axis, wilson
from afina.report.run_folder import outcome
from afina.report.words import WORDS, Language

LABELS = {
    "polaridade": ["positivo", "negativo", "neutro"],
    "emocao": ["alegria", "tristeza", "raiva", "nojo", "medo", "surpresa", "desprezo", "neutro"],
}
PRIOR = {
    "polaridade": [0.31, 0.42, 0.27],
    "emocao": [0.27, 0.09, 0.13, 0.05, 0.17, 0.07, 0.03, 0.19],
}
# name, strategy, base model, accuracy aimed at for each group
SYSTEMS = [
    ("majority", "majority", None, {"polaridade": 0.0, "emocao": 0.0}),
    ("tfidf", "tfidf", None, {"polaridade": 0.55, "emocao": 0.47}),
    ("zero-shot", "zero-shot", "afina/nano", {"polaridade": 0.35, "emocao": 0.16}),
    ("finetuned", "finetuned", "afina/nano", {"polaridade": 0.68, "emocao": 0.5}),
]
COSTS = {  # p50, p95, answers/s, train seconds, peak bytes, prompt tokens, written tokens, passes
    "majority": (2e-6, 4e-6, 412000.0, 0.0, None, 0, 0, 0),
    "tfidf": (0.0011, 0.0016, 910.0, 0.42, 212_000_000, 0, 0, 0),
    "zero-shot": (0.118, 0.171, 8.3, 0.0, 890_000_000, 18_240, 1_584, 1_103),
    "finetuned": (0.121, 0.176, 8.1, 214.0, 1_240_000_000, 18_240, 1_602, 1_109),
}
HEADLINES = [
    ("Dólar recua e bolsa fecha em alta após acordo comercial", "O dólar caiu 1,2% e a bolsa subiu.",
     "O acordo foi assinado em Genebra na manhã de quinta-feira.", "Analistas temem que o alívio dure pouco."),
    ("Indústria demite e teme novo recuo no segundo semestre", "A montadora cortou 400 vagas em Camaçari.",
     "O sindicato chamou a decisão de covarde.", "A produção nacional caiu 3% em maio, segundo o IBGE."),
    ("Safra recorde de café surpreende cooperativas mineiras", "Ninguém esperava 62 milhões de sacas.",
     "Produtores de Varginha comemoram.", "O preço da saca é cotado em Nova York."),
]  # fmt: skip


# -- the sample run -------------------------------------------------------------------------------


def scores(truth: Any, answer: Any, sure: Any, labels: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """What the evaluation writes of one field, computed from simulated answers."""

    def macro(rows: Any) -> float:
        return float(f1_score(truth[rows], answer[rows], labels=labels, average="macro", zero_division=0))

    right = truth == answer
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(60)]
    matrix = confusion_matrix(truth, answer, labels=labels)
    p, r, f, n = precision_recall_fscore_support(truth, answer, labels=labels, zero_division=0)
    bins = []
    for low in np.arange(0, 1, 0.1):
        inside = (sure > low) & (sure <= low + 0.1)
        filled = bool(inside.any())
        bins.append({
            "low": round(float(low), 1), "high": round(float(low) + 0.1, 1), "count": int(inside.sum()),
            "confidence": float(sure[inside].mean()) if filled else None,
            "accuracy": float(right[inside].mean()) if filled else None,
        })  # fmt: skip
    gaps = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins if b["count"])
    return {
        "accuracy": float(right.mean()),
        "accuracy_ci": [float(q) for q in np.quantile([right[d].mean() for d in draws], [0.025, 0.975])],
        "macro_f1": macro(slice(None)),
        "macro_f1_ci": [float(q) for q in np.quantile([macro(d) for d in draws], [0.025, 0.975])],
        "ece": gaps / len(truth),
        "brier": float(((sure - right) ** 2).mean()),
        "support": len(truth),
        "confusion": {"labels": labels, "matrix": matrix.tolist()},
        "reliability": bins,
        "per_label": {
            label: {"precision": float(p[i]), "recall": float(r[i]), "f1": float(f[i]), "support": int(n[i])}
            for i, label in enumerate(labels)
        },
    }  # fmt: skip


def sample_report(num_test: int, rng: np.random.Generator) -> dict[str, Any]:
    groups = {name: [f"{part}.{name}" for part in ("f1", "f2", "f3")] for name in LABELS}
    truth = {n: rng.choice(labels, (num_test, 3), p=PRIOR[n]) for n, labels in LABELS.items()}
    systems, hits = [], {}
    for name, strategy, base, skill in SYSTEMS:
        fields: dict[str, Any] = {}
        right = np.ones(num_test, bool)
        for group, labels in LABELS.items():
            knows = rng.random((num_test, 3)) < (skill[group] - 0.2) / 0.8
            guess = rng.choice(labels, (num_test, 3), p=PRIOR[group])
            answer = np.where(knows, truth[group], guess)
            if name == "majority":
                answer = np.full((num_test, 3), labels[int(np.argmax(PRIOR[group]))])
            sure = np.clip(np.where(knows, 0.85, 0.5) + rng.normal(0, 0.12, (num_test, 3)), 0.13, 0.995)
            fields[group] = scores(truth[group].ravel(), answer.ravel(), sure.ravel(), labels, rng)
            for i, path in enumerate(groups[group]):
                fields[path] = scores(truth[group][:, i], answer[:, i], sure[:, i], labels, rng)
            if name == "majority":
                for field in fields.values():
                    field["ece"] = field["brier"] = None
                    field["reliability"] = []
            right &= (answer == truth[group]).all(axis=1)
            hits[name, group] = (answer == truth[group]).mean(axis=1)
        p50, p95, rate, seconds, peak, prompt, written, passes = COSTS[name]
        draws = [right[rng.integers(0, num_test, num_test)].mean() for _ in range(60)]
        systems.append({
            "name": name, "strategy": strategy, "base_model": base, "fields": fields,
            "exact_match": float(right.mean()), "exact_match_ci": np.quantile(draws, [0.025, 0.975]).tolist(),
            "valid_rate": 1.0, "latency_p50_s": p50, "latency_p95_s": p95, "answers_per_s": rate,
            "prompt_tokens": prompt, "completion_tokens": written, "forward_passes": passes, "cost_usd": 0.0,
            "train_seconds": seconds, "peak_memory_bytes": peak,
        })  # fmt: skip
    tests = []
    for rival in ("majority", "tfidf", "zero-shot"):
        for group in LABELS:
            gap = hits["finetuned", group] - hits[rival, group]
            error = gap.std() / num_test**0.5
            p = float(min(1.0, 2 * np.exp(-0.5 * (gap.mean() / error) ** 2)))
            tests.append({
                "a": "finetuned", "b": rival, "field": group, "metric": "accuracy", "difference": float(gap.mean()),
                "ci": [float(gap.mean() - 1.96 * error), float(gap.mean() + 1.96 * error)],
                "p": p, "p_holm": min(1.0, 3 * p),
            })  # fmt: skip
    return {
        "version": 1, "recipe_hash": "8c1f03b7a2d94e55", "task": "noticias", "num_test": num_test,
        "verdict": "finetuned is better than majority and than zero-shot on polaridade and on emocao, and better than "
        "tfidf on polaridade (Holm p < 0.05).\nNo difference from tfidf was shown on emocao.",
        "method": f"Paired permutation tests (10,000 permutations) with Holm's correction; bootstrap intervals over "
        f"{num_test} items (2,000 draws); seed 42.",
        "groups": groups, "systems": systems, "tests": tests,
    }  # fmt: skip


def sample_metrics(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for step in range(5, 305, 5):
        loss = 0.42 + 1.5 * np.exp(-step / 55) + rng.normal(0, 0.05)
        rate = 1e-3 * min(step / 15, (300 - step) / 285)
        seen = {"step": step, "epoch": step / 50, "elapsed_s": 0.7 * step}
        rows.append({**seen, "loss": float(loss), "learning_rate": rate, "tokens_per_s": 2900 + rng.normal(0, 90)})
        if step % 25 == 0:
            rows.append(
                {**seen, "validation_loss": float(0.62 + np.exp(-step / 60) + 2.6e-6 * max(0, step - 150) ** 2)}
            )
    return rows


def sample_data() -> dict[str, Any]:
    def count(prior: list[float], labels: list[str]) -> dict[str, Any]:
        parts = {"train": 630, "validation": 90, "test": 180}
        return {x: {k: round(n * p) for k, n in parts.items()} for x, p in zip(labels, prior, strict=True)}

    return {
        "sources": [{
            "path": "noticias.csv", "format": "csv, comma", "encoding": "utf-8", "rows": 309,
            "sha256": "6b1d0e1c9f2a4c7788aa01cc5b9d3f42e7b1a0f95d2c64d3387fe019ab55c0de",
            "notes": ["byte order mark removed", "label Felicidade read as alegria"],
        }],
        "rows": {"read": 309, "usable": 300, "rejected": 9},
        "rejected": {"f2.emocao: 'ansiedade' is no label": 5, "f1 is empty": 3, "14 of 16 cells": 1},
        "duplicates": {"clusters": 4, "exact_duplicates": 2, "near_duplicates": 3, "conflicting_labels": 1},
        "leakage": {"highest_similarity": {"train-test": 0.41}, "pairs": 0, "removed": 0},
        "labels": {name: count(PRIOR[name], labels) for name, labels in LABELS.items()},
        "lengths": {"min": 41, "p50": 96, "p90": 133, "p99": 171, "max": 204, "above": 0},
        "splits": {"train": 210, "validation": 30, "test": 60},
    }  # fmt: skip


def sample_examples(rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for i in range(14):
        head, *parts = HEADLINES[i % len(HEADLINES)]
        gold = {f"f{k}": {n: str(rng.choice(x, p=PRIOR[n])) for n, x in LABELS.items()} for k in (1, 2, 3)}
        output = json.loads(json.dumps(gold))
        if i % 3:
            output[f"f{i % 3}"]["emocao"] = "neutro" if gold[f"f{i % 3}"]["emocao"] != "neutro" else "medo"
        found.append({
            "id": str(100 + i), "inputs": dict(zip(("f1", "f2", "f3"), parts, strict=True)), "gold": gold,
            "output": output, "confidence": {p: float(rng.uniform(0.35, 0.98)) for p, _ in flat(gold)},
            "correct": output == gold,
        })  # fmt: skip
        assert head
    return found


RECIPE = {
    "task": {
        "name": "noticias",
        "instruction": "Classifique a frase de uma notícia econômica conforme a polaridade e a emoção de Ekman.",
        "inputs": {"f1": "f1", "f2": "f2", "f3": "f3"},
        "output": {"type": "object", "properties": {n: {"enum": x} for n, x in LABELS.items()}},
    },
    "data": {"path": "noticias.csv", "test_size": 0.2, "validation_size": 0.1},
    "train": {"base_model": "afina/nano", "lora_r": 16, "lora_alpha": 64, "max_length": 256, "learning_rate": 1e-3},
    "compare": [name for name, *_ in SYSTEMS],
    "seed": 42,
}


def write_sample_run(folder: Path, num_test: int = 60, seed: int = 7) -> Path:
    """A run folder with every file that a report reads."""
    rng = np.random.default_rng(seed)
    write_json(folder / "report.json", sample_report(num_test, rng))
    write_json(folder / "recipe.json", RECIPE)
    write_json(folder / "data" / "report.json", sample_data())
    write_jsonl(folder / "metrics.jsonl", sample_metrics(rng))
    plan = {
        "parameters": 11_300_000, "trainable_parameters": 1_204_224, "steps": 300, "estimated_s": 198.0,
        "memory": {"weights": 22_600_000, "adapters": 4_816_896, "gradients": 4_816_896, "optimizer": 9_633_792,
                   "activations": 88_000_000, "logits": 31_000_000},
        "notes": ["paged_adamw_32bit needs a GPU: adamw_torch is used", "load_in_4bit: false, 11 M weights fit"],
    }  # fmt: skip
    write_json(folder / "plan.json", plan)
    environment = {
        "versions": {"afina": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0"},
        "machine": {"cpu": "2 cores, AVX-512, bf16", "memory": "8 GiB", "gpu": None},
        "hashes": {"recipe": "8c1f03b7a2d94e55", "data": "1d2e9f00aa41b7c3", "template": "77aa01cc5b9d3f42"},
    }
    write_json(folder / "environment.json", environment)
    write_json(folder / "examples.json", sample_examples(rng))
    return folder


# -- what the page says --------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text a reader sees."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.text += data

    def ids(self) -> list[str]:
        return [str(a["id"]) for _, a in self.tags if "id" in a]


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_run(tmp_path_factory.mktemp("sample") / "run")


@pytest.fixture
def run_dir(sample_run: Path, tmp_path: Path) -> Path:
    """A copy of the sample run, for the test to change."""
    return Path(shutil.copytree(sample_run, tmp_path / "run"))


def read_page(run_dir: Path, language: str = "en") -> Page:
    return Page(write_report(run_dir, language).read_text(encoding="utf-8"))


def test_the_page_has_every_section_in_order_and_is_well_formed(run_dir: Path) -> None:
    page = read_page(run_dir)
    wanted = "verdict results bars tests confusion reliability training data examples plan recipe environment"
    assert page.ids() == wanted.split()
    assert page.open == []  # every tag is closed
    assert "Not shown" not in page.text
    assert "{" not in page.text.replace(yaml.safe_dump(RECIPE), "")  # no unfilled placeholder


def test_the_page_holds_the_figures_of_report_json(run_dir: Path) -> None:
    page, report = read_page(run_dir), json.loads((run_dir / "report.json").read_text())
    assert len(report["systems"]) == 4
    seen = 0
    for system in report["systems"]:
        for group in LABELS:
            for metric in ("accuracy", "macro_f1"):
                low, high = system["fields"][group][f"{metric}_ci"]
                assert f"[{low:.2f}, {high:.2f}]" in page.text
                assert f"{system['fields'][group][metric]:.2f}" in page.text
                seen += 1
    assert seen == 16
    # Four bars in each of five figures, and an interval (with its halo) through each of them.
    bars = [a for tag, a in page.tags if tag == "div" and (a.get("class") or "").startswith("bar-row")]
    assert (
        len([a for a in bars if "bar-axis" not in str(a["class"])]) == 4 * 5 + 6 + 2 * 3
    )  # and six parts of memory, and
    # three differences by each of two measures
    matrix = report["systems"][3]["fields"]["polaridade"]["confusion"]["matrix"]
    assert sum(map(sum, matrix)) == 180
    assert len([a for _, a in page.tags if "cell" in (a.get("class") or "").split()]) == 4 * (9 + 64) + 3 * (9 + 64)


def test_nothing_is_loaded_and_nothing_runs(run_dir: Path) -> None:
    page = read_page(run_dir)
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert [a for _, a in page.tags if any(k in a for k in ("src", "xlink:href", "onload", "onclick"))] == []
    assert all(str(a["href"]).startswith("#") for _, a in page.tags if "href" in a)
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://", text)


def test_what_comes_from_data_recipe_or_model_is_shown_as_text(tmp_path: Path) -> None:
    run_dir = write_sample_run(tmp_path / "run")
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;"
    report = json.loads((run_dir / "report.json").read_text())
    report["verdict"] = report["method"] = report["task"] = attack
    report["systems"][3]["name"] = attack
    report["tests"][0]["a"] = report["tests"][0]["field"] = report["tests"][0]["metric"] = attack
    report["systems"][3]["fields"]["polaridade"]["confusion"]["labels"][0] = attack
    report["groups"][attack] = [attack]
    for system in report["systems"]:
        system["fields"][attack] = system["fields"]["polaridade"]
    write_json(run_dir / "report.json", report)
    data = json.loads((run_dir / "data" / "report.json").read_text())
    data["sources"][0]["path"] = attack
    data["rejected"][attack] = 1
    data["labels"][attack] = {attack: {"train": 1}}
    write_json(run_dir / "data" / "report.json", data)
    examples = json.loads((run_dir / "examples.json").read_text())
    examples[0] = {"id": attack, "inputs": {attack: attack}, "gold": {attack: attack}, "output": None, "correct": False}
    write_json(run_dir / "examples.json", examples)
    write_json(run_dir / "recipe.json", {"task": {"instruction": attack}})
    write_json(run_dir / "environment.json", {attack: {attack: attack}})
    plan = json.loads((run_dir / "plan.json").read_text())
    write_json(run_dir / "plan.json", {**plan, "notes": [attack], "memory": {attack: 5}})
    for language in ("en", "pt"):
        page = read_page(run_dir, language)
        assert not {"script", "img"} & {tag for tag, _ in page.tags}
        assert not [a for _, a in page.tags if "onerror" in a]
        assert page.text.count("<script>alert(1)</script>") >= 25
        assert page.open == []


@pytest.mark.parametrize(
    "name", ["recipe.json", "data/report.json", "metrics.jsonl", "plan.json", "environment.json", "examples.json"]
)
def test_a_missing_file_leaves_one_quiet_line(run_dir: Path, name: str) -> None:
    (run_dir / name).unlink()
    page = read_page(run_dir)
    assert page.text.count("Not shown") == 1
    assert f"Not shown: {name} is not in this run folder." in page.text


def test_report_json_alone_is_enough_even_with_open_fields_and_no_groups(tmp_path: Path) -> None:
    report = {
        "version": 1, "task": "resumo", "num_test": 5, "verdict": "Nothing was compared.", "tests": [],
        "systems": [{"name": "finetuned", "strategy": "finetuned", "fields": {"nota": {"accuracy": 0.4, "ece": None}}}],
    }  # fmt: skip
    write_json(tmp_path / "report.json", report)
    page = read_page(tmp_path)
    assert "0.40" in page.text
    assert "No field here has a closed set of labels." in page.text
    assert "No system gave confidences." in page.text
    assert "nan" not in page.text.lower().replace("finance", "")
    write_card(tmp_path, tmp_path)


def test_labels_as_a_list_are_shown_as_well(run_dir: Path) -> None:
    """So reports were before their format was settled."""
    report = json.loads((run_dir / "report.json").read_text())
    for system in report["systems"]:
        for field in system["fields"].values():
            field["per_label"] = [{"label": label, **row} for label, row in field["per_label"].items()]
    before = read_page(run_dir).text
    write_json(run_dir / "report.json", report)
    assert read_page(run_dir).text == before


def test_a_run_that_was_not_evaluated_or_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"found no report\.json.*afina evaluate"):
        write_report(tmp_path)
    run_dir = write_sample_run(tmp_path / "run")
    (run_dir / "plan.json").write_text('{"steps": ')
    with pytest.raises(RunError, match=r"plan\.json: is damaged"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()


def test_half_a_line_at_the_end_of_the_metrics_is_survived(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 305, "lo')
    assert "best: step" in read_page(run_dir).text


def test_the_best_step_is_where_the_validation_loss_is_lowest(run_dir: Path) -> None:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in rows if "validation_loss" in row]
    assert len(seen) == 12
    best = min(seen, key=lambda row: row["validation_loss"])["step"]
    assert 0 < best < 300
    assert f"best: step {best}" in read_page(run_dir).text


def test_losses_that_are_no_numbers_are_not_drawn(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 310, "loss": NaN}\n{"step": 315, "loss": Infinity}\n')
    read_page(run_dir)
    drawn = (run_dir / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'points="[^"]*(nan|inf)', drawn)


def test_portuguese_page_is_portuguese(run_dir: Path) -> None:
    page = read_page(run_dir, "pt")
    assert ("html", {"lang": "pt-BR"}) in page.tags
    assert "Veredito" in page.text
    assert "finetuned: melhor que majority em polaridade, acurácia (" in page.text
    assert "[0," in page.text  # decimal comma
    assert "no difference shown" not in page.text
    with pytest.raises(AfinaError, match="found 'fr', expected one of"):
        write_report(run_dir, "fr")


def test_every_text_exists_in_both_languages_with_the_same_places() -> None:
    def places(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert len(WORDS) > 100
    for key, (english, portuguese) in WORDS.items():
        assert english, key
        assert portuguese, key
        assert places(english) == places(portuguese), key
    folder = Path(__file__).resolve().parent.parent / "src" / "afina" / "report"
    source = "".join(p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.suffix in (".py", ".jinja"))
    unused = [key for key in WORDS if f'"{key}"' not in source.replace(f'"{key}": (', "")]
    # Keys whose end is a fact of the report.
    made = ("says_", "by_first_", "by_measure_", "advice_", "cheaper_", "for_", "basis_", "pareto_", "cost_axis")
    made += ("latency_axis", "mean_accuracy")
    assert [key for key in unused if not key.startswith(made)] == []


@pytest.mark.parametrize(
    ("difference", "p_holm", "metric", "said"),
    [
        (0.1, 0.01, "accuracy", "better"),
        (-0.1, 0.01, "accuracy", "worse"),
        (0.1, 0.05, "accuracy", "none"),
        (0.1, 0.2, "macro_f1", "none"),
        (-0.1, 0.01, "ece", "better"),
        (0.1, None, "accuracy", "better"),  # judged on p where there is no correction
        (None, None, "accuracy", "none"),
    ],
)
def test_words_say_no_more_than_the_test(difference: float, p_holm: float, metric: str, said: str) -> None:
    assert outcome({"difference": difference, "p": 0.001, "p_holm": p_holm, "metric": metric}) == said


def test_numbers_as_each_language_writes_them() -> None:
    en, pt = Language("en"), Language("pt")
    assert (en.number(1234.5), pt.number(1234.5)) == ("1,234.50", "1.234,50")
    assert (en.interval([0.1, 0.25]), pt.interval([0.1, 0.25])) == ("[0.10, 0.25]", "[0,10; 0,25]")
    assert en.signed(-0.02, 2) == "\u22120.02"
    assert en.p_value(0.0002) == "< 0.001"
    assert (en.percent(1.0), en.percent(0.9999), en.percent(0.5)) == ("100 %", ">99.9 %", "50 %")
    assert (en.duration(0.121), en.duration(214), en.duration(None)) == ("121 ms", "3 min 34 s", "–")
    assert (pt.join(["a", "b", "c"]), en.join(["a"])) == ("a, b e c", "a")


def test_wilson_interval_equals_scipy() -> None:
    from scipy.stats import binomtest

    checked = 0
    for right, count in ((0, 5), (3, 5), (17, 60), (60, 60)):
        wanted = binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
        checked += 1
    assert checked == 4


def test_axis_holds_its_data_on_round_ticks() -> None:
    axis = nice_axis(0.03, 1.97, "loss", str)
    assert (axis.low, axis.high) == (0.0, 2.0)
    assert axis.percent(1.0) == 50
    assert nice_axis(3.0, 3.0, "", str).high > 3.0  # a flat line is no division by zero


# -- the model card ------------------------------------------------------------------------------


def test_the_card_reads_as_the_hub_wants_it(run_dir: Path) -> None:
    folder = run_dir / "specialist"
    write_json(folder / "adapter_config.json", {})
    text = write_card(run_dir, folder, languages=["pt"]).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta == {
        "language": ["pt"], "license": "other", "base_model": "afina/nano", "base_model_relation": "adapter",
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["afina", "structured-output", "lora"],
        "metrics": ["accuracy", "f1", "exact_match"],
    }  # fmt: skip
    for heading in ("What it does", "Output", "Results", "Training data", "How to use it", "Limits", "What was not"):
        assert f"## {heading}" in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len(rows) == 6  # header, rule, four systems
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert 'specialist(f1="...", f2="...", f3="...")' in body
    assert "6b1d0e1c9f2a4c77" in body


def test_the_card_obeys_no_markup_of_the_recipe_and_tells_no_path(run_dir: Path) -> None:
    report = json.loads((run_dir / "report.json").read_text())
    report["verdict"] = "<script>x</script> | **bold**"
    report["systems"][3]["base_model"] = "/home/ana/modelos/meu-llama"
    write_json(run_dir / "report.json", report)
    text = write_card(run_dir, run_dir / "specialist").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert r"\| \*\*bold\*\*" in text
    assert "/home/ana" not in text
    assert "meu-llama" in text
    assert "base_model" not in yaml.safe_load(text.split("---\n", 2)[1])


def test_the_data_report_of_a_real_table_is_shown_whole(run_dir: Path) -> None:
    """The keys that `prepare` writes are the keys that the page reads."""
    from afina.core.recipe_file import load_recipe
    from afina.core.task_config import load_task
    from afina.data.prepare import prepare

    recipe = load_recipe(Path(__file__).resolve().parent.parent / "src/afina/assets/noticias/recipe.yaml")
    prepare(recipe, load_task(recipe.task), run_dir / "data", lambda example: 40 + len(example.inputs["f1"]) // 9)
    text = read_page(run_dir).text
    found = re.search(r"Duplicates(.*?)Labels in each split", text, re.DOTALL)
    assert found is not None
    assert "–" not in found[1]
    assert "max_length" in text
