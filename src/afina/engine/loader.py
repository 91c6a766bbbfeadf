"""Base models and specialists from disk or the Hugging Face hub, or one clear line why not.

Comes in: `afina/nano`, a local folder or a hub id, and how to hold the weights. Goes out: the model in
evaluation mode with its fast tokenizer. Only safetensors are read and no code from a checkpoint runs
(`use_safetensors=True`, `trust_remote_code=False`, always). It knows nothing of prompts or training.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from importlib import resources
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from afina.core.errors import ModelError
from afina.core.storage import read_json, write_json
from afina.engine.hub import NANO, config_file, explain, local_code_only, online, quiet
from afina.engine.stored import Quantisation as Quantisation
from afina.engine.stored import compute_in, forget_reading, hold_others_in, keep_layout, num_values, stored_as
from afina.engine.stored import stored_quantisation as stored_quantisation

BASE_FILE = "base.json"  # beside an adapter: the base it belongs to, and how that was held


@dataclass(frozen=True)
class BaseSpec:
    """Which base model, and how its weights are held.

    dtype: of the weights that are not quantised: "bfloat16", "float16" or "float32".
    bnb_compute_dtype: of products with 4-bit weights.
    """

    name: str
    revision: str | None = None
    quantisation: Quantisation = "none"
    dtype: str = "float32"
    bnb_quant_type: str = "nf4"
    bnb_double_quant: bool = True
    bnb_compute_dtype: str = "float32"


@dataclass
class LoadedModel:
    """A causal language model ready to answer, with its tokenizer.

    model: a transformers model, or a PeftModel around one.
    quantisation: what is really stored, which a pre-quantised checkpoint decides by itself.
    dequantized: the 4-bit weights were written out once, in `dtype`: the same values, in four times the memory.
    pad_token_id: fills the ends of rows. Never used to tell padding from text: that goes by position.
    """

    model: Any
    tokenizer: Any
    spec: BaseSpec
    dequantized: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def quantisation(self) -> Quantisation:
        return self.spec.quantisation

    @property
    def dtype(self) -> str:
        return self.spec.dtype

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_token_id(self) -> int:
        return pad_token_id(self.tokenizer)

    @property
    def has_adapter(self) -> bool:
        return bool(getattr(self.model, "peft_config", None))

    @property
    def num_parameters(self) -> int:
        """Of base and adapter, quantised weights counted as what they stand for."""
        return sum(num_values(p) for p in self.model.parameters())

    @property
    def num_trainable(self) -> int:
        return sum(num_values(p) for p in self.model.parameters() if p.requires_grad)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# -- tokenizer ---------------------------------------------------------------------------------


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The fast tokenizer of a model, without its weights. Raises ModelError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = resolve(name, revision)
    with quiet(), explain(name):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, use_fast=True, local_files_only=not online(name)
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{name}: its tokenizer is {type(tokenizer).__name__}, expected a fast one (a tokenizer.json). "
            "Convert it with transformers' convert_slow_tokenizer, or choose another base_model."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name}: its tokenizer has no end-of-sequence token, so no answer could end. Choose another.")
    return tokenizer


def pad_token_id(tokenizer: Any) -> int:
    """A token to fill rows with: pad if it is not eos, else a reserved token, else unk, else eos."""
    eos = tokenizer.eos_token_id
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != eos:
        return tokenizer.pad_token_id
    taken = {eos, tokenizer.bos_token_id}
    for token_id, token in sorted(getattr(tokenizer, "added_tokens_decoder", {}).items()):
        text = str(token).lower()
        if token_id not in taken and ("pad" in text or "reserved" in text):
            return token_id
    return tokenizer.unk_token_id if tokenizer.unk_token_id not in (None, eos) else eos


# -- base models -------------------------------------------------------------------------------


def resolve(name: str, revision: str | None = None) -> str:
    """A local folder that holds a model, or the hub id, known to exist. Raises ModelError."""
    folder = Path(str(resources.files("afina"))) / "assets" / "nano" if name == NANO else Path(name).expanduser()
    if name == NANO or folder.is_dir():
        if not (folder / "config.json").exists():
            found = sorted(p.name for p in folder.iterdir())[:6] if folder.is_dir() else []
            raise ModelError(
                f"{name}: {folder} lacks config.json (found: {', '.join(found) or 'nothing'}). "
                "Expected a Hugging Face model folder: config.json, *.safetensors and tokenizer.json."
            )
        return str(folder)
    if folder.exists():
        raise ModelError(f"{name}: found a file, expected a model folder or a Hugging Face id such as owner/model.")
    config_file(name, revision)
    return name


def load_config(name: str, revision: str | None = None) -> Any:
    """The model's configuration, without its weights. Raises ModelError."""
    from transformers import AutoConfig

    source = resolve(name, revision)
    with quiet(), explain(name):
        return AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False, local_files_only=not online(name)
        )


def load_base(
    name: str,
    *,
    revision: str | None = None,
    quantisation: Quantisation = "none",
    dtype: str = "float32",
    device: str | None = None,
    bnb_quant_type: str = "nf4",
    bnb_double_quant: bool = True,
    bnb_compute_dtype: str | None = None,
) -> LoadedModel:
    """A base model in evaluation mode. A pre-quantised checkpoint keeps its stored quantisation.

    device: "cpu", "cuda" or None for the best there is. Raises ModelError.
    """
    spec = BaseSpec(name, revision, quantisation, dtype, bnb_quant_type, bnb_double_quant, bnb_compute_dtype or dtype)
    return load_spec(spec, device)


def load_spec(spec: BaseSpec, device: str | None = None, *, dequantize: bool = False) -> LoadedModel:
    """`load_base` of a BaseSpec.

    dequantize: write 4-bit weights out once instead of at every product; the products are the same, bit for bit.
    """
    from transformers import AutoModelForCausalLM

    source, config = resolve(spec.name, spec.revision), load_config(spec.name, spec.revision)
    tokenizer = load_tokenizer(spec.name, spec.revision)
    if Path(source).is_dir():
        _check_weights(spec.name, Path(source))
    device = device or default_device()
    stored = stored_as(config, spec)
    options: dict[str, Any] = {}
    if stored.quantisation != "none" or spec.quantisation != "none":
        getLogger("bitsandbytes").setLevel(ERROR)  # it says at every 8-bit product that it casts
    if stored.quantisation == "none" and spec.quantisation != "none":
        options["quantization_config"] = _bnb_config(spec)
    with quiet(), explain(spec.name):
        loader: Any = AutoModelForCausalLM
        model, report = loader.from_pretrained(
            source,
            revision=spec.revision,
            config=config,
            dtype=getattr(torch, spec.dtype),
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa" if _has_sdpa(config) else None,
            local_files_only=not online(spec.name),
            output_loading_info=True,
            **options,
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{spec.name}: {len(missing)} weights are missing from its safetensors, {missing[0]} first. "
            "The checkpoint is incomplete, or belongs to another config.json. Download it again."
        )
    if stored.quantisation != "none":
        spec = replace(spec, **asdict(stored))
        compute_in(model, getattr(torch, spec.bnb_compute_dtype))
        hold_others_in(model, getattr(torch, spec.dtype))
        forget_reading(model)
    dequantize = dequantize and spec.quantisation == "4bit"
    if dequantize:
        with quiet():
            model = model.dequantize(dtype=getattr(torch, spec.bnb_compute_dtype))
    keep_layout(model)
    model.eval()
    return LoadedModel(model, tokenizer, spec, dequantized=dequantize)


def _bnb_config(spec: BaseSpec) -> Any:
    from transformers import BitsAndBytesConfig

    if spec.quantisation == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.bnb_quant_type,
        bnb_4bit_use_double_quant=spec.bnb_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, spec.bnb_compute_dtype),
    )


def _has_sdpa(config: Any) -> bool:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model_class = AutoModelForCausalLM._model_mapping[type(config)]  # type: ignore[attr-defined]
    except (KeyError, AttributeError):
        return False
    return bool(getattr(model_class, "_supports_sdpa", False))


def _check_weights(name: str, folder: Path) -> None:
    """Raise ModelError unless every safetensors file that the folder promises is there and opens."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise ModelError(f"{name}: {index.name} is damaged ({error}). Download the model again.") from error
    else:
        wanted = ["model.safetensors"]
    absent = [file for file in wanted if not (folder / file).exists()]
    if absent:
        pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        if pickles:
            raise ModelError(
                f"{name}: found pickled weights only ({pickles[0]}), which can run any code when read. Expected "
                "safetensors. Convert them with safetensors' convert.py, or choose another revision."
            )
        raise ModelError(f"{name}: {folder} lacks {absent[0]}. Download the model again, or check the path.")
    for file in wanted:
        try:
            with safe_open(folder / file, framework="pt") as handle:
                handle.keys()
        except Exception as error:  # safetensors' own exception class is no subclass of OSError
            raise ModelError(f"{name}: {file} is damaged ({error}). Download the model again.") from error


# -- specialists -------------------------------------------------------------------------------


def save_base_spec(folder: Path, spec: BaseSpec) -> None:
    """Keep beside an adapter which base it belongs to."""
    write_json(folder / BASE_FILE, asdict(spec))


def weights_folder(folder: Path) -> Path:
    """Where the adapter or the whole weights of a specialist lie. Raises ModelError."""
    for place in (folder, folder / "adapter", folder / "model"):
        if (place / "adapter_config.json").exists() or (place / "config.json").exists():
            return place
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder, expected a specialist. Train one with: afina run RECIPE.yaml")
    raise ModelError(
        f"{folder}: holds neither adapter/adapter_config.json nor model/config.json. Expected a specialist; "
        "if its training was interrupted, give the same command again."
    )


def specialist_spec(folder: Path) -> BaseSpec:
    """The base model of a specialist and how it was held in training. Raises ModelError."""
    place = weights_folder(folder)
    if (place / BASE_FILE).exists():
        return BaseSpec(**read_json(place / BASE_FILE))
    if (place / "adapter_config.json").exists():
        config = read_json(place / "adapter_config.json")
        if not config.get("base_model_name_or_path"):
            raise ModelError(f"{place}: adapter_config.json does not name its base_model_name_or_path. Add it.")
        return BaseSpec(config["base_model_name_or_path"], config.get("revision"))
    return BaseSpec(str(place))


def load_specialist(
    folder: Path, device: str | None = None, *, dtype: str | None = None, merged: bool = False
) -> LoadedModel:
    """A fine-tuned model, ready to answer: base and adapter, or whole weights.

    merged: add the adapter to the base's weights, where these are not held in few bits: half the products, and the
    rounding of one addition in the weights' type.

    dtype: of unquantised weights, and of products with others; as in training when not given. 4-bit weights are written
    out once where they are slow (on a CPU) and memory allows. Raises ModelError.
    """
    place, spec = weights_folder(folder), specialist_spec(folder)
    if dtype is not None:
        spec = replace(spec, dtype=dtype, bnb_compute_dtype=dtype)
    if not (place / "adapter_config.json").exists():
        whole = replace(spec, name=str(place), revision=None, quantisation="none")
        return load_spec(whole, device)
    loaded = attach_adapter(load_spec(spec, device, dequantize=_room_to_dequantize(spec, device)), place)
    if merged and (loaded.quantisation == "none" or loaded.dequantized):
        with quiet():
            loaded.model = loaded.model.merge_and_unload()
    return loaded


def _room_to_dequantize(spec: BaseSpec, device: str | None) -> bool:
    """Whether 4-bit weights, written out, take less than half of the free memory of a CPU."""
    if spec.quantisation != "4bit" or (device or default_device()) != "cpu":
        return False
    import psutil
    from transformers import AutoModelForCausalLM

    config = load_config(spec.name, spec.revision)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with quiet(), explain(spec.name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    size = getattr(torch, spec.bnb_compute_dtype).itemsize
    return sum(p.numel() for p in model.parameters()) * size < psutil.virtual_memory().available / 2


def attach_adapter(base: LoadedModel, place: Path) -> LoadedModel:
    """The base with the adapter in `place`, frozen, in evaluation mode. Raises ModelError."""
    with local_code_only():
        from peft import PeftModel

    weights = place / "adapter_model.safetensors"
    if not weights.exists():
        raise ModelError(f"{place}: lacks {weights.name} (pickled adapters are not read). Train or copy it again.")
    with quiet(), explain(str(place)):
        model = PeftModel.from_pretrained(base.model, str(place), is_trainable=False)
    model.eval()
    return LoadedModel(model, base.tokenizer, base.spec, base.dequantized)
