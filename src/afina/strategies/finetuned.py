"""The specialist: a fine-tuned model folder with its manifest, ready to answer.

`afina.json`, the manifest, holds the task, the prompt style, the renderer's fingerprint, the calibration
temperatures and where it all came from. Serving under another fingerprint is an error: a model must
be asked as it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from afina.core.answer import Answer, answer_model
from afina.core.errors import ModelError, RunError
from afina.core.predictor import Inputs, Prediction
from afina.core.storage import read_json, write_json
from afina.core.task import Task
from afina.engine.loader import load_specialist
from afina.engine.renderer import Style
from afina.engine.spelling import AnswerFormat
from afina.strategies.drafter import AnswerDrafter
from afina.strategies.local import LocalPredictor

MANIFEST = "afina.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What a specialist folder says of itself.

    temperature: field path -> divisor of the logits, fitted on validation. created: ISO date.
    draft, reuse_prefix: how answers are made; they decide speed only.
    """

    task: dict[str, Any]
    base_model: str
    finetuning_type: str
    style: Style
    fingerprint: str
    max_length: int
    max_text_tokens: int
    batch_size: int
    recipe_hash: str
    data_hash: str
    afina_version: str
    created: str
    temperature: dict[str, float] = field(default_factory=dict)
    answer_format: AnswerFormat = "json"
    draft: bool = True
    reuse_prefix: bool = True
    no_repeat_ngram_size: int = 0
    version: int = MANIFEST_VERSION

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises RunError if the folder holds no specialist, ModelError if it is of another version."""
        path = folder / MANIFEST
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder, expected a run. Make one with: afina run recipe.yaml")
        if not path.exists():
            raise RunError(
                f"{folder}: holds no specialist ({MANIFEST} is missing). Train one with: afina run recipe.yaml"
            )
        try:
            raw = read_json(path)
            version = raw.get("version")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{path}: is damaged ({error}). Copy the specialist again, or train again.") from error
        if version != MANIFEST_VERSION:
            raise ModelError(
                f"{path}: manifest version {version!r}, this Afina reads {MANIFEST_VERSION}. "
                "Train again, or use the Afina that made it."
            )
        try:
            return cls(**raw)
        except TypeError as error:
            raise ModelError(f"{path}: is damaged ({error}). Copy the specialist again, or train again.") from error


class Specialist:
    """A fine-tuned model that answers one task.

    >>> specialist = Specialist.load("runs/noticias")           # doctest: +SKIP
    >>> answer = specialist(f1="...", f2="...", f3="...")       # doctest: +SKIP
    >>> answer.f1.polaridade, answer.confidence["f1.polaridade"]  # doctest: +SKIP
    """

    def __init__(self, predictor: LocalPredictor, manifest: Manifest) -> None:
        self.predictor, self.manifest = predictor, manifest
        self.task = predictor.task
        self.name = predictor.name

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        batch_size: int | None = None,
        draft: bool | None = None,
        reuse_prefix: bool | None = None,
    ) -> Specialist:
        """Load from a run folder or a specialist folder. What is None is as the manifest says.

        Raises RunError (no specialist there) or ModelError (damaged, or made under another prompt).
        """
        folder = Path(run)
        if (folder / "specialist" / MANIFEST).exists():
            folder = folder / "specialist"
        manifest = Manifest.read(folder)
        loaded = load_specialist(folder, merged=True)
        task = Task.from_json(manifest.task)
        predictor = LocalPredictor(
            "specialist",
            loaded.model,
            loaded.tokenizer,
            task,
            style=manifest.style,
            temperature=manifest.temperature,
            batch_size=batch_size or manifest.batch_size,
            max_text_tokens=manifest.max_text_tokens,
            max_length=manifest.max_length,
            answer_format=manifest.answer_format,
            drafter=AnswerDrafter.load(folder) if (manifest.draft if draft is None else draft) else None,
            reuse_prefix=manifest.reuse_prefix if reuse_prefix is None else reuse_prefix,
            no_repeat_ngram_size=manifest.no_repeat_ngram_size,
        )
        if predictor.renderer.fingerprint != manifest.fingerprint:
            raise ModelError(
                f"{folder}: prompts would be rendered otherwise than in training (fingerprint "
                f"{predictor.renderer.fingerprint}, trained with {manifest.fingerprint}): the tokenizer, its chat "
                "template or this version of Afina changed. Restore them, or train again."
            )
        return cls(predictor, manifest)

    @cached_property
    def answer_type(self) -> type[Answer]:
        """The Pydantic model of the answers."""
        return answer_model(self.task.output, self.task.name)

    def predict(self, inputs: Sequence[Inputs], *, label: str | None = None) -> list[Prediction]:
        """One prediction per row, in order."""
        return self.predictor.predict(inputs, label=label)

    def __call__(self, **inputs: str) -> Answer:
        """One answer as a Pydantic object with `.confidence`.

        Raises TypeError for a missing or unknown input, ModelError if no answer could be made.
        """
        wanted = list(self.task.inputs)
        if set(inputs) != set(wanted):
            raise TypeError(f"expected the inputs {wanted}, found {list(inputs)}")
        prediction = self.predict([inputs])[0]
        if prediction.error:
            raise ModelError(prediction.error)
        output = prediction.output if isinstance(prediction.output, dict) else {"value": prediction.output}
        answer = self.answer_type.model_validate(output)
        answer._confidence = dict(prediction.confidence)
        return answer
