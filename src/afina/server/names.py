"""Identifiers and model names as OpenAI's clients know them.

Base names stay names that clients accept (`gpt-4o-mini-2024-07-18`): litellm, DSPy and LlamaIndex refuse others. An
alias points to a base model that is on this machine or on the hub.
"""

from __future__ import annotations

import re
import secrets
import string

ALPHABET = string.ascii_letters + string.digits
FINE_TUNED = re.compile(
    r"^ft:(?P<base>[^:]+):(?P<org>[^:]*):(?P<suffix>[^:]*):(?P<tag>[A-Za-z0-9]{8})(?::ckpt-step-(?P<step>\d+))?$"
)
SUFFIX_WORD = re.compile(r"[^a-z0-9]+")


def random_text(length: int) -> str:
    """Letters and digits from the system's generator."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_id(prefix: str, length: int) -> str:
    """An id as `file-` and 22 characters."""
    return prefix + random_text(length)


def file_id() -> str:
    return new_id("file-", 22)


def job_id() -> str:
    return new_id("ftjob-", 24)


def event_id() -> str:
    return new_id("ftevent-", 24)


def checkpoint_id() -> str:
    return new_id("ftckpt_", 24)


def batch_id() -> str:
    return "batch_" + secrets.token_hex(16)


def request_id() -> str:
    return "req_" + secrets.token_hex(16)


def suffix_slug(suffix: str | None) -> str:
    """The suffix as it stands in a model's name: lower case, other characters as hyphens."""
    return SUFFIX_WORD.sub("-", (suffix or "").lower()).strip("-")


def fine_tuned_name(base: str, organisation: str, suffix: str | None, step: int | None = None) -> str:
    """`ft:base:organisation:suffix:8 characters`, of a checkpoint also `:ckpt-step-N`. base: a snapshot's name or an
    `ft:` name, of which the base is kept."""
    match = FINE_TUNED.match(base)
    root = match["base"] if match else base.replace(":", "-").replace("/", "-")
    name = f"ft:{root}:{organisation}:{suffix_slug(suffix)}:{random_text(8)}"
    return name if step is None else f"{name}:ckpt-step-{step}"
