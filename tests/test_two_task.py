"""A second task in the same update: loss and gradients against two plain forward passes, and what is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_material import EOS, VOCABULARY, examples, load, settings_for, tiny_llama

from afina.core.errors import RunError
from afina.core.predictor import Example
from afina.core.task import Task
from afina.engine.codec import Codec
from afina.engine.encoded import Encoded
from afina.engine.loader import load_tokenizer
from afina.engine.renderer import Renderer
from afina.training import local
from afina.training.adapters import prepare
from afina.training.collate import Layout, Schedule, Step, make_step, micro_batches
from afina.training.passes import Passes

PAD, WEIGHT = 2, 0.7
POLARITY = {"type": "string", "enum": ["positivo", "negativo", "neutro"]}
OUTPUT = {
    "type": "object",
    "properties": {"polaridade": POLARITY},
    "required": ["polaridade"],
    "additionalProperties": False,
}
TASK = Task("small", "Classifique a frase.", {"texto": "texto"}, OUTPUT)


def with_rationales(count: int, seed: int = 0, weight: float = WEIGHT) -> list[Encoded]:
    """Short labels, each with a rationale many times as long; every fifth row has none."""
    draw = torch.Generator().manual_seed(seed)
    found: list[Encoded] = []
    for number, one in enumerate(examples(count, seed)):
        length = int(torch.randint(10, 40, (), generator=draw))
        text = torch.randint(30, VOCABULARY, (length,), generator=draw).tolist()
        prompt = (0, 5, 6, *one.input_ids[1 : one.num_prompt])
        open_text: dict[int, None] = dict.fromkeys(range(len(prompt), len(prompt) + length))
        second = Encoded((*prompt, *text, EOS), len(prompt), open_text)
        found.append(one if number % 5 == 4 else replace(one, second=second, second_weight=weight))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("two") / "m", initializer_range=0.3)


# -- against plain forward passes ------------------------------------------------------------------


def mean_loss(model: Any, data: list[Encoded], loss_on: str) -> torch.Tensor:
    """One text at a time, all logits, no code of ours."""
    losses: list[torch.Tensor] = []
    for one in data:
        logits_TV = model(input_ids=torch.tensor([one.input_ids])).logits[0].float()
        last = len(one.input_ids) - 1
        for position in range(one.num_prompt, last + 1):
            if loss_on == "choices" and position != last and position not in one.choices:
                continue
            row = logits_TV[position - 1]
            allowed = one.choices.get(position) if loss_on == "choices" and position != last else None
            if allowed is not None:
                row = torch.full_like(row, float("-inf")).index_put((torch.tensor(allowed),), row[list(allowed)])
            losses.append(-torch.log_softmax(row, 0)[one.input_ids[position]])
    return torch.stack(losses).mean()


def taken(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"packing": False, "fused_loss": False, "fused_lora": False},
    "fused loss": {"packing": False},
    "packed": {},
    "packed, shared": {},
    "accumulated": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    "accumulated, plain": {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 12, "packing": False, "fused_loss": False,
    },
    "all weights": {"finetuning_type": "full"},
}  # fmt: skip


@pytest.mark.parametrize("loss_on", ["completion", "choices"])
@pytest.mark.parametrize("way", WAYS)
def test_the_update_is_that_of_two_mean_losses(folder: Path, way: str, loss_on: str) -> None:
    data = with_rationales(12)
    wished: dict[str, Any] = {"finetuning_type": "lora", "per_device_train_batch_size": 12}
    wished |= {"gradient_accumulation_steps": 1, "bf16": False, "loss_on": loss_on, **WAYS[way]}
    lora = {"lora_dropout": 0.0} if wished["finetuning_type"] == "lora" else {}
    settings = settings_for(folder, data, **wished, **lora)
    settings = replace(settings, share_prefix="shared" in way)
    torch.manual_seed(3)
    loaded = prepare(load(settings), settings)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:  # B starts at 0, which would hide a wrong A
            torch.nn.init.normal_(parameter, std=0.05)
    loaded.model.train()
    second = [one.second for one in data if one.second is not None]
    assert len(second) == 10
    wanted = mean_loss(loaded.model, data, loss_on) + WEIGHT * mean_loss(loaded.model, second, loss_on)
    wanted.backward()
    theirs = taken(loaded.model)

    passes = Passes(loaded, settings)
    step = make_step(data, settings.per_device_train_batch_size, passes.layout)
    assert (step.second[0].seen_BTT is not None) == ("shared" in way)
    assert step.num_trained == sum(len(e.trained(loss_on)) for e in data)
    assert step.num_second == sum(len(e.trained(loss_on)) for e in second) > 4 * step.num_trained
    found = passes.learn(step, lambda loss: loss.backward())
    ours = taken(loaded.model)
    passes.close()
    assert float(found) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 14
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-5, atol=1e-5), name
        assert float(gradient.abs().max()) > 0, name


# -- what an update holds --------------------------------------------------------------------------


def schedule(data: list[Encoded], **changes: Any) -> Schedule:
    layout = Layout("completion", PAD, packing=False)
    values: dict[str, Any] = {"batch_size": 4, "accumulation": 2, "group_by_length": False, "seed": 5}
    return Schedule(data, 10, **{**values, **changes}, layout=layout)


def test_every_update_has_the_rows_that_it_would_have_without(folder: Path) -> None:
    data = with_rationales(30)
    plain = [replace(one, second=None) for one in data]
    both, alone = schedule(data), schedule(plain)
    assert both.order(0) == alone.order(0)
    for index in range(10):
        one, other = both[index], alone[index]
        assert one.num_trained == other.num_trained
        ids = [batch.input_ids_BT.tolist() for batch in one.micro_batches]
        assert ids == [batch.input_ids_BT.tolist() for batch in other.micro_batches]
        rows = both.order(index // both.steps_per_epoch)[index % both.steps_per_epoch]
        wanted = sorted(data[n].second.input_ids for n in rows if data[n].second is not None)  # type: ignore[union-attr]
        texts = [row for batch in one.second for row in batch.input_ids_BT.tolist()]
        assert sorted(tuple(t for t in row if t != PAD) for row in texts) == wanted
    assert both.num_tokens(10) == sum(both[index].num_tokens for index in range(10))
    assert alone.num_tokens(7) == sum(alone[index].num_tokens for index in range(7)) < both.num_tokens(7)


def test_without_a_second_task_nothing_is_different() -> None:
    data = examples(9)
    layout = Layout("choices", PAD)
    step = make_step(data, 4, layout)
    plain = Step(micro_batches(data, 4, layout))
    assert step.second == []
    assert step.num_second == 0
    assert (step.num_trained, step.num_tokens) == (plain.num_trained, plain.num_tokens)
    for ours, theirs in zip(step.micro_batches, plain.micro_batches, strict=True):
        assert torch.equal(ours.input_ids_BT, theirs.input_ids_BT)
    assert [one.longest for one in data] == [len(one.input_ids) for one in data]


def test_two_weights_in_one_update_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="one weight"):
        make_step([*with_rationales(2), *with_rationales(2, weight=2.0)], 4, Layout("completion", PAD))


def test_training_learns_both_and_is_another_training_with_another_weight(folder: Path, tmp_path: Path) -> None:
    data, validation = with_rationales(32), examples(8, seed=1)
    options = {"finetuning_type": "full", "learning_rate": 5e-3, "num_train_epochs": 3, "bf16": False}
    settings = settings_for(folder, data, **options)
    loaded = load(settings)
    result = local.train(loaded, settings, data, validation, tmp_path / "t", 3)
    losses = [row["calibrated_loss"] for row in result.history if "calibrated_loss" in row]
    assert result.best_validation_loss == pytest.approx(min(losses))
    assert min(losses) < losses[0]
    second = [one.second for one in data if one.second is not None]
    with torch.no_grad():
        learned, before = (
            float(mean_loss(model, second, "completion")) for model in (loaded.model, load(settings).model)
        )
    assert learned < before
    texts = [*data, *second]
    assert result.trained_tokens == settings.num_train_epochs * sum(len(one.input_ids) for one in texts)
    again = local.train(load(settings), settings, data, validation, tmp_path / "t", 3)
    assert again.trained_tokens == result.trained_tokens
    heavier = [replace(one, second_weight=2.0) if one.second else one for one in data]
    for other in (heavier, [replace(one, second=None) for one in data]):
        with pytest.raises(RunError, match="other data or other settings"):
            local.train(load(settings), settings, other, validation, tmp_path / "t", 3)


# -- the second task's text ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(load_tokenizer("afina/nano"))


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_the_prefix_is_all_that_tells_the_prompts_apart(codec: Codec, style: Any) -> None:
    renderer = Renderer(TASK, codec, style)
    text = 'O PIB subiu; "boa" notícia.\nPor isso, positivo.'
    example = Example("1", {"texto": "O PIB cresceu 2%."}, {"polaridade": "positivo"}, {"": text})
    part = TASK.parts[0]
    labels, reasons = renderer.encode(part, example), renderer.encode_rationale(part, example, "[pensamento]")
    assert labels is not None
    assert reasons is not None
    asked = codec.decode(reasons.input_ids[: reasons.num_prompt])
    assert asked.replace("[pensamento]\n\n", "") == codec.decode(labels.input_ids[: labels.num_prompt])
    assert codec.decode(reasons.input_ids[reasons.num_prompt : -1]) == text
    assert reasons.input_ids[-1] == codec.eos
    for loss_on in ("completion", "choices"):
        assert reasons.trained(loss_on) == list(range(reasons.num_prompt, len(reasons.input_ids)))
    assert renderer.encode_rationale(part, replace(example, reasoning={}), "[pensamento]") is None
    # Long inputs are cut, the rationale is not.
    long = replace(example, inputs={"texto": "O PIB cresceu. " * 200})
    cut = renderer.encode_rationale(part, long, "[pensamento]", 128)
    assert cut is not None
    assert cut.truncated > 0
    assert len(cut.input_ids) <= 128
    assert codec.decode(cut.input_ids[cut.num_prompt : -1]) == text


@pytest.mark.parametrize("answer_format", ["json", "compact"])
def test_labels_behind_the_reasoning_alone(codec: Codec, answer_format: Any) -> None:
    spoken, plain = replace(TASK, reasoning="pensamento"), TASK
    example = Example("1", {"texto": "O PIB caiu."}, {"polaridade": "negativo"}, {"": 'Caiu, "logo" é ruim.'})
    one = Renderer(spoken, codec, "completion", answer_format=answer_format).encode(spoken.parts[0], example)
    bare = Renderer(plain, codec, "completion", answer_format=answer_format).encode(plain.parts[0], example)
    assert one is not None
    assert bare is not None
    after = one.after("pensamento")
    assert after.input_ids == one.input_ids
    assert set(after.fields.values()) == set(bare.fields.values()) == {"polaridade"}
    label = [one.input_ids[p] for p in after.trained("choices")]
    assert label == [bare.input_ids[p] for p in bare.trained("choices")]
    learned = codec.decode([one.input_ids[p] for p in after.trained("completion")][:-1])
    assert learned in ('","polaridade":"negativo"}', ',"polaridade":"negativo"}', " negativo")
    assert bare.after("pensamento") == bare


def test_reasoning_is_cut_at_a_sentence(codec: Codec) -> None:
    renderer = Renderer(TASK, codec, "completion")
    text = 'O PIB subiu 2.5% no ano. "Boa notícia!" disse ele. Portanto, a polaridade é positiva e a emoção é alegria.'
    tokens = len(codec.answer_text(text))
    assert renderer.shorten(text, tokens + 5) == text
    ends = [renderer.shorten(text, limit) for limit in range(1, tokens + 5)]
    assert ends == sorted(ends, key=len)
    found = list(dict.fromkeys(ends))
    assert found[-1] == text
    assert text.startswith('O PIB subiu 2.5% no ano. "Boa notícia!"')
    assert found[-2] == 'O PIB subiu 2.5% no ano. "Boa notícia!" disse ele.'
    assert 'O PIB subiu 2.5% no ano. "Boa notícia!"' in found
    assert "O PIB subiu 2.5% no ano." in found
    assert all(len(codec.answer_text(end)) <= limit for limit, end in enumerate(ends, 1))
    assert all(text.startswith(end) for end in found)
    assert not any(text[len(end) :][:1].isalnum() and end for end in found)  # never within a word
