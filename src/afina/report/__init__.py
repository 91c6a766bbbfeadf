"""What a run found, for people: one HTML page and one model card.

Comes in: a finished run folder. Goes out: `report.html` and the specialist's `README.md`. Nothing is
measured here; every figure shown stands in a file of the run.
"""

from afina.report.card import write_card
from afina.report.html import write_report

__all__ = ["write_card", "write_report"]
