"""Names of hosted models: what a fine-tune was made from, and which snapshot a short name means.

Comes in and goes out: text. It asks nobody: what it does not know it leaves as it is.
"""

from __future__ import annotations

# A short name and the snapshot that a fine-tuning job of that name trains.
SNAPSHOTS = {
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
    "o4-mini": "o4-mini-2025-04-16",
}


def is_fine_tune(model: str) -> bool:
    return model.startswith("ft:")


def base_of(model: str) -> str:
    """The snapshot a model stands on: of ft:gpt-4o-mini-2024-07-18:me::abc, gpt-4o-mini-2024-07-18."""
    name = model.split(":")[1] if is_fine_tune(model) and model.count(":") >= 1 else model
    return SNAPSHOTS.get(name, name)
