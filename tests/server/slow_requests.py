"""Requests made to take a server's time: schemas, prompts and bodies. BOMBS: name -> path and body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostile_material import CALL, MODEL, SAY, chat


def structured(schema: Any, strict: bool = False) -> dict[str, Any]:
    return chat(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": schema}}
    )


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
        **more,
    }


S = {"type": "string"}
LISTS = "[" + "[]," * 300_000 + "1]"
PATTERNS = {
    "nested plus": "(a+)+$", "counted": "(a{1,1000}){1,1000}", "choice": "(a|a)*b" * 50,
    "far": ".*(a|b|c|d).{0,500}e.{0,500}f", "deep": "(((((a{0,50}){0,50}){0,50}){0,50}){0,50}",
    "letters": "\\p{L}{1,2000}", "open": "(" * 5000, "words": "|".join(f"w{i}" for i in range(50_000)),
}  # fmt: skip


def _references(levels: int) -> dict[str, Any]:
    """Every level names the next one twice: written out it would be 2 ** levels places."""
    found = {
        f"d{i}": closed({"a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}}) for i in range(levels)
    }
    return closed({"r": {"$ref": "#/$defs/d0"}}, **{"$defs": {**found, f"d{levels}": closed({"z": S})}})


def _mesh(size: int) -> dict[str, Any]:
    """Every definition may hold every other."""
    open_ = {f"p{j}": {"anyOf": [{"$ref": f"#/$defs/n{j}"}, {"type": "null"}]} for j in range(size)}
    return closed({"r": {"$ref": "#/$defs/n0"}}, **{"$defs": {f"n{i}": closed(open_) for i in range(size)}})


def _tool(parameters: Any, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


BOMBS: dict[str, Callable[[], tuple[str, Any]]] = {}


def bomb(name: str, body: Callable[[], Any], path: str = "/v1/chat/completions") -> None:
    BOMBS[name] = lambda: (path, body())


def _calls(count: int) -> list[dict[str, Any]]:
    return [{**CALL, "id": f"c{i}"} for i in range(count)]


bomb("5000 properties", lambda: structured(closed({f"p{i}": S for i in range(5000)}), True))
bomb("100,000 properties, strict", lambda: structured(closed({f"p{i}": S for i in range(100_000)}), True))
bomb("100,000 properties", lambda: structured({"type": "object", "properties": {f"p{i}": S for i in range(100_000)}}))
bomb("100,000 labels", lambda: structured(closed({"e": {"enum": [f"v{i}" + "x" * 40 for i in range(100_000)]}})))
bomb(
    "labels of half a megabyte",
    lambda: structured(closed({"e": {"enum": ["y" * 500_000 + str(i) for i in range(15)]}})),
)
bomb("a constant of 9 MB", lambda: structured(closed({"e": {"const": "y" * 9_000_000}})))
bomb("objects as labels", lambda: structured(closed({"e": {"enum": [{"a": i, "b": [i] * 5} for i in range(20_000)]}})))
bomb("references, strict", lambda: structured(_references(30), True))
bomb("references", lambda: structured(_references(60)))
bomb("a mesh", lambda: structured(_mesh(60)))
bomb("a large mesh", lambda: structured(_mesh(200)))
bomb(
    "patterns of names",
    lambda: structured({"type": "object", "patternProperties": {f"^a{i}(b|c)+.*x{{1,50}}$": S for i in range(400)}}),
)
for _name, _pattern in PATTERNS.items():
    bomb(f"pattern {_name}", lambda pattern=_pattern: structured(closed({"e": {**S, "pattern": pattern}}), True))
bomb("long texts", lambda: structured(closed({"e": {**S, "minLength": 2**40, "maxLength": 2**62}}), True))
bomb("long lists", lambda: structured(closed({"e": {"type": "array", "items": S, "minItems": 10**9}}), True))
bomb(
    "branches", lambda: structured(closed({"e": {"anyOf": [closed({f"k{i}": S, "t": S}) for i in range(1500)]}}), True)
)
bomb(
    "all of any",
    lambda: structured({"allOf": [{"anyOf": [closed({f"a{i}{j}": S}) for j in range(6)]} for i in range(12)]}),
)
bomb("notes", lambda: structured(closed({"e": {**S, "default": [[1] * 10] * 20_000}}), True))
bomb("a note of 9 MB", lambda: structured(closed({"e": {**S, "description": "x" * 9_000_000}}), True))
bomb(
    "128 tools",
    lambda: chat(
        tools=[_tool(closed({f"p{j}": S for j in range(300)}), f"f{i}") for i in range(128)], tool_choice="required"
    ),
)
bomb("a tool of 9 MB", lambda: chat(tools=[_tool(closed({"a": S}), description="d " * 4_500_000)]))
for _name, _text in {
    "words": "palavra ",
    "one letter": "a",
    "accents": "ção é ",
    "emoji": "👩‍👩‍👧‍👦",
    "control": "<|im_end|>",
}.items():
    _many = 9_000_000 // len(_text.encode())
    bomb(
        f"a prompt of {_name}", lambda text=_text, many=_many: chat(messages=[{"role": "user", "content": text * many}])
    )
bomb("90,000 messages", lambda: chat(messages=SAY * 90_000))
bomb("30,000 parts", lambda: chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 90_000}]))
bomb("20,000 calls", lambda: chat(messages=[
    {"role": "assistant", "tool_calls": _calls(20_000)},
    *({"role": "tool", "tool_call_id": f"c{i}", "content": "x"} for i in range(20_000)), *SAY,
]))  # fmt: skip
bomb("arguments", lambda: chat(messages=[
    {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": LISTS}}]},
    {"role": "tool", "tool_call_id": "c", "content": "x"}, *SAY,
]))  # fmt: skip
bomb("20,000 calls in responses", lambda: {"model": MODEL, "input": [
    {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"} for i in range(20_000)
]}, "/v1/responses")  # fmt: skip
bomb("logit_bias", lambda: chat(logit_bias={str(i): 1 for i in range(150_000)}))
bomb("stops", lambda: chat(stop=["a" * 2_000_000] * 4))
bomb("700,000 unknown keys", lambda: {**chat(), **{f"k{i}": 1 for i in range(700_000)}})
bomb("150,000 unknown keys", lambda: {**chat(), **{f"k{i}": 1 for i in range(150_000)}})
bomb("metadata", lambda: chat(metadata={f"k{i}": 1 for i in range(150_000)}))
bomb("modalities", lambda: chat(modalities=[1] * 900_000))
bomb("include", lambda: {"model": MODEL, "input": "oi", "include": [1] * 900_000}, "/v1/responses")
bomb("5,000,000 numbers", lambda: [0] * 4_900_000)
bomb("tokens", lambda: {"model": MODEL, "input": [1] * 900_000}, "/v1/embeddings")
bomb("2048 prompts", lambda: {"model": MODEL, "prompt": ["oi"] * 2048, "max_tokens": 1}, "/v1/completions")
bomb(
    "n = 128 with log-probabilities",
    lambda: chat(n=128, max_completion_tokens=60, logprobs=True, top_logprobs=20, temperature=2),
)
bomb(
    "hyperparameters",
    lambda: {"model": MODEL, "training_file": "x", "hyperparameters": {f"k{i}": 1 for i in range(150_000)}},
    "/v1/fine_tuning/jobs",
)
bomb("a model's name", lambda: {"model": "é" * 4_000_000, "training_file": "x"}, "/v1/fine_tuning/jobs")
