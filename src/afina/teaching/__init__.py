"""A teacher's answers become training data: asked once, filtered, counted."""

from afina.teaching.labels import LabelReport, LabelSettings, label, read_labels

__all__ = ["LabelReport", "LabelSettings", "label", "read_labels"]
