"""The short way to the loss equals the plain one, packed or padded, and end of sequence is learned once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from training_material import EOS, examples, tiny_llama

from afina.engine.encoded import Encoded
from afina.engine.loader import load_base
from afina.training.collate import Layout, Schedule, collate, make_rows, micro_batches
from afina.training.loss import head_is_plain, logits_full, logits_short, loss_sum, packing_is_clean

PAD = 2
# float32 sums in another order: logits of order 1, 32 terms, so a few 1e-6.
TOLERANCE = 2e-5
PLAIN = Layout("completion", PAD)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("tiny") / "m", initializer_range=0.3)
    return load_base(str(folder), device="cpu").model


def reference(model: Any, data: list[Encoded], loss_on: str) -> float:
    """One example at a time, all logits, plain Python."""
    total = 0.0
    for example in data:
        with torch.no_grad():
            logits_TV = model(torch.tensor([example.input_ids])).logits[0].double()
        last = len(example.input_ids) - 1
        for position in range(example.num_prompt, last + 1):
            if loss_on == "choices" and position != last and position not in example.choices:
                continue
            allowed = example.choices.get(position) if loss_on == "choices" and position != last else None
            row = logits_TV[position - 1]
            tokens = list(allowed) if allowed is not None else list(range(len(row)))
            z = math.log(sum(math.exp(float(row[t])) for t in tokens))
            total += z - float(row[example.input_ids[position]])
    return total


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("loss_on", ["completion", "choices"])
def test_loss_equals_the_reference(model: Any, packing: bool, loss_on: str) -> None:
    data = examples(12)
    data.append(Encoded((0, 10, 40, 11, 12, 13, EOS), 3, {4: (12, 30, 31)}))  # forced positions around a choice
    batch = collate(make_rows(data, Layout(loss_on, PAD, packing=packing)), Layout(loss_on, PAD))
    wanted = reference(model, data, loss_on)
    assert len(batch.target_N) == sum(len(e.trained(loss_on)) for e in data)
    for way in (logits_short, logits_full):
        assert loss_sum(model, batch, way).item() == pytest.approx(wanted, rel=TOLERANCE)


def test_packed_logits_equal_unpacked(model: Any) -> None:
    data = examples(9, seed=3)
    packed = collate(make_rows(data, PLAIN), PLAIN)
    assert packed.input_ids_BT.shape[0] < len(data)
    ordered = [e for row in make_rows(data, PLAIN) for e in row]
    alone = [logits_short(model, collate([[e]], PLAIN)) for e in ordered]
    assert torch.allclose(logits_short(model, packed), torch.cat(alone), atol=TOLERANCE)


def test_the_probe_sees_a_leak(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packing_is_clean(model, 128)
    assert head_is_plain(model, 128)
    forward = model.forward
    # A model that ignores position ids attends across examples.
    monkeypatch.setattr(model, "forward", lambda input_ids, **_: forward(input_ids=input_ids))
    assert not packing_is_clean(model, 128)
    monkeypatch.setattr(model, "forward", lambda **k: type("Out", (), {"logits": forward(**k).logits.tanh()})())
    assert not head_is_plain(model, 128)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("loss_on", ["completion", "choices"])
def test_eos_once_and_pad_never(packing: bool, loss_on: str) -> None:
    data = examples(20)
    batches = micro_batches(data, 4, Layout(loss_on, EOS, packing=packing))  # the worst case: pad is eos
    targets = torch.cat([b.target_N for b in batches])
    assert int((targets == EOS).sum()) == len(data) == 20
    for batch in batches:
        flat = batch.input_ids_BT.flatten()
        assert torch.equal(flat[batch.source_N + 1], batch.target_N)
        eos = (batch.target_N == EOS).nonzero().flatten()
        assert not set(eos.tolist()) & set(batch.finite_M.tolist())  # against the whole vocabulary


def test_gradient_of_uneven_micro_batches_is_that_of_one(model: Any) -> None:
    data = examples(7)
    grads = []
    for size in (7, 3):
        model.zero_grad()
        batches = micro_batches(data, size, Layout("completion", PAD, packing=False))
        num_trained = sum(len(b.target_N) for b in batches)
        for batch in batches:
            (loss_sum(model, batch) / num_trained).backward()
        grads.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    model.zero_grad()
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_mean_loss_equals_transformers_own(model: Any) -> None:
    data = examples(5)
    batch = collate([[e] for e in data], PLAIN)
    labels = torch.full_like(batch.input_ids_BT, -100)
    for row, e in enumerate(data):
        labels[row, e.num_prompt : len(e.input_ids)] = torch.tensor(e.input_ids[e.num_prompt :])
    theirs = torch.nn.functional.cross_entropy(
        model(input_ids=batch.input_ids_BT).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert float(loss_sum(model, batch)) / len(batch.target_N) == pytest.approx(float(theirs), rel=TOLERANCE)


def schedule(data: list[Encoded], **changes: Any) -> Schedule:
    values: dict[str, Any] = {
        "batch_size": 4,
        "accumulation": 2,
        "group_by_length": False,
        "seed": 5,
        "layout": Layout("completion", PAD, packing=False),
    }
    return Schedule(data, 12, **{**values, **changes})


@pytest.mark.parametrize("grouped", [False, True])
def test_every_epoch_sees_every_example_once(grouped: bool) -> None:
    data = examples(30)
    made = schedule(data, group_by_length=grouped)
    assert made.steps_per_epoch == 4
    first, second = (sorted(n for step in made.order(e) for n in step) for e in (0, 1))
    assert first == second == list(range(30))
    assert made.order(0) != made.order(1)
    assert made.order(0) == schedule(data, group_by_length=grouped).order(0)
    assert sum(made[i].num_tokens for i in range(4)) == sum(len(e.input_ids) for e in data)


def test_grouping_by_length_pads_less() -> None:
    data = examples(60)

    def padded(made: Schedule) -> int:
        return sum(m.input_ids_BT.numel() for i in range(made.steps_per_epoch) for m in made[i].micro_batches)

    assert padded(schedule(data, group_by_length=True)) < padded(schedule(data))


def test_packing_changes_no_update() -> None:
    data = examples(30)
    plain, packed = schedule(data), schedule(data, layout=PLAIN)
    assert [plain[i].num_trained for i in range(8)] == [packed[i].num_trained for i in range(8)]


def test_flat_rows_for_flash() -> None:
    assert len(make_rows(examples(9), Layout("completion", PAD, flat=True))) == 1
