"""`afina push`: what is published, where to, and that somebody agreed: one path for folders and the Hub.

Comes in: a `PushRequest`. Goes out: `Pushed`. The publication is put together and proven in a temporary folder; a
destination only takes files.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afina.catalogue.catalogue import Catalogue
from afina.publishing.files import Publication, seal
from afina.publishing.folder import check_folder, write_folder
from afina.publishing.hub import Hub
from afina.publishing.model import ModelSource, build_model, find_model
from afina.publishing.shards import build_shards, find_shards
from afina.publishing.target import FolderTarget, HubTarget, Kind, PublishError, Target, parse_target

Agree = Callable[[Sequence[str]], None]
"""Shown what is about to be sent and where; raises PublishError where it is not agreed to."""


@dataclass(frozen=True)
class PushRequest:
    """source: a run, a specialist, or a catalogue. shards: as 0-4; makes it a catalogue's. private, revision: of the
    Hub.

    license_id: as the Hub names it. languages: ISO 639-1 codes. overwrite: a changed earlier publication in a folder
    may be replaced.
    """

    source: Path
    target: str
    shards: str | None = None
    merged: bool = False
    private: bool = False
    revision: str | None = None
    license_id: str = "other"
    languages: Sequence[str] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class Pushed:
    """where: the folder, or the commit's address. num_sent: files that were not there yet."""

    kind: Kind
    where: str
    num_files: int
    num_bytes: int
    num_sent: int


def push(request: PushRequest, agree: Agree) -> Pushed:
    """Publish. Killed, the same call continues: what is at the destination already is not sent again.

    Raises PublishError, and what a damaged source raises. The destination is then as it was.
    """
    # 1. Everything that can be refused before anything is read or made.
    target = parse_target(request.target)
    model, shards = _find(request)
    kind: Kind = "dataset" if model is None else "model"
    hub = _check_target(request, target, kind)
    # 2. The files, proven and sealed.
    with tempfile.TemporaryDirectory(prefix="afina-push-") as scratch:
        folder = Path(scratch) / "publication"
        folder.mkdir()
        if model is not None:
            made_of = build_model(
                model, folder, merged=request.merged, license_id=request.license_id, languages=request.languages
            )
        else:
            assert shards is not None, "one of the two was found"
            made_of = _build_data(request, shards, target, folder)
        publication = seal(folder, kind, made_of)
        # 3. Where it goes.
        if hub is not None:
            return _upload(publication, hub, request, agree)
        assert isinstance(target, FolderTarget), "what is not the Hub is a folder"
        _say(f"{kind} to {target.text}:", *publication.lines())
        num_sent = write_folder(publication, target.path)
        return Pushed(kind, target.text, len(publication.files), publication.num_bytes, num_sent)


def _find(request: PushRequest) -> tuple[ModelSource | None, Catalogue | None]:
    """What is published: exactly one of the two. Raises PublishError."""
    source = request.source
    if not source.is_dir():
        raise PublishError(f"{source}: no such folder, expected a run, a specialist, or a catalogue.")
    model, shards = find_model(source), find_shards(source)
    if request.shards is not None:
        if shards is None:
            raise PublishError(f"{source}: holds no catalogue, so --shards has no effect. Leave it out.")
        model = None
    if model is None and shards is not None:
        if request.merged:
            raise PublishError("--merged is of a model, but a catalogue is published. Leave it out.")
        if request.shards is None and shards.folder != source:
            raise PublishError(
                f"{source}: holds no specialist yet, but a catalogue of {shards.num_shards} shards. To publish that, "
                "pass --shards, as 0-4 or all."
            )
        return None, shards
    if model is None:
        raise PublishError(
            f"{source}: holds neither a specialist nor a catalogue. Make one first: afina run RECIPE.yaml"
        )
    return model, None


def _check_target(request: PushRequest, target: Target, kind: Kind) -> Hub | None:
    """Raises PublishError for a destination that cannot be, before anything is made. None for a folder."""
    if isinstance(target, HubTarget):
        if target.kind is not None and target.kind != kind:
            raise PublishError(f"{request.target}: names a {target.kind} repository, but a {kind} is published.")
        hub = Hub(target.repository, kind, request.revision)
        hub.require_access()
        return hub
    for name, value in (("--private", request.private), ("--revision", request.revision)):
        if value:
            raise PublishError(
                f"{name} is of the Hub, but {target.text} is a folder, so it has no effect. Leave it out, or write "
                "hf://owner/name."
            )
    check_folder(target.path, overwrite=request.overwrite)
    return None


def _build_data(request: PushRequest, shards: Catalogue, target: Target, folder: Path) -> dict[str, object]:
    title = target.repository.split("/")[1] if isinstance(target, HubTarget) else target.path.resolve().name
    chosen = request.shards or "all"
    return build_shards(shards, chosen, folder, title=title, license_id=request.license_id, languages=request.languages)


def _upload(publication: Publication, hub: Hub, request: PushRequest, agree: Agree) -> Pushed:
    """Show the files, have them agreed to, send them."""
    seen = "for you alone" if request.private else "for everybody to read, unless it is there and private"
    agree([f"{publication.kind} to {hub.endpoint}/{hub.repository} ({hub.revision}), {seen}:", *publication.lines()])
    done = hub.upload(publication, private=request.private)
    if done.num_deleted:
        _say(f"{done.num_deleted} files of the earlier publication were removed")
    return Pushed(publication.kind, done.url, len(publication.files), publication.num_bytes, done.num_sent)


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)
