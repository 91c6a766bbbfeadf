"""What the API says when it refuses: OpenAI's error body, and the sentences that clients know.

`ApiError` is raised anywhere in the server and becomes `{"error": {message, type, param, code}}` in `app.py`. No
stack trace is ever in one.
"""

from __future__ import annotations

from typing import Any

MOST_MESSAGE = 10_000  # characters; a message may quote what was sent


class ApiError(Exception):
    """status: HTTP. headers: sent along, as Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        if len(message) > MOST_MESSAGE:
            message = f"{message[: MOST_MESSAGE - 3]}..."
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def no_such_file(file_id: str) -> ApiError:
    return ApiError(404, f"No such File object: {file_id}", param="id")


def no_such_job(job_id: str) -> ApiError:
    return ApiError(404, f"Could not find fine tune: {job_id}", param="fine_tune_id", code="fine_tune_not_found")


def no_such_model(name: str) -> ApiError:
    return ApiError(404, f"The model '{name}' does not exist", param="model", code="model_not_found")


def no_such_chat_model(name: str) -> ApiError:
    message = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found")


def no_such_batch(batch_id: str) -> ApiError:
    return ApiError(404, f"No batch found with id '{batch_id}'.", param="id")


def not_tunable(name: str) -> ApiError:
    message = f"Model {name} is not available for fine-tuning or does not exist."
    return bad_request(message, code="model_not_available")


def not_served(what: str, param: str | None = None) -> ApiError:
    """A feature of the API that this server does not have, refused by name instead of being ignored."""
    return bad_request(f"{what} is not supported by this server.", param, "unsupported_parameter" if param else None)


def too_long(limit: int, found: int, param: str = "messages", *, at_least: bool = False) -> ApiError:
    """at_least: nobody counted to the end."""
    count = f"at least {found}" if at_least else str(found)
    message = (
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in {count} tokens. "
        "Please reduce the length of the messages."
    )
    return bad_request(message, param, "context_length_exceeded")


def overloaded(retry_after_s: int = 1) -> ApiError:
    return ApiError(
        503,
        "The server has as many requests as it can hold. Try again in a moment.",
        type="server_error",
        headers={"Retry-After": str(retry_after_s)},
    )
