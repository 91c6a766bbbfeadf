"""The README of a publication, as the Hub and a reader take it.

Comes in: what the run's files say, counts of a catalogue. Goes out: Markdown with YAML front matter. The model card of
an evaluated run is the report's; here it gets what a stranger needs: how to load it, and no path of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from afina.core.storage import read_json
from afina.engine.hub import NANO
from afina.publishing.settings import file_name
from afina.report.card import HUB_NAME, escape_markdown, write_card
from afina.strategies.finetuned import Manifest

UID_NOTE = (
    "`uid` is text: product ids begin with zeros and may end in a letter, and a number would lose both. The Parquet "
    "files say so themselves. Who turns them into CSV must say it again when reading: "
    '`pandas.read_csv(..., dtype={"uid": "string"})`.'
)


def model_card(run: Path | None, folder: Path, manifest: Manifest, license_id: str, languages: Sequence[str]) -> str:
    """The card of a specialist, whose files stand in `folder` already."""
    if run is not None and (run / "report.json").exists():
        path = write_card(run, folder, languages, license_id)
        text = path.read_text(encoding="utf-8")
        path.unlink()
        text = _without_nano(_without_folders(text, run))
    else:
        text = _plain_card(folder, manifest, license_id, languages)
    return text.rstrip("\n") + "\n\n" + _loading(folder, manifest)


def _without_folders(text: str, run: Path) -> str:
    """The tables that it was trained on by their names."""
    path = run / "data" / "report.json"
    sources = read_json(path).get("sources", []) if path.exists() else []
    for source in sorted((str(one.get("path") or "") for one in sources), key=len, reverse=True):
        if source:
            shown = source.replace("\\", "/").replace("`", "'")
            text = text.replace(f"`{shown}`", f"`{file_name(source)}`")
    return text


def _without_nano(text: str) -> str:
    """The front matter links to the base on the Hub, where this one is not."""
    return text.replace(f"base_model: {NANO}\n", "", 1)


def _plain_card(folder: Path, manifest: Manifest, license_id: str, languages: Sequence[str]) -> str:
    """Of a specialist that was not evaluated here: what it is, and that nothing is known of how good it is."""
    is_adapter = (folder / "adapter_config.json").exists()
    on_hub = manifest.base_model != NANO and HUB_NAME.match(manifest.base_model) and "/" in manifest.base_model
    front = {
        "language": list(languages) or None,
        "license": license_id,
        "base_model": manifest.base_model if on_hub else None,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["afina", *(["lora"] if is_adapter else [])],
    }
    task = manifest.task
    schema = json.dumps(task["output"], ensure_ascii=False, indent=2)
    lines = [
        _front(front),
        f"# {escape_markdown(task['name'])}",
        "",
        "It was not evaluated: how often its answers are right is not known.",
        "",
        "## What it does",
        "",
        f"> {escape_markdown(task['instruction'])}",
        "",
        f"It reads: {', '.join(f'`{name}`' for name in task['inputs'])}. "
        f"It is {'an adapter (LoRA) on' if is_adapter else 'a fine-tune of'} `{manifest.base_model}`.",
        *([] if task.get("free_text") else ["", "## Output", "", "```json", schema, "```"]),
    ]
    return "\n".join(lines) + "\n"


def _loading(folder: Path, manifest: Manifest) -> str:
    """How to load it with other libraries, which is not how it was evaluated."""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if (folder / "adapter_config.json").exists():
        base = f'"{manifest.base_model}"'
        lines = ["from peft import PeftModel", *lines]
        if manifest.base_model == NANO:  # not on the Hub: it comes with Afina
            base = f'resolve("{NANO}")'
            lines = ["from afina.engine.loader import resolve", *lines]
        lines += [
            f"base = AutoModelForCausalLM.from_pretrained({base})",
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        ]
    else:
        lines.append('model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")')
    note = "The weights load with transformers and peft alone; prompt and grammar are then yours to build."
    code = "\n".join(lines)
    return f"## Through transformers\n\n{note}\n\n```python\n{code}\n```\n"


@dataclass(frozen=True)
class Origin:
    """Where shards come from. files: name -> sha256. num_rows, num_shards: of the whole catalogue."""

    files: Mapping[str, str]
    num_rows: int
    num_shards: int
    chosen: tuple[int, ...]

    @property
    def line(self) -> str:
        first, last = self.chosen[0], self.chosen[-1]
        is_range = len(self.chosen) == last - first + 1 > 2
        shards = f"{first} to {last}" if is_range else ", ".join(map(str, self.chosen))
        files = ", ".join(f"`{name}` (sha256 `{found}`)" for name, found in self.files.items())
        return (
            f"Shards {shards} of {self.num_shards} ({self.num_rows:,} usable rows in all), made of {files}. The terms "
            "of what they were made of hold for these rows."
        )


def data_card(title: str, counts: Mapping[str, int], origin: Origin, license_id: str, languages: Sequence[str]) -> str:
    """The card of a catalogue's shards. counts: split -> rows."""
    total = sum(counts.values())
    front: dict[str, Any] = {
        "language": list(languages) or None,
        "license": license_id,
        "pretty_name": title,
        "task_categories": ["text-generation"],
        "tags": ["afina", "products"],
        "size_categories": [_size_category(total)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}/*.parquet"} for split in counts],
            }
        ],
        "dataset_info": {
            "features": [{"name": name, "dtype": dtype} for name, dtype in FEATURES.items()],
            "splits": [{"name": split, "num_examples": rows} for split, rows in counts.items()],
        },
    }
    rows = [f"| {split} | {count:,} |" for split, count in counts.items()]
    lines = [
        _front(front),
        f"# {escape_markdown(title)}",
        "",
        f"{total:,} products as title and content, cleaned and split by [Afina](https://pypi.org/project/afina).",
        "",
        "| split | rows |",
        "|---|---|",
        *rows,
        "",
        "Near-duplicates stand on one side of the split; `cluster` says which rows they are, so that another split can "
        "keep them together too.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'data = load_dataset("THIS_REPOSITORY")',
        "```",
        "",
        "## Columns",
        "",
        *[f"- `{name}`: {COLUMN_NOTES[name]}" for name in FEATURES],
        "",
        UID_NOTE,
        "",
        "## Where it comes from",
        "",
        origin.line,
    ]
    return "\n".join(lines) + "\n"


FEATURES = {"uid": "string", "title": "string", "content": "string", "line": "int64", "cluster": "int64"}
COLUMN_NOTES = {
    "uid": "the product's id, as text",
    "title": "what the product is called",
    "content": "its description, cleaned",
    "line": "its line in the file that it comes from",
    "cluster": "number of its near-duplicates",
}


def _front(front: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in front.items() if value is not None}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip()}\n---\n"


def _size_category(num_rows: int) -> str:
    """As the Hub names them."""
    steps = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for most, name in steps if num_rows < most), "1M<n<10M")
