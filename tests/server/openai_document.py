"""The part of OpenAI's own API document (OpenAPI) that this server has, for tests that make requests of it.

Bodies carry the contract's fields, types and ranges. `document()` is the whole; nothing here knows what answers are.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
MODELS = [
    "gpt-4o-mini",
    "gpt-4o-mini-2024-07-18",
    "davinci-002",
    "afina/nano",
    "ft:gpt-4o-mini-2024-07-18:afina::abcdefgh",
]
STRING: Json = {"type": "string"}
BOOLEAN: Json = {"type": "boolean"}
ANY_OBJECT: Json = {"type": "object", "properties": {}, "additionalProperties": True}


def null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def words(*values: Any) -> Json:
    return {"enum": list(values)}


def integer(low: int | None = None, high: int | None = None) -> Json:
    return _ranged("integer", low, high)


def number(low: float | None = None, high: float | None = None) -> Json:
    return _ranged("number", low, high)


def _ranged(kind: str, low: float | None, high: float | None) -> Json:
    limits = {"minimum": low, "maximum": high}
    return {"type": kind, **{key: value for key, value in limits.items() if value is not None}}


def several(items: Json, least: int = 0, most: int | None = None) -> Json:
    return {"type": "array", "items": items, "minItems": least, **({"maxItems": most} if most else {})}


def thing(required: str = "", /, **properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


MODEL = words(*MODELS)
METADATA = null({"type": "object", "additionalProperties": {"type": "string", "maxLength": 512}, "maxProperties": 16})
TEXT_PARTS = several(thing("type text", type=words("text"), text=STRING), 1)
CONTENT = {"anyOf": [STRING, TEXT_PARTS]}
CALL = thing(
    "id type function",
    id=STRING,
    type=words("function"),
    function=thing("name arguments", name=STRING, arguments=STRING),
)
MESSAGE = {
    "oneOf": [
        thing("role content", role=words("system", "developer", "user"), content=CONTENT, name=STRING),
        thing(
            "role", role=words("assistant"), content=null(CONTENT), tool_calls=several(CALL, 1), refusal=null(STRING)
        ),
        thing("role content tool_call_id", role=words("tool"), content=CONTENT, tool_call_id=STRING),
    ]
}
SCHEMA = {
    "oneOf": [
        thing(
            "type properties required additionalProperties",
            type=words("object"),
            properties={
                "type": "object",
                "additionalProperties": {
                    "anyOf": [
                        thing("type", type=words("string", "integer", "boolean", "null", "number")),
                        thing("enum", enum=several(STRING, 1, 5)),
                    ]
                },
                "maxProperties": 4,
            },
            required=several(STRING, 0, 4),
            additionalProperties=words(False),
        ),
        ANY_OBJECT,
    ]
}
NAME = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
JSON_SCHEMA = thing("name", name=NAME, description=STRING, strict=null(BOOLEAN), schema=SCHEMA)
FORMAT = {
    "oneOf": [
        thing("type", type=words("text", "json_object")),
        thing("type json_schema", type=words("json_schema"), json_schema=JSON_SCHEMA),
    ]
}
FUNCTION = thing("name", name=NAME, description=STRING, parameters=SCHEMA, strict=null(BOOLEAN))
TOOL = thing("type function", type=words("function"), function=FUNCTION)
CHOICE = {
    "oneOf": [
        words("none", "auto", "required"),
        thing("type function", type=words("function"), function=thing("name", name=STRING)),
    ]
}
STREAM_OPTIONS = null(thing(include_usage=BOOLEAN, include_obfuscation=BOOLEAN))
SAMPLING: Json = {
    "temperature": null(number(0, 2)),
    "top_p": null(number(0, 1)),
    "presence_penalty": null(number(-2, 2)),
    "frequency_penalty": null(number(-2, 2)),
    "logit_bias": null({"type": "object", "additionalProperties": number(-100, 100), "maxProperties": 5}),
    "seed": null(integer()),
    "stop": null({"anyOf": [STRING, several(STRING, 1, 4)]}),
    "user": STRING,
    "stream": null(BOOLEAN),
    "stream_options": STREAM_OPTIONS,
}
# Answers stay short, so that a test is about requests.
SHORT = integer(1, 4)
CHAT = thing(
    "model messages",
    model=MODEL,
    messages=several(MESSAGE, 1, 4),
    **SAMPLING,
    n=null(integer(1, 3)),
    max_tokens=null(SHORT),
    max_completion_tokens=null(SHORT),
    logprobs=null(BOOLEAN),
    top_logprobs=null(integer(0, 20)),
    response_format=FORMAT,
    tools=several(TOOL, 0, 3),
    tool_choice=CHOICE,
    parallel_tool_calls=BOOLEAN,
    functions=several(FUNCTION, 1, 2),
    function_call={"oneOf": [words("none", "auto"), thing("name", name=STRING)]},
    metadata=METADATA,
    store=null(BOOLEAN),
    service_tier=null(words("auto", "default", "flex", "scale", "priority")),
    reasoning_effort=null(words("none", "minimal", "low", "medium", "high")),
    verbosity=null(words("low", "medium", "high")),
    modalities=null(several(words("text", "audio"))),
    prediction=null(thing("type content", type=words("content"), content=CONTENT)),
    safety_identifier=STRING,
    prompt_cache_key=STRING,
    web_search_options=ANY_OBJECT,
    audio=null(ANY_OBJECT),
)
TOKENS = several(integer(), 1, 5)
PROMPT = {"anyOf": [STRING, several(STRING, 0, 3), TOKENS, several(TOKENS, 1, 3), {"type": "null"}]}
COMPLETION = thing(
    "model prompt",
    model=MODEL,
    prompt=PROMPT,
    **SAMPLING,
    max_tokens=integer(0, 4),
    n=null(integer(1, 3)),
    best_of=null(integer(0, 5)),
    logprobs=null(integer(0, 5)),
    echo=null(BOOLEAN),
    suffix=null(STRING),
)
EMBEDDING = thing(
    "model input",
    model=MODEL,
    input={"anyOf": [STRING, several(STRING, 1, 4), TOKENS, several(TOKENS, 1, 3)]},
    encoding_format=words("float", "base64"),
    dimensions=integer(1),
    user=STRING,
)
ITEM = {
    "oneOf": [
        thing(
            "role content",
            type=words("message"),
            role=words("user", "assistant", "system", "developer"),
            content={
                "anyOf": [STRING, several(thing("type text", type=words("input_text", "output_text"), text=STRING))]
            },
        ),
        thing(
            "type call_id name arguments", type=words("function_call"), call_id=STRING, name=STRING, arguments=STRING
        ),
        thing("type call_id output", type=words("function_call_output"), call_id=STRING, output=STRING),
    ]
}
TEXT_FORMAT = {
    "oneOf": [
        thing("type", type=words("text", "json_object")),
        thing("type name schema", type=words("json_schema"), name=NAME, schema=SCHEMA, strict=null(BOOLEAN)),
    ]
}
RESPONSE = thing(
    "model",
    model=MODEL,
    input={"anyOf": [STRING, several(ITEM, 0, 4)]},
    instructions=null(STRING),
    text=thing(format=TEXT_FORMAT, verbosity=null(words("low", "medium", "high"))),
    max_output_tokens=SHORT,
    temperature=null(number(0, 2)),
    top_p=null(number(0, 1)),
    top_logprobs=null(integer(0, 20)),
    include=null(several(words("message.output_text.logprobs", "reasoning.encrypted_content", "other"))),
    stream=null(BOOLEAN),
    tools=several(thing("type name", type=words("function"), name=NAME, parameters=null(SCHEMA), strict=null(BOOLEAN))),
    tool_choice={"oneOf": [words("none", "auto", "required"), thing("type name", type=words("function"), name=STRING)]},
    parallel_tool_calls=null(BOOLEAN),
    metadata=METADATA,
    truncation=null(words("auto", "disabled")),
    store=null(BOOLEAN),
    background=null(BOOLEAN),
    previous_response_id=null(STRING),
    conversation=null(STRING),
    reasoning=null(thing(effort=null(words("none", "low", "medium", "high")))),
    max_tool_calls=null(integer()),
)


def _auto(schema: Json) -> Json:
    return {"oneOf": [words("auto"), schema]}


SUPERVISED = {
    "batch_size": _auto(integer(1, 256)),
    "learning_rate_multiplier": _auto({"type": "number", "exclusiveMinimum": 0}),
    "n_epochs": _auto(integer(1, 50)),
}
DPO = {**SUPERVISED, "beta": _auto({"type": "number", "exclusiveMinimum": 0, "maximum": 2})}
FILE_ID = {"type": "string", "pattern": "^file-[A-Za-z0-9]{22}$"}
JOB = thing(
    "model training_file",
    model=MODEL,
    training_file=FILE_ID,
    validation_file=null(FILE_ID),
    suffix=null({"type": "string", "minLength": 1, "maxLength": 64}),
    seed=null(integer(0, 2147483647)),
    hyperparameters=thing(**SUPERVISED),
    method=thing(
        "type",
        type=words("supervised", "dpo", "reinforcement"),
        supervised=thing(hyperparameters=thing(**SUPERVISED)),
        dpo=thing(hyperparameters=thing(**DPO)),
        reinforcement=thing("grader", grader=ANY_OBJECT),
    ),
    integrations=null(several(thing("type wandb", type=words("wandb"), wandb=thing("project", project=STRING)))),
    metadata=METADATA,
)
BATCH = thing(
    "input_file_id endpoint completion_window",
    input_file_id=STRING,
    endpoint=words("/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"),
    completion_window=words("24h"),
    metadata=METADATA,
    output_expires_after=thing("anchor seconds", anchor=words("created_at"), seconds=integer(3600, 2592000)),
)
UPLOAD: Json = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": words("assistants", "batch", "fine-tune", "vision", "user_data", "evals"),
        "expires_after[anchor]": words("created_at"),
        "expires_after[seconds]": integer(3600, 2592000),
    },
    "required": ["file", "purpose"],
}
AFTER, LIMIT = {"after": STRING}, {"limit": integer(1, 100)}
JOB_PATH = "/v1/fine_tuning/jobs/{fine_tuning_job_id}"


def _query(**schemas: Json) -> list[Json]:
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in schemas.items()]


def _operation(path: str, parameters: list[Json] | None = None, body: Json | None = None, kind: str = "json") -> Json:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    listed = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    operation: Json = {
        "parameters": listed + (parameters or []),
        "responses": {"200": {"description": "OK"}},
    }
    if body is not None:
        media = "application/json" if kind == "json" else "multipart/form-data"
        operation["requestBody"] = {"required": True, "content": {media: {"schema": body}}}
    return operation


def document(known: dict[str, list[str]] | None = None) -> Json:
    """As OpenAI's openapi.json would be, had it only these paths. known: values of path parameters that exist."""
    paged = _query(**AFTER, **LIMIT)
    files = _query(purpose=STRING, order=words("asc", "desc"), **AFTER, **LIMIT)
    asked: list[tuple[str, str, list[Json] | None, Json | None, str]] = [
        ("GET", "/v1/files", files, None, "json"),
        ("POST", "/v1/files", None, UPLOAD, "form"),
        ("GET", "/v1/files/{file_id}", None, None, "json"),
        ("DELETE", "/v1/files/{file_id}", None, None, "json"),
        ("GET", "/v1/files/{file_id}/content", None, None, "json"),
        ("GET", "/v1/fine_tuning/jobs", paged, None, "json"),
        ("POST", "/v1/fine_tuning/jobs", None, JOB, "json"),
        ("GET", JOB_PATH, None, None, "json"),
        *(("POST", f"{JOB_PATH}/{what}", None, None, "json") for what in ("cancel", "pause", "resume")),
        *(("GET", f"{JOB_PATH}/{what}", paged, None, "json") for what in ("events", "checkpoints")),
        ("GET", "/v1/models", None, None, "json"),
        ("GET", "/v1/models/{model}", None, None, "json"),
        ("DELETE", "/v1/models/{model}", None, None, "json"),
        ("POST", "/v1/chat/completions", None, CHAT, "json"),
        ("POST", "/v1/completions", None, COMPLETION, "json"),
        ("POST", "/v1/embeddings", None, EMBEDDING, "json"),
        ("POST", "/v1/responses", None, RESPONSE, "json"),
        ("GET", "/v1/batches", paged, None, "json"),
        ("POST", "/v1/batches", None, BATCH, "json"),
        ("GET", "/v1/batches/{batch_id}", None, None, "json"),
        ("POST", "/v1/batches/{batch_id}/cancel", None, None, "json"),
    ]
    paths: Json = {}
    known = known or {}
    for method, path, parameters, body, kind in asked:
        paths.setdefault(path, {})[method.lower()] = _operation(path, parameters, body, kind)
        for parameter in paths[path][method.lower()]["parameters"]:
            if parameter["name"] in known:
                parameter["schema"] = {"anyOf": [parameter["schema"], words(*known[parameter["name"]])]}
    return {"openapi": "3.1.0", "info": {"title": "OpenAI API", "version": "2.3.0"}, "paths": paths}
