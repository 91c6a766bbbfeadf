"""Where a publication goes, as the user writes it: a folder here, or a repository of the Hugging Face Hub.

Comes in: one text. Goes out: a `FolderTarget` or a `HubTarget`. Asks nobody; a text that could mean either is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afina.core.errors import AfinaError

Kind = Literal["model", "dataset"]
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SCHEME = "hf://"
PREFIXES: dict[str, Kind] = {"datasets/": "dataset", "models/": "model"}


class PublishError(AfinaError):
    """What was to be published, or where to, cannot be used."""


@dataclass(frozen=True)
class FolderTarget:
    path: Path

    @property
    def text(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HubTarget:
    """repository: owner/name. kind: where the text says it; else what is published decides."""

    repository: str
    kind: Kind | None = None

    @property
    def text(self) -> str:
        return f"{SCHEME}{self.repository}"


Target = FolderTarget | HubTarget


def parse_target(text: str) -> Target:
    """`owner/name` and `hf://...` are the Hub; all else is a folder. Raises PublishError.

    `owner/name` where a folder `owner` stands here is refused, for it may be meant as `./owner/name`.
    """
    if text.startswith(SCHEME):
        return _hub(text)
    if "://" in text:
        raise PublishError(
            f"{text}: is an address. Write owner/name or {SCHEME}owner/name for the Hub (HF_ENDPOINT says which one), "
            "or the path of a folder."
        )
    if not text.strip():
        raise PublishError("the target is empty, expected owner/name on the Hugging Face Hub, or a folder.")
    if REPOSITORY.fullmatch(text) is None:
        return FolderTarget(Path(text).expanduser())
    owner = Path(text).parent
    if owner.exists():
        raise PublishError(
            f"{text}: {owner} is a folder here, so this may mean two things. Write ./{text} for the folder, or "
            f"{SCHEME}{text} for the Hub."
        )
    return HubTarget(text)


def _hub(text: str) -> HubTarget:
    rest, kind = text.removeprefix(SCHEME).rstrip("/"), None
    for prefix, named in PREFIXES.items():
        if rest.startswith(prefix) and rest.count("/") == 2:
            rest, kind = rest.removeprefix(prefix), named
    if REPOSITORY.fullmatch(rest) is None:
        raise PublishError(
            f"{text}: expected {SCHEME}owner/name for a model or {SCHEME}datasets/owner/name for a catalogue."
        )
    return HubTarget(rest, kind)
