"""The specialist's model card: a README.md as the Hugging Face hub reads it.

Comes in: an evaluated run and the folder of its specialist. Goes out: `README.md` in that folder: YAML
front matter, what it does, what it scored with intervals, what it was trained on, and what nobody measured.
Says nothing that is not in the run's files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChainableUndefined, Environment, PackageLoader

from afina.core.storage import read_json, write_text
from afina.report.run_folder import RunFiles, finite, read_run
from afina.report.texts import is_text, text_cell
from afina.report.words import Language

HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~])")


def write_card(run_dir: Path, specialist_dir: Path, languages: Sequence[str] = (), license_id: str = "other") -> Path:
    """Write `README.md` beside the specialist's weights and return its path.

    languages: ISO 639-1 codes of the texts, where they are known. license_id: of the weights, as the hub
    names it; a specialist inherits the terms of its base model and of its data, so "other" until a person says.
    Raises RunError when the run was not evaluated.
    """
    run = read_run(run_dir)
    manifest_path = specialist_dir / "afina.json"
    manifest: dict[str, Any] = read_json(manifest_path) if manifest_path.exists() else {}
    task: dict[str, Any] = manifest.get("task") or (run.recipe or {}).get("task") or {}
    is_adapter = (specialist_dir / "adapter_config.json").exists()
    words = Language("en")
    environment = Environment(
        loader=PackageLoader("afina.report"), undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=words.number, count=words.count, interval=words.interval, percent=words.percent,
        duration=words.duration, bytes=words.bytes, md=escape_markdown,
    )  # fmt: skip
    text = environment.get_template("card.md.jinja").render(
        front=yaml.safe_dump(
            front_matter(run, is_adapter, languages, license_id), sort_keys=False, allow_unicode=True
        ).strip(),
        run=run,
        report=run.report,
        specialist=run.specialist,
        base_model=base_name(run.specialist.get("base_model")),
        is_adapter=is_adapter,
        is_text=is_text(run),
        cell=lambda system, metric: text_cell(system, metric, words),
        instruction=task.get("instruction"),
        inputs=list(task.get("inputs") or {}),
        schema=json.dumps(task["output"], ensure_ascii=False, indent=2)
        if "output" in task and not is_text(run)
        else None,
        data=run.data,
        unmeasured=unmeasured(run),
    )
    path = specialist_dir / "README.md"
    write_text(path, text)
    return path


def base_name(base_model: str | None) -> str | None:
    """The base as the hub knows it; of a local folder its own name, since a path means nothing elsewhere."""
    if not base_model or (HUB_NAME.match(base_model) and not base_model.startswith(".")):
        return base_model
    return Path(base_model).name


def front_matter(run: RunFiles, is_adapter: bool, languages: Sequence[str], license_id: str) -> dict[str, Any]:
    """The card's metadata, as the hub documents it; a key without a known value is left out."""
    base, name = run.specialist.get("base_model"), base_name(run.specialist.get("base_model"))
    scored = {metric for field in run.specialist["fields"].values() for metric in field if finite(field[metric])}
    metrics = [hub for ours, hub in (("accuracy", "accuracy"), ("macro_f1", "f1")) if ours in scored]
    metrics += ["exact_match"] if finite(run.specialist.get("exact_match")) else []
    metrics += ["chrf", "rouge"] if is_text(run) else []
    front: dict[str, Any] = {
        "language": list(languages) or None,
        "license": license_id,
        # A local base has no page on the hub to link to.
        "base_model": name if name == base else None,
        "base_model_relation": ("adapter" if is_adapter else "finetune") if base and name == base else None,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["afina", *([] if is_text(run) else ["structured-output"]), *(["lora"] if is_adapter else [])],
        "metrics": metrics or None,
    }
    return {key: value for key, value in front.items() if value is not None}


def unmeasured(run: RunFiles) -> list[str]:
    """What a reader may think was measured and was not."""
    fields = run.specialist["fields"].values()
    found = [
        "Another training run: one was trained and tested. The intervals hold for other test items, not for another "
        "seed.",
        "Texts of another source, time or dialect than the table's.",
        "Whether the texts are true: likeness to the gold text is no proof of it."
        if is_text(run)
        else "Whether the labels are right, and whether mistakes fall more on some people or topics than on others.",
        "Texts written to mislead it.",
    ]
    if not is_text(run) and not any(finite(field.get("ece")) for field in fields):
        found.append("Calibration: no field has confidences that were scored.")
    if not any(finite(system.get("cost_usd")) and system["cost_usd"] > 0 for system in run.systems):
        found.append("Money: no system here was paid by the call; electricity and hardware are not counted.")
    if not finite(run.specialist.get("peak_memory_bytes")):
        found.append("Peak memory.")
    return found


def escape_markdown(value: Any) -> str:
    """Text of data or recipe on one line, with nothing in it that Markdown or HTML would obey."""
    return MARKDOWN.sub(r"\\\1", " ".join(str(value).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")
