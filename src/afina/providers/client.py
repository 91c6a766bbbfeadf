"""A provider of the fine-tuning API: where it is, which key opens it, and its errors in one clear line.

Comes in: `openai`, `azure` or an address. Goes out: a `Connection` around the official SDK. The key is read from an
environment variable when it is needed; it is never kept, written or shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
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


class ProviderError(AfinaError):
    """The provider refused, failed, or cannot be reached. status: of the HTTP answer; None without one."""

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class UnreachableError(ProviderError):
    """No answer came: the network or the server is down."""


@dataclass(frozen=True)
class Provider:
    """name: "openai", "azure", or the address. key_variable: the environment variable that holds the key."""

    name: str
    base_url: str
    key_variable: str

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
            raise _refused(self.provider, doing, error) from error
        except openai.APIConnectionError as error:
            why = "no answer in time" if isinstance(error, openai.APITimeoutError) else _cause(error)
            raise UnreachableError(
                f"{self.provider.name}: cannot be reached while {doing} ({why}). Check the network and the address; "
                "the same command goes on where it stopped."
            ) from error
        except openai.OpenAIError as error:
            raise ProviderError(f"{self.provider.name}: {doing} failed: {_redacted(str(error))}") from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # the SDK read what it did not expect
            raise ProviderError(
                f"{self.provider.name}: what came back while {doing} is no answer of the API "
                f"({type(error).__name__}). Is {self.provider.base_url} the right address?"
            ) from error

    def once(self) -> Connection:
        """The same without retries: for what is paid, and may have been done although no answer came."""
        return Connection(self.provider, self.client.with_options(max_retries=0))


def connect(provider: Provider) -> Connection:
    """Raises ProviderError if the SDK or the key is missing. Nothing is sent yet."""
    try:
        import openai
    except ImportError as error:
        raise ProviderError(
            "the client of hosted fine-tuning is not installed. Install it with: pip install 'afina[hosted]'"
        ) from error
    key = os.environ.get(provider.key_variable, "").strip()
    if not key:
        raise ProviderError(
            f"{provider.name}: the environment variable {provider.key_variable} is not set, expected the provider's "
            f"key. Set it (export {provider.key_variable}=...), or name another variable with api_key_env."
        )
    if not key.isascii() or any(character.isspace() for character in key):
        raise ProviderError(f"{provider.key_variable}: is no API key (it holds spaces or letters beyond ASCII).")
    options: dict[str, Any] = {"api_key": key, "timeout": TIMEOUT_S, "max_retries": NUM_RETRIES}
    if provider.name == "azure":
        version = os.environ.get("OPENAI_API_VERSION", AZURE_API_VERSION)
        client = openai.AzureOpenAI(azure_endpoint=provider.base_url, api_version=version, **options)
        return Connection(provider, client)
    return Connection(provider, openai.OpenAI(base_url=provider.base_url, **options))


# -- errors ----------------------------------------------------------------------------------------


def _refused(provider: Provider, doing: str, error: Any) -> ProviderError:
    """error: an openai.APIStatusError."""
    body = error.body if isinstance(error.body, dict) else {}
    code = body.get("code") if isinstance(body.get("code"), str) else None
    said = _redacted(" ".join(str(body.get("message") or error.response.reason_phrase or "no reason given").split()))
    status = int(error.status_code)
    text = f"{provider.name}: {doing} was refused ({status}): {said}"
    if status == 401:
        text = f"{provider.name}: the key in {provider.key_variable} was refused: {said} Set the right one."
    elif code == "insufficient_quota" or "billing" in (code or ""):
        text = f"{provider.name}: no money is left there: {said} Add credit; the same command goes on."
    elif code == "training_not_available":
        text += " Models you have there can be saved before their last day: afina doctor --provider openai"
    elif status == 429:
        text = f"{provider.name}: too many requests, also after pauses: {said} Wait; the same command goes on."
    elif status >= 500:
        text = f"{provider.name}: failed while {doing} ({status}): {said} The same command goes on where it stopped."
    return ProviderError(text, status=status, code=code)


def _redacted(text: str) -> str:
    """Without anything that looks like a key, should a server repeat it."""
    return re.sub(r"\b(sk|key)-[\w-]{8,}", r"\1-…", text)[:500]


def _cause(error: BaseException) -> str:
    inner = error.__cause__ or error
    return " ".join(str(inner).split())[:200] or type(inner).__name__
