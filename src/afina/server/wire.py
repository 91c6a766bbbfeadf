"""The base of request bodies: strict, closed, finite.

Comes in: JSON that `gate.py` parsed already. What pydantic refuses here becomes a sentence of the contract in
`refusals.py`.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from afina.server.fields import unknown

MOST_KEYS = 1000  # of one object; no body has so many fields


class Body(BaseModel):
    """A request body, or an object in it. An unknown field is refused; "1" is no 1, true is no 1, but 1 is a 1.0.

    A field that may be absent or null is `X | None = None`; a choice of words is `Literal[...]`; a range is
    `Annotated[int, Field(ge=1, le=50)]`. A validator that needs a sentence of its own raises ApiError.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_flood(cls, raw: Any) -> Any:
        """Of so many keys one is unknown, and pydantic would describe each of them."""
        if isinstance(raw, dict) and len(raw) > MOST_KEYS:
            raise unknown(next(str(key) for key in raw if key not in cls.model_fields)[:100])
        return raw


def now() -> int:
    """Unix seconds."""
    return int(time.time())
