"""A specialist as a publication: weights, tokenizer, manifest, recipe and card, proven to load before they leave.

Comes in: a run or specialist folder, and whether the adapter is merged. Goes out: an unsealed folder, from which plain
transformers and peft load, and `Specialist.load` too. Where it goes is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from afina.core.errors import AfinaError
from afina.core.storage import explain_write_errors, read_json, write_json, write_text
from afina.engine.hub import NANO, explain, quiet
from afina.engine.loader import BASE_FILE, BaseSpec, resolve, specialist_spec, weights_folder
from afina.publishing.card import model_card
from afina.publishing.files import put
from afina.publishing.settings import is_on_hub, public_base, published_recipe
from afina.publishing.target import PublishError
from afina.strategies.finetuned import MANIFEST, Manifest, Specialist

ADAPTER = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "model*.safetensors", "model.safetensors.index.json")
BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "drafter.json",
    "drafter.safetensors",
)  # fmt: skip
LOCAL_KEYS = ("_name_or_path", "name_or_path")  # where transformers notes the folder that it read


@dataclass(frozen=True)
class ModelSource:
    """run: the folder with recipe.json and report.json; None where the specialist stands alone."""

    specialist: Path
    run: Path | None


def find_model(source: Path) -> ModelSource | None:
    """The specialist in a run folder, or the folder itself; None where there is none."""
    if (source / "specialist" / MANIFEST).exists():
        return ModelSource(source / "specialist", source)
    if (source / MANIFEST).exists():
        parent = source.resolve().parent
        return ModelSource(source, parent if (parent / "recipe.json").exists() else None)
    return None


def build_model(
    source: ModelSource, folder: Path, *, merged: bool = False, license_id: str = "other", languages: Sequence[str] = ()
) -> dict[str, Any]:
    """Put the publication together in an empty folder. Returns what its manifest says of where it comes from.

    Raises PublishError for a model that nobody else could load, ModelError for a damaged one.
    """
    manifest = Manifest.read(source.specialist)
    place, spec = weights_folder(source.specialist), specialist_spec(source.specialist)
    is_adapter = (place / ADAPTER).exists()
    if merged and not is_adapter:
        raise PublishError(f"{source.specialist}: has whole weights, so --merged has no effect. Leave it out.")
    if is_adapter and not merged and spec.name != NANO and not is_on_hub(spec.name):
        raise PublishError(
            f"{source.specialist}: its base model is {spec.name}, a folder of this machine, so nobody else could load "
            "the adapter. Pass --merged to publish whole weights, or train on the base's Hub id."
        )
    base = public_base(spec.name)
    # 1. Weights.
    if merged:
        _write_merged(place, folder, spec.dtype)
    else:
        _put_all(place, folder, WEIGHTS)
    if is_adapter and not merged:
        config = read_json(place / ADAPTER)
        write_json(folder / ADAPTER, {**config, "base_model_name_or_path": base, "revision": spec.revision})
    # 2. What goes with them.
    for name in BESIDE:
        if (place / name).exists() and not (folder / name).exists():
            _put_clean(place / name, folder, name)
    published = replace(spec, name=base, quantisation="none") if merged else replace(spec, name=base)
    write_json(folder / BASE_FILE, asdict(published))
    replace(manifest, base_model=public_base(manifest.base_model)).write(folder)
    resolved = read_json(source.run / "recipe.json") if source.run is not None else None
    if resolved is not None:
        write_text(folder / "recipe.yaml", published_recipe(resolved, manifest.task["output"]))
    write_text(folder / "README.md", model_card(source.run, folder, manifest, license_id, languages))
    # 3. Proof.
    check_model(folder, spec if is_adapter and not merged else None)
    return {"recipe_hash": manifest.recipe_hash, "data_hash": manifest.data_hash, "merged": merged}


def check_model(folder: Path, base: BaseSpec | None) -> None:
    """Load it as others will: with transformers and peft alone, then as a specialist. Raises PublishError.

    base: of an adapter; its own name is where this machine has it.
    """
    try:
        _load_plainly(folder, base)
        specialist = Specialist.load(folder, batch_size=1)
        answered = specialist.predict([dict.fromkeys(specialist.task.inputs, "a")])
        assert len(answered) == 1, "one row has one answer"
    except AfinaError as error:
        raise PublishError(f"the publication would not load elsewhere, so nothing was sent: {error}") from error


def _load_plainly(folder: Path, base: BaseSpec | None) -> None:
    """Weights and tokenizer by transformers and peft; one pass gives numbers. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), explain(folder.name), torch.no_grad():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        where = str(folder) if base is None else resolve(base.name, base.revision)
        loader: Any = AutoModelForCausalLM
        model = loader.from_pretrained(where, revision=base.revision if base else None, use_safetensors=True)
        if base is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder))
        ids = torch.tensor([tokenizer("a")["input_ids"] or [tokenizer.eos_token_id]], device=model.device)
        logits = model.eval()(input_ids=ids).logits
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("one pass over the weights gives values that are no numbers")


def _write_merged(place: Path, folder: Path, dtype: str) -> None:
    """Base and adapter as one model, added in float32 and rounded once to the type that it was trained in."""
    import torch

    from afina.training.adapters import merge

    merged = merge(place)
    model = merged.model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    with quiet(), explain_write_errors(folder):
        model.save_pretrained(str(folder))
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            write_json(folder / name, _cleaned(read_json(folder / name)))


def _put_all(place: Path, folder: Path, patterns: Sequence[str]) -> None:
    found = sorted({path for pattern in patterns for path in place.glob(pattern)})
    assert found, f"{place} was found to hold weights"
    for path in found:
        put(path, folder, path.name)


def _put_clean(source: Path, folder: Path, name: str) -> None:
    """A file as it is, unless transformers noted in it where it was read from."""
    if source.suffix == ".json" and name != "tokenizer.json":
        raw = read_json(source)
        if isinstance(raw, dict) and any(key in raw for key in LOCAL_KEYS):
            write_json(folder / name, _cleaned(raw))
            return
    put(source, folder, name)


def _cleaned(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in LOCAL_KEYS}
