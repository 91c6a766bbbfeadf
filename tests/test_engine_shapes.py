"""Shapes of answers: whatever a model says, a finished answer is of its shape."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from test_engine import NANO, random_schema, tiny_llama
from transformers import AutoTokenizer

from afina.core.chat import Tool
from afina.core.errors import ModelError, SchemaError
from afina.engine.batching import Batcher
from afina.engine.codec import Codec
from afina.engine.generation import Delta, Generation, TextStream, Token
from afina.engine.sampling import Sampler, Sampling
from afina.engine.shapes import JsonObject, JsonSchema, Shape, Text, ToolCalls, check_shape, speaker
from afina.engine.toolcalls import OPENING


@dataclass
class Told:
    """What a request was told."""

    deltas: list[Delta] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def tokens(self) -> list[Token]:
        return [token for delta in self.deltas for token in delta.tokens]

    @property
    def finish(self) -> str | None:
        return self.deltas[-1].finish if self.deltas else None


def asked(ids: list[int], shape: Shape, sampling: Sampling) -> tuple[Generation, Told]:
    told = Told()
    return Generation(ids, shape, sampling, told.deltas.append, told.errors.append), told


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(AutoTokenizer.from_pretrained(NANO))


@pytest.fixture(scope="module")
def batcher(codec: Codec) -> Batcher:
    return Batcher(tiny_llama(8192, 1), codec, frozenset({codec.eos}))


def answers(batcher: Batcher, shapes: list[Shape], **sampling: Any) -> list[Told]:
    told: list[Told] = []
    for n, shape in enumerate(shapes):
        generation, one = asked([0, 3 + n % 97, 40], shape, Sampling(seed=n, **sampling))
        told.append(one)
        batcher.submit(generation)
    while batcher.step():
        pass
    return told


def closing(codec: Codec) -> dict[int, float]:
    """A bias for tokens that end texts, lists and objects, so that a random model comes to an end."""
    return {token: 4.0 for text in ('"', '",', '"}', "}", "]", "}}", "]}") for token in codec.answer_text(text)}


def validator(schema: Any) -> Callable[[Any], bool]:
    """Another's judgement."""
    return Draft202012Validator(schema).is_valid


def finite(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    value = json.loads(text, parse_constant=refuse)
    assert "Infinity" not in json.dumps(value)
    return value


# -- schemas ----------------------------------------------------------------------------------


def any_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Schemas that no walk takes, mostly: recursion, unions of objects, free objects, mixed types, prefixItems."""
    if depth and rng.random() < 0.4:
        return random_schema(rng, 2)
    kind = rng.choice(["tree", "union", "free", "mixed", "tuple", "object", "closed", "typed"])
    if depth > 2:
        kind = "mixed"
    if kind == "tree":
        leaf = {
            "type": "object",
            "properties": {"v": any_schema(rng, 3), "next": {"$ref": "#/$defs/n"}},
            "required": ["v"],
        }
        other = {"type": "object", "properties": {"w": {"type": "integer"}}, "required": ["w"]}
        return {"anyOf": [leaf, other, {"type": "null"}]} if depth else {"$ref": "#/$defs/n", "$defs": {"n": {**leaf}}}
    if kind == "union":
        return {"anyOf": [any_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    if kind == "free":
        return rng.choice(
            [{"type": "object"}, {"type": "object", "additionalProperties": {"type": "number"}}, {"type": "array"}]
        )
    if kind == "mixed":
        return rng.choice(
            [
                {"type": ["string", "number", "null"], "maxLength": 4},
                {"type": ["integer", "array"], "items": {"type": "boolean"}, "maxItems": 3},
                {"enum": [{"a": 1}, [1, 2], "x", None]},
                {"const": {"k": [True]}},
                {"type": "integer", "multipleOf": 5, "minimum": -100, "maximum": 100},
                {"type": "string", "maxLength": 8},
                {"description": "anything"},
            ]
        )
    if kind == "tuple":
        parts = [any_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    names = rng.sample(["a", "b", "ç", 'k"'], rng.randint(1, 3))
    made = {"type": "object", "properties": {n: any_schema(rng, depth + 1) for n in names}}
    made["required"] = rng.sample(names, rng.randint(0, len(names)))
    if kind == "closed":
        made["additionalProperties"] = False
    return made


def with_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    if '"#/$defs/n"' in json.dumps(schema) and "$defs" not in schema:
        node = {"type": "object", "properties": {"id": {"type": "integer"}, "next": {"$ref": "#/$defs/n"}}}
        return {**schema, "$defs": {"n": node}}
    return schema


def usable(
    codec: Codec, made: Callable[[random.Random], dict[str, Any]], number: int, seed: int
) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    while len(found) < number:
        schema = with_definitions(made(rng))
        try:
            check_shape(JsonSchema(schema), codec)
        except SchemaError:
            continue
        found.append(schema)
    return found


@pytest.mark.parametrize(("made", "number"), [(random_schema, 150), (any_schema, 250)])
def test_finished_answers_are_valid(codec: Codec, batcher: Batcher, made: Any, number: int) -> None:
    wanted = usable(codec, made, number, seed=3)
    told = answers(batcher, [JsonSchema(schema) for schema in wanted], temperature=0.8, max_tokens=220)
    finished = 0
    for schema, one in zip(wanted, told, strict=True):
        assert not one.errors, (schema, one.errors)
        if one.finish == "length":
            continue
        assert one.finish == "stop"
        finished += 1
        assert validator(schema)(finite(one.text)), (schema, one.text)
    assert finished > 0.6 * number


def test_objects_of_any_kind(codec: Codec, batcher: Batcher) -> None:
    told = answers(batcher, [JsonObject()] * 40, temperature=1.3, max_tokens=200, logit_bias=closing(codec))
    ended = [one for one in told if one.finish == "stop"]
    assert len(ended) > 10
    assert max(len(one.text) for one in ended) > 60
    assert all(isinstance(finite(one.text), dict) for one in ended)
    assert not any(one.errors for one in told)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "not"),
        ({"type": "strange"}, "strange"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"properties": []}, "properties"),
        ({"enum": 5}, "enum"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": "^[a-z]{5}$", "maxLength": 2}, "grammar"),
    ],
)
def test_what_cannot_be_held_to_is_refused_before_work(codec: Codec, schema: Any, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        check_shape(JsonSchema(schema), codec)


def test_references_that_multiply_are_not_written_out(codec: Codec) -> None:
    definitions = {
        f"d{i}": {"type": "object", "properties": {n: {"$ref": f"#/$defs/d{i + 1}"} for n in "abcd"}} for i in range(20)
    }
    definitions["d20"] = {"type": "boolean"}
    check_shape(JsonSchema({"$ref": "#/$defs/d0", "$defs": definitions}), codec)
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        nested = {"type": "array", "items": nested}
    with pytest.raises(SchemaError):
        check_shape(JsonSchema(nested), codec)


def test_a_long_list_is_not_cut_short(codec: Codec) -> None:
    """In training runs a list that nobody limited ends after 32 items; a request's answer may go on."""
    for schema in ({"type": "array", "items": {"enum": ["a", "b"]}}, {"type": "array", "items": {"type": "integer"}}):
        text = speaker(JsonSchema(schema), codec, {codec.eos}, 8192)
        value = ["a" if "enum" in schema["items"] else 12345] * 80
        wanted = json.dumps(value, separators=(",", ":")).encode()
        while (need := text.need()) is not None:
            written = b"".join(codec.token_bytes(token) for token in text.tokens)
            assert need.ids is not None
            fitting = [i for i in need.ids.tolist() if wanted[len(written) :].startswith(codec.token_bytes(i))]
            text.take(max(fitting, key=lambda i: len(codec.token_bytes(i)), default=codec.eos))
        assert json.loads(codec.decode(text.tokens)) == value


# -- tools ------------------------------------------------------------------------------------

WEATHER = Tool(
    "get_weather",
    "The weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["c", "f"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
NODE = {"type": "object", "properties": {"name": {"type": "string"}, "child": {"$ref": "#/$defs/node"}}}
TREE = Tool(
    "get", parameters={"type": "object", "properties": {"root": {"$ref": "#/$defs/node"}}, "$defs": {"node": NODE}}
)
NOW = Tool("get_now")
TOOLS = (WEATHER, TREE, NOW)


def check_calls(text: str, tools: tuple[Tool, ...]) -> list[str]:
    """Raises if a text is no list of valid calls; names of the functions."""
    found = finite(text)
    assert set(found) == {"tool_calls"}
    by_name = {tool.name: tool for tool in tools}
    for call in found["tool_calls"]:
        assert list(call) == ["name", "arguments"]
        parameters = by_name[call["name"]].parameters
        assert validator(parameters)(call["arguments"]) if parameters else call["arguments"] == {}
    return [call["name"] for call in found["tool_calls"]]


def test_required_calls_are_valid(codec: Codec, batcher: Batcher) -> None:
    check_shape(ToolCalls(TOOLS, True), codec)
    told = answers(batcher, [ToolCalls(TOOLS, True)] * 60, temperature=1.0, max_tokens=250)
    ended = [check_calls(one.text, TOOLS) for one in told if one.finish == "tool_calls"]
    assert len(ended) > 10
    assert {name for names in ended for name in names} == {"get_weather", "get", "get_now"}
    assert max(map(len, ended)) > 1

    alone = answers(batcher, [ToolCalls(TOOLS, True, "get_weather", False)] * 10, temperature=1.0, max_tokens=250)
    assert [check_calls(one.text, TOOLS) for one in alone] == [["get_weather"]] * 10
    assert check_calls(answers(batcher, [ToolCalls((NOW,), True, None, False)])[0].text, TOOLS) == ["get_now"]
    with pytest.raises(SchemaError, match="nobody"):
        check_shape(ToolCalls(TOOLS, True, "nobody"), codec)


def test_free_text_that_begins_as_calls_becomes_valid_calls(codec: Codec) -> None:
    """A model that insists on a text is led into the grammar of calls at whatever place the text turns into one."""
    rng = random.Random(5)
    shape = ToolCalls(TOOLS, False)
    begun = 0
    for _ in range(120):
        space = rng.choice(["", "", " ", "\n", "\n \t"])
        insisted = (
            space + rng.choice(["{", "{ "]) + OPENING[1:] + rng.choice([":[", ": [", ' : "x"', "}", ",", "Z"])
        ).encode()
        text = speaker(shape, codec, {codec.eos}, 8192)
        while len(text.tokens) < 200 and (need := text.need()) is not None:
            written = b"".join(codec.token_bytes(token) for token in text.tokens)
            allowed = np.flatnonzero(need.forbidden == 0) if need.ids is None else need.ids
            rest = insisted[len(written) :] if insisted.startswith(written) else b""
            ids = allowed.tolist()
            fitting = [i for i in ids if rest.startswith(codec.all_bytes[i] or b"none")] if rest else []
            text.take(rng.choice(fitting or ids))
        ended = text.need() is None
        said = codec.decode(text.tokens)
        assert said.lstrip().replace(" ", "", 1).startswith(OPENING)
        if ended:
            begun += 1
            assert text.ending == "tool_calls"
            check_calls(said, TOOLS)
    assert begun > 40


def test_free_text_stays_free(codec: Codec, batcher: Batcher) -> None:
    told = answers(batcher, [ToolCalls(TOOLS, False)] * 20, temperature=1.0, max_tokens=30)
    assert {one.finish for one in told} <= {"stop", "length"}
    for said in ("Olá", "{", '{"tool', "[1]", '{"tool_call":1}', 'x{"tool_calls":3}'):
        text = speaker(ToolCalls(TOOLS, False), codec, {codec.eos}, 8192)
        for token in codec.answer_text(said):
            need = text.need()
            assert need is not None
            assert need.forbidden is not None
            assert need.forbidden[token] == 0
            text.take(token)
        text.need()
        text.take(codec.eos)
        assert (text.need(), text.ending, codec.decode(text.tokens)) == (None, "stop", said)


# -- sampling ---------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_what_was_allowed() -> None:
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32) * 3
    ids = np.array([3, 7, 20, 49])
    bias = {7: 2.5, 20: -1.0, 99999: 5.0}
    sampler = Sampler(Sampling(temperature=0.3, logit_bias=bias, top_logprobs=3, seed=1), 50)
    chosen = sampler.choose(scores[ids], ids)
    shifted = scores[ids].astype(np.float64) + np.array([0, 2.5, -1.0, 0])
    expected = shifted - np.log(np.exp(shifted).sum())
    assert chosen.logprob == pytest.approx(expected[list(ids).index(chosen.token)], abs=1e-5)
    best = np.argsort(-expected)[:3]
    assert [token for token, _ in chosen.top] == ids[best].tolist()
    assert [logprob for _, logprob in chosen.top] == pytest.approx(expected[best], abs=1e-5)


def test_draws_follow_temperature_and_top_p() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))

    def shares(**settings: Any) -> np.ndarray:
        sampler = Sampler(Sampling(seed=3, **settings), 4)
        drawn = [sampler.choose(scores, None).token for _ in range(6000)]
        return np.bincount(drawn, minlength=4) / 6000

    # Six standard deviations of a share of 6000 draws are 0.04 at most.
    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)
    colder = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert shares(temperature=0.5) == pytest.approx(colder / colder.sum(), abs=0.04)
    assert shares(top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert shares(top_p=0.0).tolist() == [1, 0, 0, 0]
    assert shares(temperature=0.0).tolist() == shares(temperature=1e-30).tolist() == [1, 0, 0, 0]


def test_penalties_count_what_was_chosen() -> None:
    sampler = Sampler(Sampling(temperature=0, presence_penalty=0.25, frequency_penalty=0.5, top_logprobs=0), 2)
    scores = np.array([1.0, 0.0], dtype=np.float32)
    # 1.0, then 1 - 0.75 = 0.25 and 1 - 1.25 = -0.25 against 0.
    assert [sampler.choose(scores, None).token for _ in range(3)] == [0, 0, 1]


def test_scores_that_are_no_numbers_are_an_error() -> None:
    for bad in (np.array([np.nan, 1.0]), np.array([-np.inf, -np.inf]), np.array([np.inf, 1.0])):
        with pytest.raises(ModelError, match="not finite"):
            Sampler(Sampling(), 2).choose(bad.astype(np.float32), None)


# -- text -------------------------------------------------------------------------------------


def test_text_never_shows_a_stop_text_nor_half_a_character() -> None:
    rng = random.Random(1)
    stopped = 0
    for _ in range(3000):
        text = "".join(rng.choice("abé日😀\n") for _ in range(rng.randint(0, 14)))
        stops = tuple("".join(rng.choice("abé😀") for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(0, 3)))
        raw, pieces = text.encode(), []
        while raw:
            size = rng.randint(1, 4)
            pieces.append(raw[:size])
            raw = raw[size:]
        stream = TextStream(stops)
        shown = ""
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        first = min(ends, default=None)
        cut = text if first is None else min(
            (text[: first - len(stop)] for stop in stops if text[:first].endswith(stop)), key=len
        )  # fmt: skip
        for n, piece in enumerate(pieces):
            stream.feed(piece, Token(n, piece, 0.0, ()))
            new, _ = stream.take()
            shown += new
            assert cut.startswith(shown)
        shown += stream.end(own_end=True)[0]
        assert shown == cut
        assert stream.stopped == (first is not None)
        stopped += stream.stopped
    assert stopped > 500


def test_tokens_come_with_their_text_and_once() -> None:
    stream = TextStream(("STOP",), lead=" ", trail=" ")
    pieces = [b" Ol", b"\xc3", b"\xa1 ", b"ST", b"A ", b" "]
    seen: list[tuple[str, list[int]]] = []
    for n, piece in enumerate(pieces):
        stream.feed(piece, Token(n, piece, 0.0, ()))
        text, tokens = stream.take()
        seen.append((text, [token.id for token in tokens]))
    text, tokens = stream.end(own_end=True)
    seen.append((text, [token.id for token in tokens]))
    assert "".join(text for text, _ in seen) == "Olá STA "
    assert [i for _, ids in seen for i in ids] == [0, 1, 2, 3, 4, 5]
    assert seen[3][0] == " "  # "ST" may be the beginning of a stop text


def test_a_pathological_stop_text_costs_no_time() -> None:
    stream = TextStream(("a" * 20_000 + "b",))
    for _ in range(4000):
        stream.feed(b"aaaaaaaaaa")
        assert stream.take()[0].strip("a") == ""
    assert stream.end(own_end=False)[0] != ""


# -- generation -------------------------------------------------------------------------------


def test_limits_count_forced_tokens(codec: Codec, batcher: Batcher) -> None:
    schema = {"type": "object", "properties": {"polarity": {"enum": ["good", "bad"]}}, "required": ["polarity"]}
    whole = answers(batcher, [JsonSchema(schema)], temperature=0, top_logprobs=0)[0]
    number = len(whole.tokens)
    assert whole.finish == "stop"
    for limit in range(1, number + 2):
        generation, told = asked(
            [0, 3, 40], JsonSchema(schema), Sampling(temperature=0, max_tokens=limit, top_logprobs=0)
        )
        batcher.submit(generation)
        while batcher.step():
            pass
        assert told.finish == ("stop" if limit >= number else "length")
        assert len(told.tokens) == generation.completion_tokens == min(limit, number)
        assert whole.text.startswith(told.text)
    forced = [token for token in whole.tokens if token.logprob == 0.0]
    assert 0 < len(forced) < number


def test_stop_texts_end_answers_in_the_middle(codec: Codec, batcher: Batcher) -> None:
    text = answers(batcher, [Text()], temperature=0, max_tokens=60)[0].text
    assert len(text) > 40
    stop = text[20:23]
    told = answers(batcher, [Text()], temperature=0, max_tokens=60, stop=(stop, "never said"), top_logprobs=1)[0]
    assert (told.text, told.finish) == (text[: text.index(stop)], "stop")
    assert b"".join(token.text for token in told.tokens).decode(errors="replace") in told.text
