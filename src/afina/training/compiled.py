"""torch.compile for one decoder layer, used by all: its elementwise work becomes a few passes over memory.

Comes in: a model about to be trained. Goes out: a switch. Compiling the layer rather than the model keeps the wait
to the time of one layer; kernels are kept in the user's cache folder, so the next run of the same shape starts warm.
Training passes run compiled, evaluations do not: they are few.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from afina.core.storage import digest
from afina.training.loss import unwrap
from afina.training.settings import Settings

COMPILE_SECONDS = 60.0  # to compile a layer forward and backward on two cores (docs/performance.md)
WARM_SECONDS = 10.0  # the same with its kernels in the cache
COMPILE_SAVES = 0.3  # share of a step's time that it saves


def compiler_found() -> bool:
    """Whether torch.compile can build here: a C++ compiler for the CPU, Triton for a GPU."""
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        return has_triton()
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compile_seconds(settings: Settings) -> float:
    """How long compiling takes here for these settings: less if it was done before."""
    return WARM_SECONDS if _mark(settings).exists() else COMPILE_SECONDS


def _mark(settings: Settings) -> Path:
    """A file that says that the kernels of such a training are in the cache."""
    decides = [settings.base_model, settings.finetuning_type, settings.lora_r, settings.lora_dropout > 0]
    decides += [settings.compute_dtype, settings.attn_implementation, settings.share_prefix, settings.fused_lora]
    return _cache_folder() / f"{digest([*decides, torch.__version__])}.compiled"


class CompiledLayers:
    """The decoder layers of a model, compiled while `training()` is open.

    problem: why it cannot be, or "".
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        self.mark = _mark(settings)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache_folder()))
        self.layers = _decoder_layers(model)
        self.problem = "" if self.layers else "this model has no list of decoder layers"
        self._calls: list[Any] = []
        for layer in self.layers:
            layer.compile(dynamic=True)
            self._calls.append(layer._compiled_call_impl)
        self._switch(on=False)

    @contextmanager
    def training(self) -> Generator[None]:
        """Inside, the layers run compiled, unless that failed before."""
        self._switch(on=not self.problem)
        try:
            yield
        finally:
            self._switch(on=False)

    def remove(self) -> None:
        """As if nothing had been compiled; the next run of the kind finds its kernels."""
        if self.layers and self.mark.parent.is_dir():
            self.mark.touch()
        self._switch(on=False)
        self.layers, self._calls = [], []

    def _switch(self, *, on: bool) -> None:
        for layer, call in zip(self.layers, self._calls, strict=True):
            layer._compiled_call_impl = call if on else None


def _decoder_layers(model: Any) -> list[Any]:
    decoder = unwrap(model).get_decoder()
    found = [m for m in decoder.children() if isinstance(m, torch.nn.ModuleList) and len(m) > 0]
    return list(found[0]) if len(found) == 1 else []


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "afina" / "inductor"
