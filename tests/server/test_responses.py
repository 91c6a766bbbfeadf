"""POST /v1/responses with the official client: create, parse, stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import pytest
from inference_material import LABELS, MODEL, client, refused
from openai.types.responses import Response
from pydantic import BaseModel

if TYPE_CHECKING:
    from conftest import Api


class Labels(BaseModel):
    polaridade: Literal["positivo", "negativo"]
    certa: bool


TOOL = {"type": "function", "name": "rotular", "description": "Rotula", "parameters": LABELS, "strict": True}
FORMAT = {"format": {"type": "json_schema", "name": "labels", "strict": True, "schema": LABELS}}


def respond(api: Api, **asked: Any) -> Any:
    body = {"model": MODEL, "input": "Diga bom dia.", "temperature": 0, "max_output_tokens": 8, **asked}
    return api.http.post("/v1/responses", json=body)


def events_of(text: str) -> list[Any]:
    found = []
    for part in filter(None, text.split("\n\n")):
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_the_response_has_the_contracts_fields(lite: Api) -> None:
    body = respond(lite, max_output_tokens=None, metadata={"a": "b"}, instructions="Seja breve.", text=FORMAT).json()
    Response.model_validate(body)
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["model"], body["store"]) == ("response", "completed", MODEL, False)
    assert (body["metadata"], body["instructions"], body["error"]) == ({"a": "b"}, "Seja breve.", None)
    assert body["text"]["format"]["schema"] == LABELS
    (item,) = body["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    (part,) = item["content"]
    assert part == {"type": "output_text", "annotations": [], "logprobs": [], "text": part["text"]}
    assert list(json.loads(part["text"])) == list(LABELS["properties"])
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_cut_response_is_incomplete(lite: Api) -> None:
    body = respond(lite, text=FORMAT, max_output_tokens=3).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    assert body["completed_at"] is None


def test_input_items_are_the_same_conversation_as_in_chat(lite: Api) -> None:
    said = [
        {"role": "user", "content": "Oi"},
        {"role": "assistant", "content": "Olá"},
        {"role": "user", "content": "E?"},
    ]
    parts = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Oi"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Olá", "annotations": []}]},
        {"role": "user", "content": "E?"},
    ]  # fmt: skip
    texts = [respond(lite, input=items, instructions="Seja breve.").json()["output"] for items in (said, parts)]
    messages = [{"role": "system", "content": "Seja breve."}, *said]
    asked = {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": messages}
    chat = lite.http.post("/v1/chat/completions", json=asked)
    expected = chat.json()["choices"][0]["message"]["content"]
    assert [output[0]["content"][0]["text"] for output in texts] == [expected] * 2


def test_the_sdk_creates_and_parses(lite: Api) -> None:
    sdk = client(lite)
    done = sdk.responses.create(model=MODEL, input="Diga bom dia.", max_output_tokens=8)
    assert isinstance(done.output_text, str)
    parsed = sdk.responses.parse(model=MODEL, input="Diga bom dia.", text_format=Labels)
    assert isinstance(parsed.output_parsed, Labels)


def test_the_sdk_streams_typed_events(lite: Api) -> None:
    with client(lite).responses.stream(model=MODEL, input="Diga bom dia.", text_format=Labels) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Labels)
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip


def test_streamed_text_is_the_whole_text_and_no_done_follows(lite: Api) -> None:
    answer = respond(lite, stream=True, include=["message.output_text.logprobs"], top_logprobs=2)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(answer.text)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    whole = respond(lite, include=["message.output_text.logprobs"], top_logprobs=2).json()["output"][0]["content"][0]
    assert "".join(event["delta"] for event in deltas) == whole["text"]
    assert [one["token"] for event in deltas for one in event["logprobs"]] == [o["token"] for o in whole["logprobs"]]
    assert all(len(one["top_logprobs"]) == 2 for one in whole["logprobs"])
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == whole["text"]


def test_functions_are_called_and_answered(lite: Api) -> None:
    asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 200}
    body = respond(lite, **asked).json()
    Response.model_validate(body)
    (call,) = body["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "rotular", "completed")
    assert set(json.loads(call["arguments"])) == set(LABELS["properties"])
    after = [
        {"role": "user", "content": "Oi"},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "ok"},
    ]
    assert respond(lite, input=after, tools=[TOOL], tool_choice="none").json()["output"][0]["type"] == "message"
    events = events_of(respond(lite, stream=True, **asked).text)
    kinds = [event["type"] for event in events]
    assert kinds[2:4] == ["response.output_item.added", "response.function_call_arguments.delta"]
    assert kinds[-3:] == [
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call["arguments"]


def test_a_function_is_strict_when_it_can_be(lite: Api) -> None:
    loose = {
        "type": "function",
        "name": "g",
        "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}},
    }
    body = respond(lite, tools=[{**TOOL, "strict": None}, loose]).json()
    assert [tool["strict"] for tool in body["tools"]] == [True, False]
    message = refused(
        respond(lite, tools=[{**loose, "strict": True}]), "tools[0].parameters", "invalid_function_parameters"
    )
    assert message.startswith("Invalid schema for function 'g': In context=()")


BAD: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": []}, "input", "empty_array"),
    ({"input": 3}, "input", "invalid_type"),
    ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type", "unsupported_parameter"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
        "unsupported_parameter",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", None),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input", None),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
    ({"reasoning": {"effort": "high"}}, "reasoning", "unsupported_parameter"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", None),
    ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type", "unsupported_parameter"),
    ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"text": {"format": {"type": "json_object"}}}, "input", None),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"input": "palavra " * 9000}, "input", "context_length_exceeded"),
    ({"messages": []}, "messages", "unknown_parameter"),
    ({"model": "gpt-9"}, None, "model_not_found"),
]


def test_bad_requests_are_refused_by_field_and_code(lite: Api) -> None:
    for fields, param, code in BAD:
        refused(respond(lite, **fields), param, code, 404 if code == "model_not_found" else 400)
    assert len(BAD) == 28


@pytest.mark.parametrize("truncation", ["auto", "disabled"])
def test_truncation_never_cuts_in_silence(lite: Api, truncation: str) -> None:
    assert respond(lite, truncation=truncation).json()["truncation"] == truncation
    refused(respond(lite, truncation=truncation, input="palavra " * 9000), "input", "context_length_exceeded")
