"""Fine-tuning files: every rule of the API, and nothing but problems from malformed lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afina.core.chat import Completion, Conversation, Preference
from afina.core.errors import DataError
from afina.data import training_file
from afina.data.training_file import Problem, check, job_error, read
from afina.data.training_line import Format, LineError, parse_example, parse_object

USER = {"role": "user", "content": "Tudo bem?"}
ASSISTANT = {"role": "assistant", "content": "Tudo."}
CHAT = {"messages": [USER, ASSISTANT]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "clima", "arguments": '{"cidade":"Recife"}'}}
TOOL = {"type": "function", "function": {"name": "clima", "parameters": {"type": "object", "properties": {}}}}
PREFERENCE = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [ASSISTANT],
    "non_preferred_output": [{"role": "assistant", "content": "Não."}],
}
COMPLETION = {"prompt": "2 + 2 =", "completion": " 4"}


def write(path: Path, *lines: Any, copies: int = 1) -> Path:
    """A file of these lines: bytes as they are, other values as JSON."""
    raw = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(raw * copies) + b"\n")
    return path


def calling(arguments: Any) -> dict[str, Any]:
    return {**CALL, "function": {"name": "f", "arguments": arguments}}


def problem(path: Path, line: Any) -> str:
    """What is wrong with `line`, the third of a file that is good otherwise."""
    found = check(write(path, CHAT, CHAT, line, CHAT))
    assert [p.line for p in found.problems] == [3], found
    return found.problems[0].message


# -- good files -------------------------------------------------------------------------------------


def test_good_chat_file(tmp_path: Path) -> None:
    lines = [
        CHAT,
        {"messages": [{"role": "developer", "content": "Seja breve."}, USER, ASSISTANT]},
        {"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1, "name": "ana"}]},
        {
            "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}],
            "tools": [TOOL],
            "parallel_tool_calls": False,
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "32 graus"},
                ASSISTANT,
            ],
            "tools": [TOOL],
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                ASSISTANT,
            ]
        },
        {"messages": [USER, {**ASSISTANT, "refusal": None, "annotations": [], "audio": None}]},
        {
            "messages": [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}],
            "functions": [{"name": "f"}],
        },
    ]
    path = write(tmp_path / "good.jsonl", *lines, copies=2)
    checked = check(path)
    assert (checked.format, checked.num_examples, checked.problems) == ("fine-tune-chat", 16, [])
    assert job_error(checked) is None
    examples = list(read(path))
    assert len(examples) == 16
    assert all(isinstance(example, Conversation) for example in examples)
    _, developer, weights, call, tool, parts, _, function = examples[:8]
    assert developer.messages[0].role == "system"
    assert [m.weight for m in weights.messages] == [1, 0, 1, 1]
    assert call.messages[1].tool_calls[0].name == "clima"
    assert call.messages[1].content is None
    assert call.tools[0].name == "clima"
    assert tool.messages[2].tool_call_id == "call_1"
    assert parts.messages[0].content == "ab"
    assert function.messages[1].tool_calls[0].name == "f"


def test_good_preference_and_completion_files(tmp_path: Path) -> None:
    path = write(tmp_path / "dpo.jsonl", PREFERENCE, copies=10)
    assert job_error(check(path, "dpo")) is None
    first = next(iter(read(path)))
    assert isinstance(first, Preference)
    assert (first.preferred.content, first.non_preferred.content) == ("Tudo.", "Não.")
    path = write(tmp_path / "completion.jsonl", COMPLETION, copies=10)
    assert job_error(check(path, completion_model=True)) is None
    assert list(read(path)) == [Completion("2 + 2 =", " 4")] * 10


def test_byte_order_mark_windows_lines_and_blank_end(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(CHAT).encode() + b"\r\n" + json.dumps(CHAT).encode() + b"\r\n\r\n \n\n"
    )
    checked = check(path)
    assert (checked.num_examples, checked.problems) == (2, [])
    assert len(list(read(path))) == 2


# -- jobs' errors, to the letter ----------------------------------------------------------------------


def test_too_few_examples(tmp_path: Path) -> None:
    checked = check(write(tmp_path / "few.jsonl", CHAT, copies=7))
    assert job_error(checked) == {
        "code": "invalid_n_examples",
        "param": "training_file",
        "message": "Training file has 7 example(s), but must have at least 10 examples",
    }
    assert job_error(checked, "validation_file") is None


def test_no_examples_to_validate_with(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"\n\n")
    error = job_error(check(path), "validation_file")
    assert error is not None
    assert (error["code"], error["param"]) == ("invalid_n_examples", "validation_file")


def test_missing_role_is_told_as_the_service_tells_it(tmp_path: Path) -> None:
    lines = [CHAT] * 99 + [{"messages": [USER, {"content": "Tudo."}]}]
    checked = check(write(tmp_path / "role.jsonl", *lines))
    assert job_error(checked) == {
        "code": "invalid_training_file",
        "param": "training_file",
        "message": "The job failed due to an invalid training file. Invalid file format. "
        "Example 100, message 2 Discriminator 'role' is missing in value",
    }
    error = job_error(checked, "validation_file")
    assert error is not None
    assert error["code"] == "invalid_validation_file"
    assert error["message"].startswith("The job failed due to an invalid validation file. ")


def test_format_that_is_not_the_methods(tmp_path: Path) -> None:
    path = write(tmp_path / "file-abc", CHAT, copies=10)
    checked = check(path, "dpo")
    assert checked.format == "fine-tune-chat"
    error = job_error(checked)
    assert error is not None
    assert error["code"] == "invalid_training_file"
    assert error["message"].endswith(
        "Input file file-abc is in the fine-tune-chat format, but the specified fine-tuning job is not using "
        "'supervised' as the training method (provided method=dpo)."
    )
    for path, method, completion_model, words in (
        (write(tmp_path / "file-dpo", PREFERENCE, copies=10), "supervised", False, "not using 'dpo'"),
        (write(tmp_path / "file-old", COMPLETION, copies=10), "supervised", False, "is a chat model"),
        (write(tmp_path / "file-chat", CHAT, copies=10), "supervised", True, "is a completions model"),
    ):
        error = job_error(check(path, method, completion_model=completion_model))
        assert error is not None
        assert words in error["message"]


# -- bad lines ----------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, str]] = {
    "text": (b"hello", "is no valid JSON"),
    "half a line": (b'{"messages": [', "is no valid JSON"),
    "two objects": (b"{} {}", "is no valid JSON"),
    "a list": ([CHAT], "is a list of 1, expected a JSON object"),
    "null": (None, "is null"),
    "NaN": (b'{"messages": NaN}', "NaN is no JSON number"),
    "too large a number": (b'{"messages": 1e999}', "1e999 is too large"),
    "many digits": (b'{"messages": ' + b"9" * 5000 + b"}", "is no usable JSON"),
    "a key twice": (b'{"messages": [], "messages": []}', "'messages' stands twice"),
    "no UTF-8": (b'{"messages": "\xff"}', "is no UTF-8 (byte 15)"),
    "UTF-16": ("{}".encode("utf-16"), "is UTF-16"),
    "half a character": (b'{"messages": ["\\ud800"]}', "half a character"),
    "deep": (b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}", "more than 100 levels"),
    "very deep": (b"[" * 100_000, "is nested too deeply"),
    "no messages": ({"message": []}, "has the unknown key 'message'"),
    "empty object": ({}, "'messages' is missing"),
    "no message": ({"messages": []}, "'messages' is an empty list"),
    "messages are text": ({"messages": "hi"}, "'messages' is text"),
    "message is text": ({"messages": ["hi", ASSISTANT]}, "message 1 is text, expected an object"),
    "unknown key": ({**CHAT, "metadata": {}}, "has the unknown key 'metadata'"),
    "unknown message key": ({"messages": [{**USER, "mood": 1}, ASSISTANT]}, "message 1 has the unknown key 'mood'"),
    "unknown role": ({"messages": [{"role": "bot", "content": "a"}, ASSISTANT]}, "'role' is 'bot', expected one of"),
    "role is a list": ({"messages": [{"role": [], "content": "a"}, ASSISTANT]}, "message 1 'role' is []"),
    "no assistant": ({"messages": [USER]}, "has no message of the assistant"),
    "user last": ({"messages": [ASSISTANT, USER]}, "ends with a message of the role 'user'"),
    "no content": ({"messages": [{"role": "user"}, ASSISTANT]}, "message 1 'content' is missing"),
    "null content": ({"messages": [USER, {"role": "assistant", "content": None}]}, "allowed only beside tool_calls"),
    "number as content": ({"messages": [{"role": "user", "content": 3}, ASSISTANT]}, "'content' is a number"),
    "no parts": ({"messages": [{"role": "user", "content": []}, ASSISTANT]}, "'content' is an empty list"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ASSISTANT]},
        "part 1 has the type 'image_url'; only 'text' can be learned",
    ),
    "weight of a user": ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "only messages of the assistant"),
    "weight 2": ({"messages": [USER, {**ASSISTANT, "weight": 2}]}, "'weight' is 2, expected the integer 0 or 1"),
    "weight true": ({"messages": [USER, {**ASSISTANT, "weight": True}]}, "'weight' is true"),
    "weight 1.0": ({"messages": [USER, {**ASSISTANT, "weight": 1.0}]}, "'weight' is 1.0"),
    "name is a number": ({"messages": [{**USER, "name": 1}, ASSISTANT]}, "'name' is a number"),
    "no call id": ({"messages": [USER, {"role": "tool", "content": "a"}, ASSISTANT]}, "'tool_call_id' is missing"),
    "no tool calls": ({"messages": [USER, {"role": "assistant", "tool_calls": []}]}, "'tool_calls' is an empty list"),
    "call without type": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{k: v for k, v in CALL.items() if k != "type"}]}]},
        "tool call 1 'type' is null",
    ),
    "arguments are no JSON": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [calling("{")]}]},
        "'arguments' is no valid JSON",
    ),
    "arguments are an object": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [calling({})]}]},
        "'arguments' is an object, expected JSON text",
    ),
    "tool without a name": ({**CHAT, "tools": [{"type": "function", "function": {}}]}, "tools[0] 'name' is missing"),
    "tool name": (
        {**CHAT, "tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0] 'name' is 'a b', expected 1 to 64",
    ),
    "tools are an object": ({**CHAT, "tools": {}}, "tools is an object, expected a list"),
    "parallel_tool_calls": ({**CHAT, "parallel_tool_calls": "no"}, "'parallel_tool_calls' is text"),
    "refusal": ({"messages": [USER, {**ASSISTANT, "refusal": "No."}]}, "'refusal' is not empty"),
    "other format": (PREFERENCE, "has the unknown key 'input'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_line(name: str, tmp_path: Path) -> None:
    line, words = BAD[name]
    assert words in problem(tmp_path / "bad.jsonl", line)


BAD_PREFERENCE: dict[str, tuple[Any, str]] = {
    "no input": ({**PREFERENCE, "input": None}, "'input' is null"),
    "input without messages": ({**PREFERENCE, "input": {}}, "input 'messages' is missing"),
    "two turns": ({**PREFERENCE, "input": {"messages": [USER, ASSISTANT, USER]}}, "only one turn"),
    "two answers": ({**PREFERENCE, "preferred_output": [ASSISTANT, ASSISTANT]}, "'preferred_output' is a list of 2"),
    "no answer": ({**PREFERENCE, "non_preferred_output": []}, "'non_preferred_output' is an empty list"),
    "answer of the user": ({**PREFERENCE, "preferred_output": [USER]}, "role 'user', expected the assistant's"),
    "calls": (
        {**PREFERENCE, "preferred_output": [{"role": "assistant", "tool_calls": [CALL]}]}, "only text is supported"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PREFERENCE)
def test_bad_preference_line(name: str, tmp_path: Path) -> None:
    line, words = BAD_PREFERENCE[name]
    found = check(write(tmp_path / "bad.jsonl", PREFERENCE, line), "dpo")
    assert [p.line for p in found.problems] == [2]
    assert words in found.problems[0].message


def test_bad_completion_line(tmp_path: Path) -> None:
    found = check(write(tmp_path / "bad.jsonl", COMPLETION, {"prompt": "a"}), completion_model=True)
    assert found.problems == [Problem(2, "'completion' is missing, expected text")]


def test_blank_line_inside(tmp_path: Path) -> None:
    found = check(write(tmp_path / "blank.jsonl", CHAT, b"", b"  ", CHAT))
    assert [p.line for p in found.problems] == [2]
    assert "is blank" in found.problems[0].message
    assert found.num_examples == 2


def test_huge_line_is_skipped_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_file, "MAX_LINE_BYTES", 1000)
    huge = {"messages": [{"role": "user", "content": "x" * 5000}, ASSISTANT]}
    path = write(tmp_path / "huge.jsonl", CHAT, huge, CHAT)
    found = check(path)
    assert found.problems == [Problem(2, "is longer than 1000 bytes")]
    assert found.num_examples == 3
    with pytest.raises(DataError, match=r"huge\.jsonl:2: is longer"):
        list(read(path))


def test_problems_are_counted_beyond_those_kept(tmp_path: Path) -> None:
    found = check(write(tmp_path / "many.jsonl", CHAT, *[b"no"] * 70), most_problems=5)
    assert (len(found.problems), found.num_bad_lines, found.num_examples) == (5, 70, 71)


def test_read_names_line_and_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", CHAT, {"messages": [USER]})
    with pytest.raises(DataError, match=r"bad\.jsonl:2: has no message of the assistant"):
        list(read(path))


# -- anything at all ------------------------------------------------------------------------------------

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "tool", "system", "text", "function", "{}"])
)  # fmt: skip
KEYS = st.sampled_from(
    "messages role content name weight tool_calls tools function function_call functions arguments id type text "  # noqa: SIM905
    "input preferred_output non_preferred_output prompt completion tool_call_id parameters".split()
) | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)
LIKE_MESSAGES = st.dictionaries(KEYS, VALUES, max_size=4).map(lambda extra: {**USER, **extra})
LIKE_LINES = st.fixed_dictionaries(
    {"messages": st.lists(LIKE_MESSAGES | st.just(ASSISTANT) | VALUES, max_size=4)}, optional={"tools": VALUES}
)


def _mangled(draw: st.DrawFn) -> bytes:
    """A good line with a few bytes changed, cut or put in."""
    raw = bytearray(json.dumps(draw(st.sampled_from([CHAT, PREFERENCE, COMPLETION]))).encode())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(raw)))
        raw[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


ANYTHING = (
    st.binary(max_size=60)
    | (VALUES | LIKE_LINES).map(lambda value: json.dumps(value).encode())  # NaN and infinities as Python writes them
    | st.composite(_mangled)()
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(lines=st.lists(ANYTHING, min_size=100, max_size=100), method=st.sampled_from(["supervised", "dpo"]))
def test_ten_thousand_lines_never_raise(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], method: Any
) -> None:
    """100 files of 100 lines: each line is good, or has its number and a reason."""
    path = tmp_path_factory.getbasetemp() / "anything.jsonl"
    whole = [line.replace(b"\n", b" ") for line in lines]
    path.write_bytes(b"\n".join(whole) + b"\n")
    found = check(path, method, most_problems=10_000)
    assert found.num_examples == sum(1 for line in whole if line.strip())
    assert found.num_bad_lines == len(found.problems)
    numbers = [p.line for p in found.problems if not p.whole_file]
    assert all(1 <= number <= 100 for number in numbers)
    assert all(p.message.strip() and p.message.isprintable() for p in found.problems)
    # What has no problem is an example, and what has one is none.
    for number, line in enumerate(whole, 1):
        if line.strip():
            assert _is_example(line.removeprefix(training_file.BOM), found.format) == (number not in numbers), line


def _is_example(line: bytes, expected: Format) -> bool:
    try:
        parse_example(parse_object(line), expected)
    except LineError:
        return False
    return True
