"""What every group of settings has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen; an unknown key is an error with a suggestion."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
