"""Distillation: a teacher's answers, and the students that learn from them under one budget.

Comes in: an opened run whose recipe has the group `distill`. Goes out: students, each a run folder with a specialist
inside, and `students/report.json`, which says what each was trained on. How good they are is not known here: the test
rows are not read. `afina compare` measures the students.
"""

from afina.distilling.curve import CurvePoint, curve_runs
from afina.distilling.distill import FOLDER, REPORT, distill, report_lines
from afina.distilling.seeds import train_seed
from afina.distilling.student import Student
from afina.distilling.taught import Taught

__all__ = ["FOLDER", "REPORT", "CurvePoint", "Student", "Taught", "curve_runs", "distill", "report_lines", "train_seed"]
