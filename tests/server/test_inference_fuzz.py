"""Requests of any shape to the inference endpoints: an answer or the contract's refusal, never a fault of ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference_material import LABELS, MODEL, SAY, STRICT, TOOL

from afina.server.batches import BatchBody
from afina.server.chat_body import ChatBody
from afina.server.completions import CompletionBody
from afina.server.embeddings import EmbeddingBody
from afina.server.response_body import ResponseBody

if TYPE_CHECKING:
    from conftest import Api

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.sampled_from([2**63, -(2**64), 1e308, 0.5, "", "a", "auto", "text", "none", "f", "\x00", "ç🙂", "user", MODEL])
)
KEYS = st.sampled_from(
    ["type", "role", "content", "text", "name", "function", "tools", "mode", "json_schema", "schema", "strict", "id",
     "arguments", "parameters", "format", "include_usage", "output", "call_id", "anchor", "seconds", "properties"]
)  # fmt: skip
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
SMALL = {"max_completion_tokens": 3, "max_tokens": 3, "max_output_tokens": 3}
GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (
        ChatBody,
        {"model": MODEL, "messages": SAY, "max_completion_tokens": 3, "tools": [TOOL], "response_format": STRICT},
    ),
    "/v1/completions": (CompletionBody, {"model": MODEL, "prompt": "a", "max_tokens": 3, "n": 1}),
    "/v1/embeddings": (EmbeddingBody, {"model": MODEL, "input": "a"}),
    "/v1/responses": (ResponseBody, {"model": MODEL, "input": "a", "max_output_tokens": 3, "tools": []}),
    "/v1/batches": (BatchBody, {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}),
}


@pytest.mark.parametrize("url", GOOD)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_body_is_answered_or_refused(lite: Api, url: str, data: st.DataObject) -> None:
    kind, good = GOOD[url]
    fields = st.sampled_from(sorted(kind.model_fields))
    changed = data.draw(st.dictionaries(fields, JSON | st.just(LABELS), min_size=1, max_size=3))
    body = {**good, **changed}
    for key in SMALL.keys() & changed.keys():
        if isinstance(changed[key], int) and changed[key] > 3:
            body[key] = 3  # valid, but slow
    if isinstance(body.get("n"), int):
        body["n"] = min(body["n"], 2)
    answer = lite.http.post(url, json=body)
    assert answer.status_code in (200, 400, 404), (answer.status_code, body)
    if answer.status_code == 200 and not body.get("stream"):
        json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    elif answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.json()["error"]["message"]
