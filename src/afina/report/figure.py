"""A plot with what every plot needs beside it."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """title: what is drawn. note: in smaller letters under it."""

    title: str
    body: Markup
    note: str = ""
