"""What makes training fast changes no mathematics: each short way against the long one, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_material import VOCABULARY, here, load, settings_for, tiny_llama

from afina.core.train_config import TrainConfig
from afina.engine.encoded import Encoded
from afina.engine.loader import BaseSpec, load_spec
from afina.training.adapters import prepare
from afina.training.collate import Layout, Step, collate, common_beginning, make_rows, micro_batches
from afina.training.compiled import compiler_found
from afina.training.facts import ModelFacts
from afina.training.fused import FusedLora, fuse, keep_mask, unfuse
from afina.training.fused_loss import chosen_logits, linear_cross_entropy
from afina.training.loss import logits_full, logits_short, loss_sum, probe
from afina.training.passes import Passes
from afina.training.planner import resolve

PAD, EOS = 2, 1
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def questions(count: int, seed: int = 0, begin: int = 12) -> list[Encoded]:
    """Examples that begin with the same instruction."""
    draw = torch.Generator().manual_seed(seed)
    instruction = torch.randint(30, VOCABULARY, (begin,), generator=draw).tolist()
    made = []
    for _ in range(count):
        own = torch.randint(30, VOCABULARY, (int(torch.randint(3, 12, (), generator=draw)),), generator=draw).tolist()
        n = begin + len(own)
        kind = int(torch.randint(10, 13, (), generator=draw))
        made.append(Encoded((*instruction, *own, kind, kind + 5, EOS), n, {n: (10, 11, 12), n + 1: None}))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("levers") / "m")


def adapted(folder: Path, **train: Any) -> tuple[Any, Any]:
    settings = settings_for(folder, questions(32), finetuning_type="lora", **train)
    torch.manual_seed(3)
    loaded = prepare(load(settings), settings)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:  # B starts at 0, which would hide a wrong A
            torch.nn.init.normal_(parameter, std=0.05)
    return loaded, settings


def gradients(model: Any, batches: list[Any], logits_at: Any = None) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = sum(loss_sum(model, b, logits_at) for b in batches) / sum(len(b.target_N) for b in batches)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(loss.detach()), found


def assert_same(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    assert len(one[1]) >= 14
    for name, gradient in one[1].items():
        assert torch.allclose(gradient, other[1][name], **CLOSE), name


@pytest.mark.parametrize("loss_on", ["completion", "choices"])
def test_packing_and_sharing_give_the_loss_and_gradients_of_single_rows(folder: Path, loss_on: str) -> None:
    loaded, _ = adapted(folder, lora_dropout=0.0)
    data = questions(9)
    assert common_beginning(data) == 12
    layouts = [
        Layout(loss_on, PAD, packing=False),
        Layout(loss_on, PAD, row_tokens=64),
        Layout(loss_on, PAD, row_tokens=64, share_prefix=True),
    ]
    made = [micro_batches(data, 9, layout) for layout in layouts]
    rows = [batches[0].input_ids_BT.shape[0] for batches in made]
    assert rows[0] == 9
    assert rows[2] < rows[1] < 9  # the shorter the rows become, the fewer of them
    assert made[2][0].seen_BTT is not None
    single, packed, shared = (gradients(loaded.model, batches) for batches in made)
    assert_same(packed, single)
    assert_same(shared, single)


def test_sharing_ends_where_prompts_differ() -> None:
    a, b = Encoded((5, 6, 7, 8, EOS), 3), Encoded((5, 6, 9, 8, EOS), 3)
    assert common_beginning([a, b]) == 2
    assert common_beginning([a, a]) == 2  # at least one token of the prompt stays each one's own
    assert common_beginning([a]) == 0
    assert common_beginning([a, Encoded((4, 6, 7, 8, EOS), 3)]) == 0
    batch = collate([[a, b]], Layout("completion", PAD, share_prefix=True))
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8, EOS, 9, 8, EOS]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]
    assert batch.source_N.tolist() == [2, 3, 5, 6]
    assert batch.seen_BTT is not None
    assert batch.seen_BTT[0, 5].tolist() == [True, True, False, False, False, True, False, False]


@pytest.mark.parametrize("loss_on", ["completion", "choices"])
def test_logits_at_trained_positions_equal_all_logits(folder: Path, loss_on: str) -> None:
    loaded, _ = adapted(folder, lora_dropout=0.0)
    batches = micro_batches(questions(6), 6, Layout(loss_on, PAD))
    fused, short, full = (gradients(loaded.model, batches, way) for way in (None, logits_short, logits_full))
    assert_same(short, full)
    assert_same(fused, full)


@pytest.mark.parametrize("rows", [5, 300])
def test_the_fused_head_is_torchs_cross_entropy(rows: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 16, requires_grad=True), torch.randn(20_000, 16, requires_grad=True)
    target = torch.randint(0, 20_000, (rows,))
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum")
    (theirs * 0.3).backward()
    wanted = [hidden.grad.clone(), weight.grad.clone()]  # type: ignore[union-attr]
    hidden.grad = weight.grad = None
    ours = linear_cross_entropy(hidden, weight, target)
    (ours * 0.3).backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert torch.allclose(hidden.grad, wanted[0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(weight.grad, wanted[1], rtol=1e-4, atol=1e-5)


def test_logits_of_the_allowed_tokens_alone() -> None:
    hidden, weight = torch.randn(3, 8), torch.randn(50, 8)
    allowed = torch.tensor([[4, 9, -1], [9, 30, 31], [4, 30, -1]])
    found = chosen_logits(hidden, weight, allowed)
    everything = hidden @ weight.T
    for n, row in enumerate(allowed.tolist()):
        for k, token in enumerate(row):
            assert token < 0 or found[n, k] == pytest.approx(float(everything[n, token]), abs=1e-5)


def test_fused_lora_equals_pefts(folder: Path) -> None:
    loaded, _ = adapted(folder, lora_dropout=0.0)
    batches = micro_batches(questions(6), 6, Layout("completion", PAD))
    theirs = gradients(loaded.model, batches)
    groups = fuse(loaded.model, lambda: probe(loaded.model, VOCABULARY))
    assert [len(g.layers) for g in groups] == [3, 1, 2, 1] * 2  # q k v, o, gate up, down of two layers
    ours = gradients(loaded.model, batches)
    assert_same(ours, theirs)
    unfuse(groups)
    assert not any(isinstance(m, FusedLora) for m in loaded.model.modules())
    assert_same(gradients(loaded.model, batches), theirs)


def test_fused_lora_keeps_biases(tmp_path: Path) -> None:
    loaded, _ = adapted(tiny_llama(tmp_path / "b", attention_bias=True, mlp_bias=True), lora_dropout=0.0)
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    batches = micro_batches(questions(4), 4, Layout("completion", PAD))
    theirs = gradients(loaded.model, batches)
    assert len(fuse(loaded.model, lambda: probe(loaded.model, VOCABULARY))) == 8
    assert_same(gradients(loaded.model, batches), theirs)


def test_dora_is_left_to_peft(folder: Path) -> None:
    loaded, _ = adapted(folder, use_dora=True)
    assert fuse(loaded.model, lambda: probe(loaded.model, VOCABULARY)) == []


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.03])
def test_dropout_drops_its_share_and_follows_its_seed(dropout: float) -> None:
    x = torch.ones(400, 501)
    one, same, other = (keep_mask(x, torch.tensor(seed), dropout) for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    deviation = (dropout * (1 - dropout) / x.numel()) ** 0.5
    assert float(1 - one.mean()) == pytest.approx(dropout, abs=4 * deviation + 1e-5)
    # Neighbours know nothing of each other.
    both = (one[:, 1:] * one[:, :-1]).mean()
    assert float(both) == pytest.approx((1 - dropout) ** 2, abs=6 * deviation)


def test_dropout_leaves_the_mean_alone(folder: Path) -> None:
    loaded, settings = adapted(folder, lora_dropout=0.3)
    group = fuse(loaded.model, lambda: probe(loaded.model, VOCABULARY))[0]
    x = torch.randn(1, 4, 32)
    with torch.no_grad():
        plain = group.outputs(x, training=False)[0]
        drawn = []
        for seed in range(3000):
            group.seed.fill_(seed)
            drawn.append(group.outputs(x, training=True)[0])
    mean, spread = torch.stack(drawn).mean(0), torch.stack(drawn).std(0)
    assert float(spread.max()) > 0
    assert bool(((mean - plain).abs() <= 5 * spread / 3000**0.5 + 1e-6).all())
    assert settings.fused_lora


def test_every_lever_can_be_switched_off(folder: Path) -> None:
    levers = {
        "packing": False, "share_prefix": False, "fused_lora": False, "fused_loss": False, "torch_compile": False,
        "attn_implementation": "sdpa", "dequantize": False, "use_liger_kernel": False, "gradient_checkpointing": False,
    }  # fmt: skip
    assert set(levers) <= set(TrainConfig.model_fields)
    off, settings = adapted(folder, lora_dropout=0.0, **levers)
    passes = Passes(off, settings)
    assert passes.groups == []
    assert passes.logits_at is logits_full
    assert passes.compiled is None
    assert not passes.layout.packing
    assert off.model.config._attn_implementation == "sdpa"
    on, fast = adapted(folder, lora_dropout=0.0)
    assert fast.attn_implementation == "eager"
    quick = Passes(on, fast)
    assert len(quick.groups) == 8
    data, losses, found = questions(8), [], []
    for loaded, way in ((off, passes), (on, quick)):
        step = Step(micro_batches(data, 4, way.layout))
        losses.append(float(way.learn(step, lambda loss: loss.backward())))
        found.append({n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None})
        way.close()
    assert on.model.config._attn_implementation == "sdpa"
    assert_same((losses[0], found[0]), (losses[1], found[1]))


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
def test_compiled_steps_equal_plain_ones(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    loaded, settings = adapted(folder, lora_dropout=0.2)
    data, results = questions(8), []
    for compiled in (False, True):
        passes = Passes(loaded, replace(settings, torch_compile=compiled))
        torch.manual_seed(11)
        for _ in range(2):  # other shapes too
            loaded.model.zero_grad()
            loss = passes.learn(Step(micro_batches(data, 4, passes.layout)), lambda loss: loss.backward())
            data = data[:5]
        results.append(
            (float(loss), {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None})
        )
        assert passes.compiled is None or not passes.compiled.problem
        passes.close()
        data = questions(8)
    assert_same(results[1], results[0])


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_written_out_once_is_four_bit_on_the_fly_bit_for_bit(tmp_path: Path, quant_type: str) -> None:
    folder = tiny_llama(tmp_path / "m", hidden_size=64, intermediate_size=128)
    spec = BaseSpec(str(folder), None, "4bit", "bfloat16", quant_type, True, "bfloat16")
    fly, once = load_spec(spec, "cpu"), load_spec(spec, "cpu", dequantize=True)
    assert once.dequantized
    assert once.quantisation == "4bit"
    names = {type(m).__name__ for m in once.model.modules()}
    assert "Linear4bit" not in names
    assert "Linear4bit" in {type(m).__name__ for m in fly.model.modules()}
    ids = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(fly.model(input_ids=ids).logits, once.model(input_ids=ids).logits)


def test_a_row_is_as_long_as_costs_least() -> None:
    facts = ModelFacts("m", 10**8, {f"layers.{i}.q_proj": (576, 576) for i in range(4)}, 4, 576, 9000, 2048, "none")
    long_instruction = resolve(TrainConfig(), facts, [230] * 32, here(), shared=200)
    assert long_instruction.share_prefix
    assert long_instruction.row_tokens >= 384
    none = resolve(TrainConfig(), facts, [230] * 32, here(), shared=0)
    assert not none.share_prefix
    assert not resolve(TrainConfig(share_prefix=False), facts, [230] * 32, here(), shared=200).share_prefix
    rows = make_rows(questions(8), Layout("completion", PAD, row_tokens=long_instruction.row_tokens, share_prefix=True))
    assert len(rows) == 1
