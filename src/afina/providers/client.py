"""A provider of the fine-tuning API: where it is, which key opens it, and its errors in one clear line.

Comes in: `openai`, `azure` or an address. Goes out: a `Connection` around the official SDK. The key is read from an
environment variable when it is needed; it is never kept, written or shown, not even where a server repeats it.
"""

from __future__ import annotations

import email.utils
import math
import os
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from afina.core.errors import AfinaError

if TYPE_CHECKING:
    from openai import OpenAI

OPENAI_URL = "https://api.openai.com/v1"
AZURE_API_VERSION = "2024-10-21"  # the first stable one with fine-tuning and batches
KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "azure": "AZURE_OPENAI_API_KEY"}
ADDRESS_KEY = "AFINA_API_KEY"
TIMEOUT_S = 120.0
NUM_RETRIES = 4  # of the SDK, on 408, 409, 429 and 5xx, with growing pauses and Retry-After
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_KEY = 4  # a shorter text is part of any other
NO_KEY = "no-key-is-needed"  # what a server on this machine is given where no key is set
NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError")  # of the HTTP client


class ProviderError(AfinaError):
    """The provider refused, failed, or cannot be reached.

    status: of the HTTP answer; None without one. code, param: as the API names the cause. retry_after_s: how long it
    asks to wait. written: what the model wrote where the provider refused its own model's answer. maybe_paid: the
    request reached the provider and what became of it is not known, so it may have to be paid.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        written: str | None = None,
        maybe_paid: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_s, self.written, self.maybe_paid = retry_after_s, written, maybe_paid

    @property
    def no_money(self) -> bool:
        """Waiting does not help: the account is empty."""
        return _is_about_money(self.code)


class UnreachableError(ProviderError):
    """No answer came: the network or the server is down."""


@dataclass(frozen=True)
class Provider:
    """name: "openai", "azure", or the address. key_variable: the environment variable that holds the key.

    limit_key: what the provider calls the limit of an answer's tokens.
    """

    name: str
    base_url: str
    key_variable: str
    limit_key: str = "max_completion_tokens"

    @property
    def is_local(self) -> bool:
        """A server on this machine: it sends no bill."""
        return (urlsplit(self.base_url).hostname or "") in LOOPBACK


def find_provider(text: str, api_key_env: str | None = None) -> Provider:
    """The provider that a recipe or an option names. Raises ProviderError."""
    if text == "openai":
        return Provider("openai", OPENAI_URL, api_key_env or KEY_VARIABLES["openai"])
    if text == "azure":
        endpoint = os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not endpoint:
            raise ProviderError(
                "azure: the environment variable AZURE_OPENAI_ENDPOINT is not set, expected the address of your "
                "resource, as https://NAME.openai.azure.com"
            )
        return Provider("azure", endpoint.rstrip("/"), api_key_env or KEY_VARIABLES["azure"])
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProviderError(f"{text!r}: expected openai, azure, or an address as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ProviderError(f"{parts.hostname}: leave the key out of the address; set it in {ADDRESS_KEY}.")
    if parts.query or parts.fragment:
        raise ProviderError(f"{parts.hostname}: expected an address without ? and #, as https://HOST/v1")
    address = text.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
    return Provider(address, address, api_key_env or ADDRESS_KEY)


@dataclass(frozen=True)
class Connection:
    """A provider, and the SDK's client for it. Thread-safe."""

    provider: Provider
    client: OpenAI

    @contextmanager
    def explained(self, doing: str) -> Generator[None]:
        """Turn what the SDK raises into ProviderError. doing: "creating the job"."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise _refused(self, doing, error) from error
        except openai.APIConnectionError as error:
            why = "no answer in time" if isinstance(error, openai.APITimeoutError) else _cause(error)
            raise UnreachableError(
                f"{self.provider.name}: cannot be reached while {doing} ({self.redacted(why)}). Check the network and "
                "the address; the same command goes on where it stopped.",
                maybe_paid=type(error.__cause__).__name__ not in NOT_SENT,
            ) from error
        except openai.OpenAIError as error:
            raise ProviderError(f"{self.provider.name}: {doing} failed: {self.redacted(str(error))}") from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # the SDK read what it did not expect
            raise ProviderError(
                f"{self.provider.name}: what came back while {doing} is no answer of the API "
                f"({type(error).__name__}). Is {self.provider.base_url} the right address?"
            ) from error

    def once(self) -> Connection:
        """The same without retries: for what is paid, and may have been done although no answer came."""
        return Connection(self.provider, self.client.with_options(max_retries=0))

    @property
    def has_key(self) -> bool:
        return self.client.api_key != NO_KEY

    def redacted(self, text: str) -> str:
        """Without the key, and cut to what a line holds."""
        return re.sub(r"\b(sk|key)-[\w-]{8,}", r"\1-…", self.without_key(text))[:500]

    def without_key(self, text: str) -> str:
        """The text as it stands, the key aside, should a server repeat it."""
        key = self.client.api_key
        return text.replace(key, "…") if len(key) >= MIN_KEY and self.has_key else text


def connect(provider: Provider, *, key_optional: bool = False, timeout_s: float = TIMEOUT_S) -> Connection:
    """Raises ProviderError if the SDK or the key is missing. Nothing is sent yet.

    key_optional: for a server that may need none. timeout_s: without a word from the provider.
    """
    try:
        import openai
    except ImportError as error:
        raise ProviderError(
            "the client of hosted fine-tuning is not installed. Install it with: pip install 'afina[hosted]'"
        ) from error
    key = os.environ.get(provider.key_variable, "").strip() or (NO_KEY if key_optional else "")
    if not key:
        raise ProviderError(
            f"{provider.name}: the environment variable {provider.key_variable} is not set, expected the provider's "
            f"key. Set it (export {provider.key_variable}=...), or name another variable with api_key_env."
        )
    if not key.isascii() or any(character.isspace() for character in key):
        raise ProviderError(f"{provider.key_variable}: is no API key (it holds spaces or letters beyond ASCII).")
    options: dict[str, Any] = {"api_key": key, "timeout": timeout_s, "max_retries": NUM_RETRIES}
    if provider.name == "azure":
        version = os.environ.get("OPENAI_API_VERSION", AZURE_API_VERSION)
        client = openai.AzureOpenAI(azure_endpoint=provider.base_url, api_version=version, **options)
        return Connection(provider, client)
    return Connection(provider, openai.OpenAI(base_url=provider.base_url, **options))


# -- errors ----------------------------------------------------------------------------------------


def _refused(connection: Connection, doing: str, error: Any) -> ProviderError:
    """error: an openai.APIStatusError."""
    body = _error_body(error.body)
    code, param = (body[name] if isinstance(body.get(name), str) else None for name in ("code", "param"))
    said = " ".join(str(body.get("message") or error.response.reason_phrase or "no reason given").split())
    said = connection.redacted(said if said.endswith((".", "!", "?")) else f"{said}.")
    status, written = int(error.status_code), body.get("failed_generation")
    return ProviderError(
        _meaning(connection, doing, status, code, said),
        status=status,
        code=code,
        param=param,
        retry_after_s=_retry_after_s(error.response.headers),
        written=connection.without_key(written) if isinstance(written, str) else None,
    )


def _error_body(body: Any) -> dict[str, Any]:
    """The object that holds message and code, wherever the provider puts it."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, str) and not body.lstrip().startswith("<"):  # of a web page there is nothing to quote
        return {"message": body[:500]}
    if not isinstance(body, dict):
        return {}
    inner = body.get("error")
    if isinstance(inner, dict):
        return inner
    # FastAPI's servers say {"detail": ...}, others {"error": "text"}.
    return body if "message" in body else {**body, "message": inner or body.get("detail")}


def _meaning(connection: Connection, doing: str, status: int, code: str | None, said: str) -> str:
    """One line. said: the provider's own words."""
    provider = connection.provider
    if status == 401 and not connection.has_key:
        return f"{provider.name}: wants a key: {said} Set it (export {provider.key_variable}=...)."
    if status == 401:
        return f"{provider.name}: the key in {provider.key_variable} was refused: {said} Set the right one."
    if _is_about_money(code):
        return f"{provider.name}: no money is left there: {said} Add credit; the same command goes on."
    if code == "training_not_available":
        said += " Models you have there can be saved before their last day: afina doctor --provider openai"
    elif status == 429:
        return f"{provider.name}: too many requests, also after pauses: {said} Wait; the same command goes on."
    elif status >= 500:
        return f"{provider.name}: failed while {doing} ({status}): {said} The same command goes on where it stopped."
    return f"{provider.name}: {doing} was refused ({status}): {said}"


def _is_about_money(code: str | None) -> bool:
    return code == "insufficient_quota" or "billing" in (code or "")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider asks to wait: milliseconds, seconds or a date (RFC 9110, section 10.2.3)."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = (headers.get(name) or "").strip()
        try:
            found = float(text) * unit_s
        except ValueError:
            continue
        if math.isfinite(found):
            return max(0.0, found)
    try:
        date = email.utils.parsedate_to_datetime((headers.get("retry-after") or "").strip())
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _cause(error: BaseException) -> str:
    inner = error.__cause__ or error
    return " ".join(str(inner).split())[:200] or type(inner).__name__
