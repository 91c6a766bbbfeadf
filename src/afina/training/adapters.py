"""LoRA on a loaded model, once; the finished weights on disk; an adapter merged into its base.

Comes in: a LoadedModel and settings, or a specialist's folder. It knows nothing of data or steps.

    y = W x + (alpha / r) B A x        A: r x in, B: out x r, B starts at 0     (arXiv:2106.09685)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from afina.core.errors import ModelError
from afina.engine.hub import quiet
from afina.engine.loader import (
    LoadedModel,
    attach_adapter,
    load_spec,
    load_specialist,
    save_base_spec,
    specialist_spec,
    weights_folder,
)
from afina.training.loss import unwrap
from afina.training.settings import Settings


def prepare(loaded: LoadedModel, settings: Settings) -> LoadedModel:
    """The model with what is to be trained switched on: an adapter, or all weights in float32.

    A model that has an adapter already (from `adapt`) keeps that one: PEFT is never applied twice.
    """
    if settings.finetuning_type == "full":
        if loaded.has_adapter:
            raise ModelError(f"{loaded.name}: has an adapter, so finetuning_type: full would train it only. Merge it.")
        loaded.model.float()
        loaded.model.requires_grad_(True)
    else:
        model = loaded.model if loaded.has_adapter else _with_adapter(loaded, settings)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        loaded.model = model
    model = loaded.model
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        if settings.finetuning_type == "lora":
            model.enable_input_require_grads()
        unwrap(model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return loaded


def go_on(base: LoadedModel, adapter: Path) -> LoadedModel:
    """The base with an earlier adapter, which `prepare` will train further. adapter: its folder. Raises ModelError."""
    base.model = _prepared_for_few_bits(base)
    return attach_adapter(base, adapter)


def _prepared_for_few_bits(loaded: LoadedModel) -> Any:
    """The base's model; where it is held in few bits, with the rest of its weights in float32."""
    if loaded.quantisation == "none" or loaded.dequantized:
        return loaded.model
    from peft import prepare_model_for_kbit_training

    with quiet():
        return prepare_model_for_kbit_training(loaded.model, use_gradient_checkpointing=False)


def _with_adapter(loaded: LoadedModel, settings: Settings) -> Any:
    from peft import LoraConfig, get_peft_model

    base = _prepared_for_few_bits(loaded)
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT only divides it by r
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_target_modules),
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        bias="none",
        task_type="CAUSAL_LM",
        revision=loaded.spec.revision,
    )
    with quiet():
        model = get_peft_model(base, config)
    # The id that the user gave, not this machine's path: the adapter travels.
    model.peft_config["default"].base_model_name_or_path = loaded.name  # type: ignore[union-attr]
    return model


def save_weights(loaded: LoadedModel, folder: Path) -> None:
    """The trained weights as safetensors: the adapter alone, or the whole model."""
    if loaded.has_adapter:
        # "auto" would ask the hub whether the vocabulary grew. Of several adapters (dpo.py) this one is trained.
        loaded.model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"])
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the report writes a real one
    else:
        loaded.model.save_pretrained(str(folder))


def restore_weights(loaded: LoadedModel, folder: Path) -> None:
    """Put the weights of `save_weights` back into the same model."""
    from safetensors.torch import load_file

    if loaded.has_adapter:
        from peft import set_peft_model_state_dict

        result = set_peft_model_state_dict(loaded.model, load_file(folder / "adapter_model.safetensors"))
        assert not result.unexpected_keys, result.unexpected_keys
        return
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    missing, unexpected = loaded.model.load_state_dict(state, strict=False)
    tied = set(getattr(loaded.model, "_tied_weights_keys", None) or ())
    assert not unexpected, unexpected
    assert set(missing) <= tied, missing


def save_final(loaded: LoadedModel, settings: Settings, staging: Path) -> None:
    """The specialist's weights as others read them; whole models in the compute type, tokenizer beside them."""
    save_base_spec(staging, loaded.spec)
    loaded.tokenizer.save_pretrained(str(staging))
    if loaded.has_adapter:
        save_weights(loaded, staging)
        return
    dtype = getattr(torch, settings.compute_dtype)
    loaded.model.config.use_cache = True
    if dtype == torch.float32:
        loaded.model.save_pretrained(str(staging))
        return
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in loaded.model.state_dict().items()}
    previous = loaded.model.config.dtype
    loaded.model.config.dtype = dtype
    loaded.model.save_pretrained(str(staging), state_dict=state)
    loaded.model.config.dtype = previous


def merge(source: Path | LoadedModel, device: str | None = None) -> LoadedModel:
    """A specialist as one plain model: adapter added to its base, quantised weights expanded first.

    source: a specialist's folder, or one loaded (which is changed). An adapter learns against the *quantised* base,
    so it is merged into those very values, not into the original ones. Raises ModelError.
    """
    if isinstance(source, LoadedModel):
        if not source.has_adapter:
            return source
        if source.quantisation != "none":
            raise ModelError("An adapter on quantised weights is merged from its folder. Pass the specialist's folder.")
        source.model = source.model.merge_and_unload()
        return source
    # In float32: rounding W + BA to bfloat16 costs a few per cent of a logit. Who exports it may round it.
    place, spec = weights_folder(source), replace(specialist_spec(source), dtype="float32")
    if not (place / "adapter_config.json").exists():
        return load_specialist(place, device, dtype=spec.dtype)
    base = load_spec(spec, device)
    if base.quantisation != "none":
        with quiet():
            base.model = base.model.dequantize(dtype=torch.float32)
    merged = attach_adapter(base, place)
    return LoadedModel(merged.model.merge_and_unload(), base.tokenizer, replace(spec, quantisation="none"))
