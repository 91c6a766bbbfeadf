"""`assistant.json`: how a specialist is asked with passages, beside its `afina.json`.

Comes in: what a training and a choice on validation decided. Goes out: a file in the specialist's folder, and what it
says, checked. docs/formats.md describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from afina.core.catalogue_config import SourcesConfig
from afina.core.errors import ModelError, RunError
from afina.core.storage import digest, read_json, write_json
from afina.engine.renderer import Renderer
from afina.strategies.grounded.prompt import PROMPT_VERSION, grounded_renderer

AnswerText = Literal["quoted", "written"]
ASSISTANT = "assistant.json"
ASSISTANT_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How questions are asked and answered.

    passages, passage_chars, max_sources: as in the recipe's group `sources`. min_support: below it a question is
    refused without asking the model; in [0, 1]. max_length: tokens of prompt and answer. max_text_tokens: of the
    answer's text. questions: templates around {title}, for rows that come without a question. text: "quoted" makes the
    sentences that are cited the answer, "written" lets the model say it, for whose words nobody vouches. dense: the
    model of the vectors in the index; None for words alone. title_input:
    the task's input that is the title. catalogue_key: of the catalogue that it was trained for; None for any.
    support_choice: how min_support was chosen, JSON-ready.
    """

    passages: int
    passage_chars: int
    max_sources: int
    min_support: float
    questions: tuple[str, ...]
    max_length: int
    max_text_tokens: int
    batch_size: int
    text: AnswerText = "quoted"
    dense: str | None = None
    title_input: str = "title"
    catalogue_key: str | None = None
    support_choice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> SourcesConfig:
        return SourcesConfig(
            passages=self.passages,
            passage_chars=self.passage_chars,
            max_sources=self.max_sources,
            min_support=self.min_support,
        )


def fingerprint(renderer: Renderer) -> str:
    """Hash of all that decides the tokens of a grounded prompt and its answer, but the question and the products."""
    return digest([grounded_renderer(renderer).fingerprint, PROMPT_VERSION])


def write_manifest(folder: Path, settings: Settings, renderer: Renderer) -> Path:
    """Write it into a specialist's folder, whole or not at all. renderer: of any task of that specialist."""
    path = folder / ASSISTANT
    write_json(path, {"version": ASSISTANT_VERSION, "fingerprint": fingerprint(renderer), **asdict(settings)})
    return path


def read_manifest(folder: Path) -> tuple[Settings, str]:
    """(settings, fingerprint). Raises RunError where there is none, ModelError for a damaged one or another version."""
    path = folder / ASSISTANT
    if not path.exists():
        raise RunError(
            f"{folder}: cannot answer from a catalogue ({ASSISTANT} is missing). Train one that can with a recipe that "
            "has the groups catalogue and sources: afina run recipes/amazon.yaml"
        )
    try:
        raw: dict[str, Any] = dict(read_json(path))
        version = raw.pop("version", None)
        if version != ASSISTANT_VERSION:
            raise ModelError(
                f"{path}: version {version!r}, this Afina reads {ASSISTANT_VERSION}. Train again, or use the Afina "
                "that made it."
            )
        found = str(raw.pop("fingerprint"))
        raw["questions"] = tuple(raw["questions"])
        settings = Settings(**raw)
        if settings.config.min_support == "auto":  # the limits of a recipe hold here as well
            raise ValueError("min_support is not a number")
        if settings.text not in get_args(AnswerText):
            raise ValueError(f"text is {settings.text!r}, expected one of {get_args(AnswerText)}")
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(f"{path}: is damaged ({error}). Copy the specialist again, or train again.") from error
    return settings, found
