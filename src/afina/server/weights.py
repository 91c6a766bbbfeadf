"""One set of base weights in memory, and the adapters that lie on it.

Comes in: a BaseSpec. Goes out: the model, of which `activate` says whether it speaks as itself or with one of its
adapters. Whoever changes anything holds `lock`. Knows nothing of names or requests.
"""

from __future__ import annotations

import threading
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import torch

from afina.core.errors import ModelError
from afina.core.storage import read_json
from afina.engine.batching import ModelLock
from afina.engine.chat import ChatFormat, ChatStyle
from afina.engine.codec import Codec
from afina.engine.hub import NANO, explain, local_code_only, quiet
from afina.engine.loader import BaseSpec, default_device, load_spec

# Keeps a model's own numbers, and is as fast, where a pass costs more for its calls than for its products.
SMALL_BYTES = 256 * 2**20


# transformers builds models under settings of the whole process: two at once get into each other's.
_loading = threading.Lock()


class Weights:
    """A loaded base. Raises ModelError or MachineError when it cannot be loaded."""

    def __init__(self, spec: BaseSpec) -> None:
        self.spec = spec
        self.lock = ModelLock()
        with _loading:
            loaded = load_spec(spec)
        self.model: Any = loaded.model
        self.codec = Codec(loaded.tokenizer)
        self.pad_id = loaded.pad_token_id
        self.num_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self._formats: dict[ChatStyle, ChatFormat] = {}
        self._peft: Any = None
        self._active: str | None = None
        self._numbers = count()

    @staticmethod
    def estimate(spec: BaseSpec) -> int:
        """How much memory the weights will take, before they are loaded; 0 where nothing is known."""
        folder = Path(spec.name).expanduser()
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0

    @staticmethod
    def adapter_bytes(folder: Path) -> int:
        return (folder / "adapter_model.safetensors").stat().st_size

    def chat(self, style: ChatStyle) -> ChatFormat:
        if style not in self._formats:
            self._formats[style] = ChatFormat(self.codec, style)
        return self._formats[style]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer, in whatever style it was asked for."""
        try:
            return (
                self.chat("chat").stop_ids if self.codec.tokenizer.chat_template else self.chat("completion").stop_ids
            )
        except ModelError:  # a template that cannot hold a conversation; completions can be had all the same
            return self.chat("completion").stop_ids

    def add(self, folder: Path) -> str:
        """Put an adapter beside the others; its name here. Raises ModelError."""
        if not (folder / "adapter_model.safetensors").exists():
            raise ModelError(f"{folder}: lacks adapter_model.safetensors. Train the model again.")
        kind = read_json(folder / "adapter_config.json").get("peft_type")
        if kind != "LORA":
            raise ModelError(f"{folder}: is an adapter of the type {kind}, expected LORA. Merge it into its base.")
        with local_code_only():
            from peft import PeftModel

        name = f"a{next(self._numbers)}"
        with _loading, quiet(), explain(str(folder)):
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name, is_trainable=False)
                self._active = name
            else:
                self._peft.load_adapter(str(folder), adapter_name=name, is_trainable=False)
        self._peft.eval()
        self.activate(name)
        return name

    def remove(self, name: str) -> None:
        self.activate(None)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT makes another adapter the active one, and says so
            self._peft.delete_adapter(name)
            if not self._peft.peft_config:
                self.model, self._peft = self._peft.base_model.unload(), None

    def activate(self, name: str | None) -> None:
        """Speak with this adapter, or as the base itself."""
        if name == self._active:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            if self._active is None:
                self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(name, inference_mode=True)
        self._active = name


def serving_dtype(spec: BaseSpec) -> str:
    """The type of weights that are not quantised: what is fast on this machine and changes no answer for the worse."""
    if spec.quantisation != "none":
        return spec.dtype
    if default_device() == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return spec.dtype if spec.name != NANO else "float32"
