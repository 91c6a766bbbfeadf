"""What `auto` becomes on which machine, and what is said where a wish cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_material import VOCABULARY, gpu, here, load, tiny_llama

from afina.core.errors import MachineError, RecipeError
from afina.core.train_config import AdaptConfig, TrainConfig
from afina.engine.encoded import Encoded
from afina.engine.loader import load_spec
from afina.training.adapters import prepare
from afina.training.collate import MicroBatch, micro_batches
from afina.training.facts import ModelFacts, model_facts
from afina.training.loss import loss_sum
from afina.training.machine import Machine, machine
from afina.training.memory import FORMULA, HEAP_HOLES, estimate, num_trainable
from afina.training.passes import Passes
from afina.training.plan import plan, require_fit
from afina.training.planner import adapt_settings, auto_learning_rate, resolve
from afina.training.settings import Settings

LAYER = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (512, 2048),
    "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}
BIG = ModelFacts(
    "meta-llama/Llama-3.2-1B",
    1_235_814_400,
    {f"model.layers.{i}.{k}": v for i in range(16) for k, v in LAYER.items()},
    16,
    2048,
    128_256,
    131_072,
    "none",
)
TINY = ModelFacts("tiny", 11_000_000, {f"layers.0.{k}": (320, 320) for k in LAYER}, 1, 320, 8192, 2048, "none")
TARGETS = {"lora_target_modules": ["q_proj"]}


def settle(facts: ModelFacts, on: Machine, lengths: int = 100, **train: Any) -> Settings:
    return resolve(TrainConfig(**train), facts, [lengths] * 400, on)


def test_lora_of_llama_1b_has_the_known_size() -> None:
    # peft prints 11,272,192 for r = 16 on all seven modules of Llama-3.2-1B.
    assert (
        BIG.num_adapter(16, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]) == 11_272_192
    )


def test_counts_equal_the_real_model(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    facts = model_facts(str(folder))
    for kind, dora in (("full", False), ("lora", False), ("lora", True)):
        more = {"use_dora": dora} if kind == "lora" else {}
        settings = resolve(TrainConfig(base_model=str(folder), finetuning_type=kind, **more), facts, [20], here())  # type: ignore[arg-type]
        loaded = prepare(load(settings), settings)
        assert num_trainable(settings, facts) == loaded.num_trainable
    assert facts.num_parameters == load(settings).num_parameters


def test_tiny_models_are_tuned_whole_and_large_ones_by_adapter() -> None:
    assert settle(TINY, here()).finetuning_type == "full"
    assert settle(BIG, here()).finetuning_type == "lora"
    assert settle(TINY, here(), load_in_4bit=True, **TARGETS).finetuning_type == "lora"
    assert settle(TINY, here(), **TARGETS).finetuning_type == "lora"


def test_what_the_machine_lacks_is_said_and_replaced() -> None:
    settings = settle(TINY, here(), optim="paged_adamw_32bit", bf16=True, load_in_4bit=True, **TARGETS)
    assert (settings.optim, settings.compute_dtype, settings.quantisation) == ("adamw_torch", "float32", "4bit")
    notes = "\n".join(settings.notes)
    for wanted in ("paged_adamw_32bit needs a CUDA device", "bf16: not in this machine's hardware", "slower"):
        assert wanted in notes
    on_gpu = settle(TINY, here(gpus=(gpu(),), bf16=True), optim="paged_adamw_32bit", load_in_4bit=True, **TARGETS)
    assert (on_gpu.optim, on_gpu.compute_dtype, on_gpu.device) == ("paged_adamw_32bit", "bfloat16", "cuda")
    old = settle(TINY, here(gpus=(gpu(capability=(7, 5)),)))
    assert old.compute_dtype == "float16"


def test_weights_are_quantised_only_when_they_would_not_fit() -> None:
    assert settle(BIG, here(gpus=(gpu(),), bf16=True)).quantisation == "none"
    assert settle(BIG, here(gpus=(gpu(3 << 30),), bf16=True)).quantisation == "4bit"


def test_few_examples_make_smaller_updates() -> None:
    found = [resolve(TrainConfig(), TINY, [100] * n, here()).effective_batch for n in (60, 220, 5000)]
    assert found == [4, 8, 16]


def test_micro_batches_shrink_before_checkpointing() -> None:
    roomy = settle(BIG, here(gpus=(gpu(200 << 30),), bf16=True), lengths=1000)
    assert (roomy.per_device_train_batch_size, roomy.gradient_accumulation_steps) == (16, 1)
    tight = settle(BIG, here(gpus=(gpu(12 << 30),), bf16=True), lengths=1000)
    assert tight.per_device_train_batch_size < 16
    assert tight.effective_batch == 16
    assert any("to fit the memory" in n for n in tight.notes)


def test_steps_evaluations_and_rates() -> None:
    settings = settle(TINY, here(), num_train_epochs=5)
    assert (settings.total_steps, settings.eval_steps) == (125, 12)
    assert settle(TINY, here(), max_steps=7).total_steps == 7
    assert settings.learning_rate == pytest.approx(9.4e-4)
    assert auto_learning_rate("lora", 10**9) == 2e-4
    assert auto_learning_rate("full", 10**9) == pytest.approx(5e-5)
    adapted = adapt_settings(settings, AdaptConfig(path=Path("x"), column="t", num_train_epochs=2), 320)
    assert (adapted.total_steps, adapted.loss_on) == (40, "completion")


def test_what_the_model_cannot_do_is_refused() -> None:
    with pytest.raises(RecipeError, match="reads at most 2048"):
        settle(TINY, here(), lengths=3000, max_length=4096)
    with pytest.raises(RecipeError, match="no layer 'c_attn'"):
        settle(BIG, here(), lora_target_modules=["c_attn"])
    other = ModelFacts(**{**vars(BIG), "linears": {"h.0.attn.c_attn": (768, 2304)}})
    assert settle(other, here()).lora_target_modules == ("c_attn",)
    stored = ModelFacts(**{**vars(BIG), "stored": "4bit"})
    with pytest.raises(RecipeError, match="stored in 4bit"):
        settle(stored, here(), finetuning_type="full")
    assert settle(stored, here()).quantisation == "4bit"


def test_plan_refuses_and_says_what_would_fit() -> None:
    small = here(gpus=(gpu(5 << 30),), bf16=True)
    settings = settle(BIG, small, lengths=1000, finetuning_type="full", per_device_train_batch_size=8)
    found = plan(settings, BIG, [1000] * 160, small, seconds_per_step=2.0)
    assert not found.fits
    assert found.memory_bytes["optimizer"] == 8 * BIG.num_parameters
    assert found.estimated_s == 2.0 * found.steps
    with pytest.raises(MachineError, match=r"This would fit: .*load_in_4bit=true"):
        require_fit(found)
    assert json.loads(json.dumps(found.to_json()))["steps"] == found.steps
    assert any("formula" in line for line in found.lines())


WAYS = {
    "fused": {},
    "fused, no dropout": {"lora_dropout": 0.0},
    "fused, four modules": {"lora_target_modules": ["q_proj", "v_proj", "o_proj", "up_proj"]},
    "fused, float32": {"bf16": False},
    "fused, sdpa": {"attn_implementation": "sdpa"},
    "peft": {"fused_lora": False},
    "peft, no dropout": {"fused_lora": False, "lora_dropout": 0.0},
    "4 bit, written out": {"load_in_4bit": True, "dequantize": True},
    "4 bit, kept": {"load_in_4bit": True, "dequantize": False},
    "full": {"finetuning_type": "full"},
}


@pytest.mark.parametrize("way", WAYS)
def test_activations_are_what_autograd_keeps(tmp_path: Path, way: str) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 4}
    folder = tiny_llama(tmp_path / "m", num_hidden_layers=6, **shape)
    adapter = {} if way == "full" else {"finetuning_type": "lora", "lora_r": 4}
    told = {**adapter, "per_device_train_batch_size": 4, **WAYS[way]}
    facts, lengths, on = model_facts(str(folder)), [150, 200, 180, 200], here(bf16=True)
    settings = resolve(TrainConfig(base_model=str(folder), **told), facts, lengths, on)
    generator = torch.Generator().manual_seed(0)
    rows = [Encoded(tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()), n - 9) for n in lengths]
    loaded = prepare(load_spec(settings.base, "cpu", dequantize=settings.dequantize), settings)
    passes = Passes(loaded, settings)
    (batch,) = micro_batches(rows, 4, passes.layout)
    kept = _kept_bytes(loaded.model, passes, batch)
    if way == "full":
        kept -= 2 * facts.num_linear  # autocast's copy of the weights, which the formula counts among them
    passes.close()
    # 12 %: what does not grow with tokens, the last norm and the loss are left out of the formula, and the first
    # layer, whose input needs no gradient, keeps less than the others.
    assert estimate(settings, facts, lengths).activations == pytest.approx(kept, rel=0.12)


def _kept_bytes(model: Any, passes: Passes, batch: MicroBatch) -> int:
    """Of all storages that the backward pass of a micro-batch will read, weights excepted."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    own |= {group.weight_OI.untyped_storage().data_ptr() for group in passes.groups}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept.setdefault(pointer, tensor)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), passes.autocast():
        loss = loss_sum(model, batch, passes.logits_at)
    assert loss.requires_grad
    assert len(kept) > 50
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_memory_grows_with_what_is_held() -> None:
    def memory(**train: Any) -> Any:
        told = {"finetuning_type": "lora", "per_device_train_batch_size": 4, **train}
        settings = resolve(TrainConfig(**told), BIG, [300] * 160, here(bf16=True, available_bytes=1 << 40))
        return estimate(settings, BIG, [300] * 160)

    base = memory()
    assert base.allocator_holes == int(HEAP_HOLES * base.activations)
    assert base.checkpoint_pages == 0  # it is not said in which type BIG is stored
    assert memory(per_device_train_batch_size=8).activations == 2 * base.activations
    assert memory(gradient_checkpointing=True).activations < base.activations / 8
    assert memory(lora_r=64).adapters == 4 * base.adapters
    assert memory(load_in_4bit=True, dequantize=False).weights < base.weights
    assert memory(load_in_4bit=True, dequantize=True).weights == base.weights
    assert memory(fused_loss=False).logits > 10 * base.logits
    longer = resolve(TrainConfig(base_model="x", finetuning_type="lora"), BIG, [300] * 160, here())
    once = estimate(longer, BIG, [300] * 160, shared=200)
    assert once.activations <= estimate(longer, BIG, [300] * 160).activations
    assert "allocator holes" in FORMULA["cpu"]
    assert "allocator" not in FORMULA["cuda"]


def test_fused_copies_leave_the_pages_of_the_checkpoint(tmp_path: Path) -> None:
    facts = model_facts(str(tiny_llama(tmp_path / "m")))
    assert (facts.stored_dtype, facts.heads) == ("float32", 4)
    assert set(facts.first_layer()) == {name.rsplit(".", 1)[-1] for name in LAYER}
    settings = resolve(TrainConfig(base_model=facts.name, finetuning_type="lora"), facts, [20], here())
    assert estimate(settings, facts, [20]).checkpoint_pages == 4 * facts.num_linear
    unfused = resolve(TrainConfig(base_model=facts.name, finetuning_type="lora", fused_lora=False), facts, [20], here())
    assert estimate(unfused, facts, [20]).checkpoint_pages == 0


def test_evaluations_are_part_of_the_time() -> None:
    settings = settle(BIG, here(bf16=True), finetuning_type="lora", max_steps=20, eval_steps=6)
    found = plan(settings, BIG, [100] * 160, here(), seconds_per_step=2.0, validation_tokens=1600)
    # An update of 16 x 100 tokens takes 2 s, so a forward pass over as many takes 1 s; steps 6, 12 and 18 have one.
    assert (found.evaluations, found.evaluations_s) == (3, pytest.approx(3.0))
    assert found.estimated_s == pytest.approx(43.0)
    assert any("3 evaluations" in line for line in found.lines())


def test_this_machine() -> None:
    found = machine()
    assert 0 < found.available_bytes <= found.memory_bytes
    assert found.cores >= 1
    assert found.disk_free_bytes > 0
    assert len(found.lines()) >= 7
    json.dumps(found.to_json())
