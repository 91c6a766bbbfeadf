"""The run folders that `afina serve` was given: their names, what each can do, and who answers for it.

Comes in: paths of run folders. Goes out: `ServedRun`s, whose models are loaded when first asked. A specialist that was
trained to answer from passages is an assistant; one with fields to fill is a form; the rest is plain text. A folder
with neither specialist nor report is refused at the start, and so is an assistant without a usable index. Knows nothing
of HTTP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from afina.core.errors import AfinaError, RunError
from afina.core.storage import read_json
from afina.core.task import Task
from afina.server.page.files import Tickets
from afina.server.page.turn import Turn
from afina.strategies.finetuned import MANIFEST, Manifest, Specialist

if TYPE_CHECKING:
    from afina.strategies.grounded.grounded import Grounded

Kind = Literal["assistant", "structured", "text"]
REPORT_PAGE, REPORT = "report.html", "report.json"


@dataclass(eq=False)
class ServedRun:
    """name: of its task, made unique. folder: absolute. manifest: of its specialist; None where there is only a report.
    grounded_too: the specialist was trained to answer from passages as well.

    Whatever uses a model runs in `turn`, one at a time.
    """

    name: str
    folder: Path
    manifest: Manifest | None
    turn: Turn
    grounded_too: bool = False
    _specialist: Specialist | None = field(default=None, repr=False)
    _grounded: Grounded | None = field(default=None, repr=False)

    @cached_property
    def task(self) -> Task | None:
        return None if self.manifest is None else Task.from_json(self.manifest.task)

    @cached_property
    def kind(self) -> Kind | None:
        """None: a report alone."""
        if self.task is None:
            return None
        if self.grounded_too:
            return "assistant"
        return "text" if self.task.free_text else "structured"

    @property
    def report_page(self) -> Path | None:
        """Looked for each time: `afina report` may write it while the server runs."""
        path = self.folder / REPORT_PAGE
        return path if path.is_file() else None

    def report(self) -> dict[str, Any] | None:
        """report.json; None where there is none that can be read."""
        try:
            found = read_json(self.folder / REPORT)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def specialist(self) -> Specialist:
        """Raises AfinaError where it cannot be loaded. Only in its turn."""
        if self._specialist is None:
            self._specialist = Specialist.load(self.folder)
        return self._specialist

    def grounded(self) -> Grounded:
        """Who answers with sources. Raises AfinaError where it cannot be loaded. Only in its turn."""
        if self._grounded is None:
            from afina.strategies.grounded.grounded import Grounded

            self._grounded = Grounded.load(self.folder, specialist=self.specialist())
        return self._grounded


class RunShelf:
    """All runs of one server, and the addresses of opened reports."""

    def __init__(self, runs: Iterable[ServedRun]) -> None:
        self.runs = {run.name: run for run in runs}
        self.tickets = Tickets()

    @classmethod
    def open(cls, folders: Sequence[Path], *, taken: Collection[str], most_waiting: int) -> RunShelf:
        """taken: names that no run may have. Raises RunError, or ModelError, for a folder that is no run."""
        runs: list[ServedRun] = []
        names = set(taken)
        for folder in dict.fromkeys(path.expanduser().resolve() for path in folders):
            place = _specialist_place(folder)
            manifest = None if place is None else Manifest.read(place)
            name = _unique(_name(folder, manifest), names)
            names.add(name)
            turn = Turn(name, most_waiting)
            runs.append(ServedRun(name, folder, manifest, turn, place is not None and _answers_from_passages(place)))
        return cls(runs)

    def close(self) -> None:
        for run in self.runs.values():
            run.turn.close()


def _specialist_place(folder: Path) -> Path | None:
    """As `Specialist.load` looks for it; None where the folder has a report alone."""
    if folder.is_file():
        raise RunError(f"{folder}: is a file, expected a run folder (output_dir of a recipe).")
    inside = folder / "specialist"
    place = inside if (inside / MANIFEST).exists() else folder
    return None if not (place / MANIFEST).exists() and (folder / REPORT_PAGE).is_file() else place


def _answers_from_passages(place: Path) -> bool:
    """Raises RunError, ModelError or MachineError where it should and cannot: better now than at the first question."""
    from afina.strategies.grounded.manifest import ASSISTANT

    if not (place / ASSISTANT).exists():
        return False
    from afina.retrieval.record import usable_record
    from afina.retrieval.words import import_tantivy
    from afina.strategies.grounded.grounded import INDEX
    from afina.strategies.grounded.manifest import read_manifest

    settings, _ = read_manifest(place)
    import_tantivy()
    usable_record(place.parent / INDEX, settings.catalogue_key)
    return True


def _name(folder: Path, manifest: Manifest | None) -> str:
    if manifest is not None:
        return Task.from_json(manifest.task).name
    try:
        found = read_json(folder / REPORT)
    except (OSError, ValueError):
        return folder.name
    task = found.get("task") if isinstance(found, dict) else None
    return task if isinstance(task, str) and task else folder.name


def _unique(name: str, taken: Collection[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}-{i}" for i in range(2, len(taken) + 3) if f"{name}-{i}" not in taken)


def said_of(error: AfinaError) -> str:
    """An error in one line, for whoever holds a key."""
    return " ".join(str(error).split())
