"""What a model is, counted from its configuration alone: no weight is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from afina.core.errors import ModelError, RecipeError
from afina.engine.hub import explain, no_telemetry, quiet
from afina.engine.loader import Quantisation, load_config, stored_quantisation


@dataclass(frozen=True)
class ModelFacts:
    """Counts of one causal language model.

    linears: name ("layers.0.self_attn.q_proj") -> (out, in) of each linear layer of the decoder, the ones that
        quantisation holds in few bits and adapters attach to.
    context: most tokens it reads; 0 if its configuration does not say.
    stored: the quantisation of the checkpoint itself. stored_dtype: the type of its other weights, "" if not said.
    heads: of attention, each of which compares all pairs of tokens; 0 if the configuration does not say.
    """

    name: str
    num_parameters: int
    linears: dict[str, tuple[int, int]]
    num_layers: int
    hidden: int
    vocabulary: int
    context: int
    stored: Quantisation
    stored_dtype: str = ""
    heads: int = 0

    @property
    def num_linear(self) -> int:
        """Parameters in `linears`."""
        return sum(a * b for a, b in self.linears.values())

    def first_layer(self) -> dict[str, tuple[int, int]]:
        """Linear layers of the first decoder layer by their own names ("q_proj"); of the whole model, if its layers
        are not numbered."""
        numbered = {n: m[1] for n in self.linears if (m := re.search(r"(?:^|\.)(\d+)\.", n))}
        first = next(iter(numbered.values()), None)
        return {n.rsplit(".", 1)[-1]: s for n, s in self.linears.items() if numbered.get(n) == first}

    def num_adapter(self, rank: int, targets: list[str], *, dora: bool = False) -> int:
        """Parameters of a LoRA adapter (arXiv:2106.09685): r (in + out) per target; DoRA adds out magnitudes.

        Raises RecipeError if a target names no layer.
        """
        chosen = {n: s for n, s in self.linears.items() if n.rsplit(".", 1)[-1] in targets or n in targets}
        names = sorted({n.rsplit(".", 1)[-1] for n in self.linears})
        for target in targets:
            if not any(n == target or n.endswith(f".{target}") for n in self.linears):
                raise RecipeError(
                    f"train.lora_target_modules: {self.name} has no layer {target!r}. Its linear layers are "
                    f"{', '.join(names)}."
                )
        return sum(rank * (a + b) + (a if dora else 0) for a, b in chosen.values())


def model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Facts of a local or hub model. Raises ModelError."""
    no_telemetry()
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, stored the other way round

    config = load_config(name, revision)
    stored = stored_quantisation(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # only shapes are wanted
    with quiet(), explain(name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    linears: dict[str, tuple[int, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            rows, columns = module.weight.shape
            linears[path] = (rows, columns) if isinstance(module, torch.nn.Linear) else (columns, rows)
    if not linears or head is None:
        raise ModelError(f"{name}: is a {config.model_type} model without linear layers or a head. Choose a causal LM.")
    return ModelFacts(
        name=name,
        num_parameters=sum(p.numel() for p in model.parameters()),
        linears=linears,
        num_layers=int(getattr(text, "num_hidden_layers", 1)),
        hidden=int(getattr(text, "hidden_size", head.weight.shape[1])),
        vocabulary=int(head.weight.shape[0]),
        context=int(getattr(text, "max_position_embeddings", 0) or 0),
        stored=stored,
        stored_dtype=str(config.dtype or "").removeprefix("torch."),
        heads=int(getattr(text, "num_attention_heads", 0) or 0),
    )
