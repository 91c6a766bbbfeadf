"""Specialists inside other projects' frameworks. Each needs an extra of its own; importing this imports none."""

from __future__ import annotations

from afina.core.errors import AfinaError


class MissingExtraError(AfinaError, ImportError):
    """The framework is not installed."""
