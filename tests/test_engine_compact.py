"""The compact answer format: the model says only its choices, the code writes the JSON around them."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import ATTACK, EMOTIONS, GOLD, NANO, RICH, Oracle, task_of, tiny_llama, usable_schemas
from transformers import AutoTokenizer

from afina.core import schema as schemas
from afina.core.errors import DataError, RecipeError
from afina.core.predictor import Example
from afina.core.recipe_file import make_recipe
from afina.core.task import Task
from afina.engine.codec import Codec
from afina.engine.decode import against_gold, field_confidence, write_answers
from afina.engine.renderer import Renderer
from afina.engine.spelling import AnswerFormat, spell
from afina.engine.spoken import describe, read, say
from afina.engine.writer import Writer

FORMATS: tuple[AnswerFormat, ...] = ("json", "compact")
POLARITIES = ["positivo", "negativo", "neutro"]
SIX = {name: {"p": POLARITIES, "e": EMOTIONS} for name in ("f1", "f2", "f3")}
ROW = {"f1": "Bolsa sobe.", "f2": "b"}
TEXTS = ["", "é", 'a "b"; c', "x y\n\t", "<|eos|>", "日本 \\", "; }]", " ", "</s>"]


@pytest.fixture(scope="module")
def nano() -> Codec:
    return Codec(AutoTokenizer.from_pretrained(NANO))


@pytest.fixture(scope="module", params=["nano", "stories260K"])
def codec(request: pytest.FixtureRequest) -> Codec:
    """Byte-level BPE, and SentencePiece with byte fallback."""
    if request.param == "nano":
        return Codec(AutoTokenizer.from_pretrained(NANO))
    return Codec(AutoTokenizer.from_pretrained(request.getfixturevalue("shared_data") / "models/stories260K"))


def compact(task: Task, codec: Codec, **more: Any) -> Renderer:
    return Renderer(task, codec, "completion", answer_format="compact", **more)


def random_value(schema: schemas.Schema, rng: random.Random) -> Any:
    """A value of a schema of `usable_schemas`, in canonical order."""
    labels = schemas.labels_of(schema)
    if labels is not None:
        return rng.choice(labels)
    if "anyOf" in schema:
        return random_value(rng.choice(schema["anyOf"]), rng)
    if schema["type"] == "object":
        kept = [k for k in schema["properties"] if k in schema["required"] or rng.random() < 0.5]
        return {k: random_value(schema["properties"][k], rng) for k in kept}
    if schema["type"] == "array":
        low = schema.get("minItems", 0)
        count = rng.randint(low, schema.get("maxItems", low + 3))
        if schema.get("uniqueItems"):
            chosen = rng.sample(schema["items"]["enum"], count)
            return [label for label in schema["items"]["enum"] if label in chosen]
        return [random_value(schema["items"], rng) for _ in range(count)]
    if schema["type"] == "integer":
        return rng.randint(schema.get("minimum", -999), schema.get("maximum", 10**6))
    if schema["type"] == "number":
        return round(rng.uniform(schema.get("minimum", -5), 1.4), rng.randint(1, 7))
    return random_text(schema, rng)


def random_text(schema: schemas.Schema, rng: random.Random) -> str:
    if "pattern" in schema:
        return "".join(rng.choices("abc", k=rng.randint(2, 5)))
    if "format" in schema:
        known = {"date": "2026-01-31", "time": "10:20:30Z", "uuid": "123e4567-e89b-12d3-a456-426614174000"}
        return known[schema["format"]]
    fitting = [t for t in TEXTS if schema.get("minLength", 0) <= len(t) <= schema.get("maxLength", 99)]
    return rng.choice(fitting)


def written(codec: Codec, renderer: Renderer, gold: Any) -> Writer:
    """The writer after it has written the gold answer."""
    writer = renderer.writer(renderer.task.parts[0], 0, gold)
    while (decision := writer.need()) is not None:
        assert decision.gold is not None
        assert decision.gold in decision.allowed
        writer.take(decision.gold)
    return writer


# -- the same value in both formats -----------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("answer_format", FORMATS)
def test_300_random_schemas_round_trip(codec: Codec, answer_format: AnswerFormat) -> None:
    """What is written for a value reads as that value: from the writer's JSON, and from the spoken text alone."""
    rng = random.Random(11)
    checked = 0
    for schema in usable_schemas(300):
        task = Task("t", "x", {"f1": "f1"}, schema)
        renderer = Renderer(task, codec, "completion", answer_format=answer_format)
        for _ in range(2):
            value = random_value(schema, rng)
            assert schemas.problems(value, schema) is None
            writer = written(codec, renderer, value)
            assert json.loads(writer.text) == value, schema
            said = renderer.answer_text(task.parts[0], Example("1", {"f1": ""}, value))
            assert said is not None
            assert codec.decode(writer.tokens).removeprefix(" ") == said
            assert renderer.parse(task.parts[0], said) == value, (schema, said)
            assert renderer.parse(task.parts[0], f" {said}\n") == value  # some engines strip, some add
            checked += 1
            if answer_format == "json":
                assert writer.text == said == codec.decode(writer.tokens)
    assert checked == 600


@pytest.mark.shared
def test_300_random_schemas_and_models_always_give_valid_answers(codec: Codec) -> None:
    models = [tiny_llama(len(codec.tokenizer), seed) for seed in range(6)]
    checked = 0
    for number, schema in enumerate(usable_schemas(300)):
        task = Task("t", "x", {"f1": "f1"}, schema)
        renderer = compact(task, codec, show_schema=number % 2 == 0)
        part = task.parts[0]
        writers = [renderer.writer(part, 12) for _ in range(3)]
        prompts = [renderer.prompt(part, {"f1": text})[0] for text in ("", "ação", ATTACK)]
        answers = write_answers(models[number % 6], list(zip(prompts, writers, strict=True)), batch_size=3)
        for answer, writer in zip(answers, writers, strict=True):
            assert answer.error is None, (schema, answer.error)
            value = json.loads(answer.text)
            assert schemas.problems(value, schema) is None, (schema, answer.text)
            assert renderer.parse(part, codec.decode(writer.tokens)) == value, (schema, answer.text)
            checked += 1
    assert checked == 900


@pytest.mark.shared
def test_training_and_serving_have_the_same_tokens(codec: Codec) -> None:
    """A model that knows the trained text by heart writes exactly the trained tokens."""
    rng = random.Random(5)
    cases = [(task_of(RICH, reasoning="porque"), GOLD)]
    cases += [(Task("t", "x", {"f1": "f1"}, schema), random_value(schema, rng)) for schema in usable_schemas(60)]
    long = schemas.from_shorthand({"m": [["a", "b"]], "x": "bool"})
    long["properties"]["m"] = {"type": "array", "items": {"type": "string"}}
    cases.append((Task("t", "x", {"f1": "f1"}, schemas.normalise(long)), {"m": ["a"] * 32, "x": True}))
    for task, gold in cases:
        renderer, part = compact(task, codec), task.parts[0]
        encoded = renderer.encode(part, Example("1", {"f1": ATTACK, "f2": "ação “é”"}, gold, {"": "sobe, logo é bom"}))
        assert encoded is not None
        prompt = list(encoded.input_ids[: encoded.num_prompt])
        writer = renderer.writer(part, 512)
        (answer,) = write_answers(Oracle(encoded.input_ids, len(codec.tokenizer)), [(prompt, writer)], batch_size=1)
        assert answer.error is None
        assert prompt + writer.tokens + [codec.eos] == list(encoded.input_ids)
        expected = {"porque": "sobe, logo é bom", **gold} if task.reasoning else gold
        assert json.loads(answer.text) == schemas.canonical(expected, part.schema)
    assert len(cases) == 62


# -- tokens, loss, confidence -------------------------------------------------------------------


def test_six_choices_take_a_dozen_tokens(nano: Codec) -> None:
    task = task_of(SIX)
    lengths = {}
    for answer_format in FORMATS:
        renderer = Renderer(task, nano, "completion", answer_format=answer_format)
        found = []
        for p, e in itertools.product(POLARITIES, EMOTIONS):
            gold = {"f1": {"p": p, "e": e}, "f2": {"p": "negativo", "e": "medo"}, "f3": {"p": "positivo", "e": "raiva"}}
            encoded = renderer.encode(task.parts[0], Example("1", ROW, gold))
            assert encoded is not None
            found.append(len(encoded.input_ids) - encoded.num_prompt)
        lengths[answer_format] = found
    assert len(lengths["compact"]) == 24
    assert max(lengths["compact"]) <= 15
    assert sum(lengths["compact"]) / 24 <= 13
    assert min(lengths["json"]) >= 70


def test_the_answer_reads_as_plain_words(nano: Codec) -> None:
    task = task_of(SIX)
    gold = {k: {"p": "positivo", "e": "alegria"} for k in SIX}
    said = compact(task, nano).answer_text(task.parts[0], Example("1", ROW, gold))
    assert said == "positivo alegria positivo alegria positivo alegria"
    rich = task_of(RICH)
    said = compact(rich, nano).answer_text(rich.parts[0], Example("1", ROW, GOLD))
    assert said == 'positivo neutro n 1; 0.25; m raiva medo; "é \\"isto\\"\\n <|eos|>"'


def test_loss_positions_are_the_choices_and_the_end(nano: Codec) -> None:
    task = task_of({"p": POLARITIES, "q": "number(0..1)", "e": EMOTIONS})
    encoded = compact(task, nano).encode(task.parts[0], Example("1", ROW, {"p": "neutro", "q": 0.5, "e": "medo"}))
    assert encoded is not None
    answer = encoded.input_ids[encoded.num_prompt :]
    assert answer.count(nano.eos) == 1
    assert answer[-1] == nano.eos
    last = len(encoded.input_ids) - 1
    assert encoded.trained("completion") == list(range(encoded.num_prompt, last + 1))
    assert encoded.trained("choices") == sorted({*encoded.choices, last})
    spoken = {nano.decode([encoded.input_ids[at]]): path for at, path in encoded.fields.items()}
    # " ne" | "ut" "ro" is forced | " " is forced, "0" ".5" are open and ";" ends them | " medo"
    assert spoken == {" ne": "p", "0": "q", ".": "q", "5": "q", ";": "q", " medo": "e"}
    for at, allowed in encoded.choices.items():
        assert (allowed is None) == (encoded.fields[at] == "q")
        assert allowed is None or (encoded.input_ids[at] in allowed and len(allowed) > 1)


LABELS = ["ab", "abc", "abc d", "x y", "x", "", " x", 'q"q', "neutro", "neutralidade", "<|eos|>", "ação", "日本", "a;b"]


@pytest.mark.shared
def test_confidence_is_the_probability_of_the_label(codec: Codec) -> None:
    """By brute force: every label spelt out in tokens, each token's share among those that lead to some label,
    read from plain forward passes. The shares of all labels sum to one."""
    task = task_of({"p": POLARITIES, "l": LABELS})
    part, renderer = task.parts[0], compact(task, codec)
    checked = 0
    for seed in range(4):
        model = tiny_llama(len(codec.tokenizer), seed)
        prompt = renderer.prompt(part, ROW)[0]
        (answer,) = write_answers(model, [(prompt, renderer.writer(part, 8))], batch_size=1)
        confidence = field_confidence(answer.made, {})
        value = json.loads(answer.text)
        before = list(prompt)
        for path, labels in (("p", POLARITIES), ("l", LABELS)):
            ids = [tuple(codec.answer_text(text)) for text in spell(tuple(map(schemas.dumps, labels)))]
            shares = brute_force(model, before, ids)
            assert sum(shares) == pytest.approx(1, abs=1e-5)  # fp32 sums
            chosen = labels.index(value[path])
            assert confidence[path] == pytest.approx(shares[chosen], rel=1e-3)  # fp32, cached against uncached
            before += ids[chosen]
            checked += 1
    assert checked == 8


def brute_force(model: Any, before: list[int], options: list[tuple[int, ...]]) -> list[float]:
    """The probability of each option among all of them."""
    found = []
    for option in options:
        share = 1.0
        for at in range(len(option)):
            allowed = sorted({o[at] for o in options if len(o) > at and o[:at] == option[:at]})
            with torch.no_grad():
                logits = model(torch.tensor([[*before, *option[:at]]])).logits[0, -1, allowed].double().numpy()
            weights = np.exp(logits - logits.max())
            share *= float(weights[allowed.index(option[at])] / weights.sum())
        found.append(share)
    return found


def test_calibration_sees_each_choice(nano: Codec) -> None:
    task = task_of(RICH)
    part, renderer = task.parts[0], compact(task, nano)
    model = tiny_llama(8192, 2)
    (answer,) = write_answers(model, [(renderer.prompt(part, ROW)[0], renderer.writer(part, 8))], batch_size=1)
    own = renderer.encode(part, Example("1", ROW, json.loads(answer.text)))
    assert own is not None
    found = against_gold(answer.made, own)
    finite = [(at, allowed) for at, allowed in sorted(own.choices.items()) if allowed is not None]
    assert len(found) == len(finite) >= 4
    with torch.no_grad():
        logits = model(torch.tensor([own.input_ids])).logits[0]
    for (at, allowed), (path, values, index) in zip(finite, found, strict=True):
        assert path == own.fields[at]
        assert allowed[index] == own.input_ids[at]
        assert values == pytest.approx(logits[at - 1][list(allowed)].numpy(), abs=1e-4)  # fp32, other batch


# -- spelling and reading -----------------------------------------------------------------------


def test_no_spelling_begins_another() -> None:
    rng = random.Random(3)
    words = [*LABELS, "abc ", "{", "[1]", "}", ";", ";;", "a\nb", "a\\", "true", "1", "10", '"', '"a"', "null"]
    words += ["\u00a0", "\u2028"]
    values = [*words, 1, 10, 100, 1.5, True, False, None, -1]
    for _ in range(500):
        chosen = rng.sample(values, rng.randint(1, len(values)))
        texts = list(dict.fromkeys(schemas.dumps(v) for v in chosen))
        spelt = spell(tuple(texts))
        assert len(set(spelt)) == len(texts)
        for one, other in itertools.permutations(spelt, 2):
            assert not other.startswith(one), (one, other)
    assert spell(('"ab"', '"abc"', '"a;b"', '""', '"1"', "1")) == (" ab;", " abc", ' "a;b"', ' ""', ' "1"', " 1")


BAD = {
    "": "expected one of ' positivo'",
    "positivo": "expected one of ' alegria'",
    "positivo feliz m": "found ' feliz m', expected one of ' alegria'",
    "positivoalegria": "expected one of ' alegria'",
    "positivo alegria raiva; 0.5; extra": "goes on after its end with ' extra'",
    "positivo alegria raiva medo": "found the end",
    "positivo alegria medo raiva; 0.5;": "expected one of",  # unique labels come in the schema's order
    "positivo alegria ; 0.5;": "expected one of",
    "positivo alegria; 1.5;": "expected a number within",
    "positivo alegria; 1e999;": "expected a finite number",
    "positivo alegria; NaN;": "NaN",
    "positivo alegria; 0.5": "expected one of ';'",
    "positivo alegria; um;": "expected the JSON text",
    "positivo alegria; " + "[" * 100_000: "",
    '{"p":"positivo","e":"alegria","m":[],"q":0.5}': "'p': found",
}


def test_a_text_that_is_no_answer_is_refused(nano: Codec) -> None:
    task = task_of({"p": POLARITIES, "e": EMOTIONS, "m": [EMOTIONS], "q": "number(0..1)"})
    part, renderer = task.parts[0], compact(task, nano)
    good = renderer.parse(part, "positivo alegria raiva medo; 0.5;")
    assert good == {"p": "positivo", "e": "alegria", "m": ["raiva", "medo"], "q": 0.5}
    refused = 0
    for text, message in BAD.items():
        with pytest.raises(DataError) as caught:
            renderer.parse(part, text)
        assert message in str(caught.value), text
        refused += 1
    assert refused == 15


def test_json_answers_are_read_strictly(nano: Codec) -> None:
    task = task_of({"p": POLARITIES, "b": "bool"})
    renderer = Renderer(task, nano, "completion")
    assert list(renderer.parse(task.parts[0], ' {"b": true, "p": "neutro"}\n')) == ["p", "b"]
    for text in ("", "{", '{"p":"neutro"}', '{"p":"neutro","p":"neutro","b":true}', '{"p":"x","b":true}', "[" * 10**5):
        with pytest.raises(DataError):
            renderer.parse(task.parts[0], text)


def test_a_long_list_reads_back(nano: Codec) -> None:
    """Gold lists may be longer than what a model may write."""
    schema = schemas.normalise({"type": "array", "items": {"type": "string"}})
    for count in (0, 1, 31, 32, 33, 70):
        value = ["a"] * count
        assert read(schema, say(schema, value, "compact"), "compact") == value


def test_plain_text_is_the_same_in_both_formats(nano: Codec) -> None:
    with pytest.raises(RecipeError, match="answer: answer_format: compact has no effect"):
        make_recipe(
            {
                "task": {"instruction": "x", "inputs": ["a"], "output": "text"},
                "data": {"path": "x"},
                "answer": {"answer_format": "compact"},
            }
        )
    task = task_of("text")
    for answer_format in FORMATS:
        renderer = Renderer(task, nano, "completion", answer_format=answer_format)
        example = Example("1", ROW, " uma linha; outra\n")
        assert renderer.answer_text(task.parts[0], example) == example.output
        assert renderer.parse(task.parts[0], example.output) == example.output
        shown = Renderer(task, nano, "completion", answer_format=answer_format, show_schema=True)
        assert shown.prompt(task.parts[0], ROW) == renderer.prompt(task.parts[0], ROW)  # there is no format to show


# -- what is told and kept ----------------------------------------------------------------------


def test_the_prompt_says_the_format_that_is_written(nano: Codec) -> None:
    task = task_of(RICH)
    part = task.parts[0]
    shown = compact(task, nano, show_schema=True).question(part, part.shown(ROW))
    lines = describe(part.schema, "compact").split("\n")
    assert "\n".join(lines) in shown
    assert lines[1] == "f1.p: positivo | negativo | neutro"
    assert [line.split(":")[0] for line in lines[1:-2]] == [
        "f1.p", "f1.e", "n (optional)", "q", "b (optional)", "m (list)", "t"
    ]  # fmt: skip
    assert "JSON" not in shown
    assert "JSON: {" in Renderer(task, nano, "completion", show_schema=True).question(part, part.shown(ROW))
    hidden = [Renderer(task, nano, "completion", answer_format=f).prompt(part, ROW)[0] for f in FORMATS]
    assert hidden[0] == hidden[1]


def test_every_format_can_be_described() -> None:
    described = [describe(schema, "compact") for schema in usable_schemas(300)]
    assert len(described) == 300
    assert all(text.startswith("Answer in one line") for text in described)


def test_the_fingerprint_tells_the_formats_apart(nano: Codec) -> None:
    task = task_of({"p": POLARITIES})
    json_print, compact_print = (Renderer(task, nano, "completion", answer_format=f).fingerprint for f in FORMATS)
    assert json_print != compact_print
    # Specialists made before there was a second format go on working.
    assert json_print == "f3591c8405ec5943"


def test_label_texts_begin_where_the_model_chooses(nano: Codec) -> None:
    task = task_of({"p": POLARITIES})
    part = task.parts[0]
    for answer_format in FORMATS:
        renderer = Renderer(task, nano, "completion", answer_format=answer_format)
        decision = renderer.writer(part, 8).need()
        assert decision is not None
        firsts = {nano.answer_text(text)[0] for text in renderer.label_texts(POLARITIES)}
        assert firsts == set(decision.allowed.tolist())
