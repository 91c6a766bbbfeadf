"""POST /v1/embeddings and /v1/completions, with the official client."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from inference_material import MODEL, client, events, refused

if TYPE_CHECKING:
    from conftest import Api

BASE = "davinci-002"


# -- embeddings -------------------------------------------------------------------------------


def embed(api: Api, **asked: Any) -> Any:
    return api.http.post("/v1/embeddings", json={"model": MODEL, **asked})


def test_vectors_are_unit_and_the_same_in_both_encodings(lite: Api) -> None:
    plain = embed(lite, input=["O gato dorme.", "Olá"]).json()
    assert (plain["object"], plain["model"]) == ("list", MODEL)
    assert [(one["object"], one["index"]) for one in plain["data"]] == [("embedding", 0), ("embedding", 1)]
    assert plain["usage"]["prompt_tokens"] == plain["usage"]["total_tokens"] > 0
    vectors = np.array([one["embedding"] for one in plain["data"]], dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)  # bfloat16 weights
    coded = embed(lite, input=["O gato dorme.", "Olá"], encoding_format="base64").json()["data"]
    # One batch, one pass: bit for bit.
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in coded]
    np.testing.assert_array_equal(np.stack(decoded), vectors)


def test_the_sdk_gets_numbers(lite: Api) -> None:
    done = client(lite).embeddings.create(model=MODEL, input="O gato dorme.")
    assert len(done.data[0].embedding) > 8
    assert isinstance(done.data[0].embedding[0], float)


def test_fewer_dimensions_are_the_first_at_length_one(lite: Api) -> None:
    whole = np.array(embed(lite, input="Olá").json()["data"][0]["embedding"])
    short = np.array(embed(lite, input="Olá", dimensions=7).json()["data"][0]["embedding"])
    np.testing.assert_allclose(short, whole[:7] / np.linalg.norm(whole[:7]), rtol=1e-5)
    error = refused(embed(lite, input="Olá", dimensions=len(whole) + 1), "dimensions", "integer_above_max_value")
    assert str(len(whole)) in error


def test_tokens_are_as_good_as_text(lite: Api) -> None:
    ids = lite.context.pool.get(MODEL).codec.completion_prompt("Olá, mundo")
    text = embed(lite, input="Olá, mundo").json()
    assert embed(lite, input=ids).json() == text
    assert embed(lite, input=[ids]).json() == text


def test_bad_inputs_are_refused(lite: Api) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "empty_array"),
        ({"input": [[]]}, "input[0]", "empty_array"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": [[1], "a"]}, "input[1]", "invalid_type"),
        ({"input": [1.5]}, "input[0]", "invalid_type"),
        ({"input": {}}, "input", "invalid_type"),
        ({"input": [10**9]}, "input[0]", "integer_above_max_value"),
        ({"input": [-1]}, "input[0]", "integer_below_min_value"),
        ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"input": "palavra " * 9000}, "input", "context_length_exceeded"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"input": "a", "colour": 1}, "colour", "unknown_parameter"),
    ]
    for asked, param, code in cases:
        refused(embed(lite, **asked), param, code)
    assert len(cases) == 16
    refused(embed(lite, model="gpt-9", input="a"), None, "model_not_found", 404)


# -- completions ------------------------------------------------------------------------------


def complete(api: Api, **asked: Any) -> Any:
    return api.http.post("/v1/completions", json={"model": BASE, "prompt": "Era uma vez", "temperature": 0, **asked})


def test_the_completion_has_the_contracts_fields(lite: Api) -> None:
    body = complete(lite).json()
    assert (body["object"], body["model"]) == ("text_completion", BASE)
    (choice,) = body["choices"]
    assert list(choice) == ["text", "index", "logprobs", "finish_reason"]
    assert body["usage"]["completion_tokens"] <= 16
    assert (
        client(lite).completions.create(model=BASE, prompt="Era uma vez", temperature=0).choices[0].text
        == (choice["text"])
    )


def test_prompts_of_every_kind(lite: Api) -> None:
    codec = lite.context.pool.get(BASE).codec
    one, two = "Era uma vez", "O gato"
    ids = [codec.completion_prompt(one), codec.completion_prompt(two)]
    alone = [complete(lite, prompt=text).json()["choices"][0]["text"] for text in (one, two)]
    for prompt in ([one, two], ids):
        choices = complete(lite, prompt=prompt).json()["choices"]
        assert [choice["text"] for choice in choices] == alone
        assert [choice["index"] for choice in choices] == [0, 1]
    assert complete(lite, prompt=ids[0]).json()["choices"][0]["text"] == alone[0]
    assert complete(lite, prompt=None).status_code == 200
    assert complete(lite, prompt="").status_code == 200


def test_echo_logprobs_and_no_tokens_at_all(lite: Api) -> None:
    plain = complete(lite).json()["choices"][0]
    echoed = complete(lite, echo=True).json()["choices"][0]
    assert echoed["text"] == "Era uma vez" + plain["text"]
    nothing = complete(lite, echo=True, max_tokens=0).json()
    assert (nothing["choices"][0]["text"], nothing["usage"]["completion_tokens"]) == ("Era uma vez", 0)
    told = complete(lite, logprobs=3).json()["choices"][0]
    logprobs = told["logprobs"]
    count = len(logprobs["tokens"])
    assert count > 0
    assert [len(logprobs[key]) for key in ("token_logprobs", "top_logprobs", "text_offset")] == [count] * 3
    assert all(0 < len(top) <= 3 for top in logprobs["top_logprobs"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert "".join(logprobs["tokens"])[offset:].startswith(token)
    assert complete(lite, logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"] is None


def test_best_of_returns_the_likeliest(lite: Api) -> None:
    asked = {"temperature": 1.2, "seed": 11, "logprobs": 1}
    all_of_them = complete(lite, n=4, **asked).json()["choices"]
    means = [np.mean(choice["logprobs"]["token_logprobs"]) for choice in all_of_them]
    best = complete(lite, n=1, best_of=4, **asked).json()
    assert best["choices"][0]["text"] == all_of_them[int(np.argmax(means))]["text"]
    assert best["usage"]["completion_tokens"] > len(best["choices"][0]["logprobs"]["tokens"])


def test_completions_are_streamed(lite: Api) -> None:
    answer = complete(
        lite, stream=True, prompt=["Era uma vez", "O gato"], stream_options={"include_usage": True}, echo=True
    )
    chunks = events(answer.text)
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    whole = complete(lite, prompt=["Era uma vez", "O gato"], echo=True).json()
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_bad_completions_are_refused(lite: Api) -> None:
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"suffix": "fim"}, "suffix", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
        ({"n": 3, "best_of": 2}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"best_of": 21}, "best_of", "integer_above_max_value"),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"prompt": {}}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": [10**6]}, "prompt[0]", "integer_above_max_value"),
        ({"prompt": "palavra " * 9000}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a"] * 100, "n": 100}, "n", "integer_above_max_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ]
    for asked, param, code in cases:
        refused(complete(lite, **asked), param, code)
    assert len(cases) == 13


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_of_many_texts_are_in_order(lite: Api, encoding: str) -> None:
    texts = [f"texto número {i}" for i in range(40)]
    data = embed(lite, input=texts, encoding_format=encoding).json()["data"]
    assert [one["index"] for one in data] == list(range(40))
    again = embed(lite, input=texts[17], encoding_format="float").json()["data"][0]["embedding"]
    found = data[17]["embedding"]
    seventeenth = np.frombuffer(base64.b64decode(found), dtype="<f4") if encoding == "base64" else np.array(found)
    assert float(seventeenth @ np.array(again)) > 0.999  # other texts beside it change the last bits of bfloat16
