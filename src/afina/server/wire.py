"""The base of request bodies: strict, closed, finite.

Comes in: JSON that `gate.py` parsed already. What pydantic refuses here becomes a sentence of the contract in
`refusals.py`.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A request body, or an object in it. An unknown field is refused; "1" is no 1, true is no 1, but 1 is a 1.0.

    A field that may be absent or null is `X | None = None`; a choice of words is `Literal[...]`; a range is
    `Annotated[int, Field(ge=1, le=50)]`. A validator that needs a sentence of its own raises ApiError.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def now() -> int:
    """Unix seconds."""
    return int(time.time())
