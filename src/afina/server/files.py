"""/v1/files: uploads, lists, contents, deletions; and the files that the server makes itself.

A file is bytes under its id and a row that names it. Between the two lies a mark (`Places.moving`): a file whose mark
is found at start without a row was interrupted, and goes. So a server killed at any moment leaves whole files or none.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from afina.core.storage import explain_write_errors
from afina.server import names
from afina.server.context import Context, context_of
from afina.server.errors import bad_request, no_such_file
from afina.server.fields import too_large, too_small, unknown, wrong_type, wrong_value
from afina.server.places import Places
from afina.server.store import Store, page
from afina.server.tables import File
from afina.server.upload import Upload, plain_name, receive, require_field, too_large_file
from afina.server.wire import now

router = APIRouter()
PURPOSES = ("fine-tune", "assistants", "batch", "user_data", "vision", "evals")
BATCH_EXPIRES_S = 30 * 86400
EXPIRES_S = (3600, 30 * 86400)
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
CHUNK_BYTES = 256 * 1024
# How much of a training file says whether it is JSONL at all; its lines are checked by the job.
LOOK_BYTES, LOOK_LINES = 1024 * 1024, 20


def file_object(file: File) -> dict[str, Any]:
    return {
        "object": "file",
        "id": file.id,
        "purpose": file.purpose,
        "filename": file.filename,
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "status": "processed",
        "status_details": None,
    }


# -- for the rest of the server ------------------------------------------------------------------------------------


def add_made(ctx: Context, purpose: str, filename: str, data: bytes | Path, expires_after_s: int | None = None) -> File:
    """Keep a file that the server made, as results or a batch's output. data: bytes, or a file that is copied.

    Never inside a session. Raises MachineError when the disk refuses.
    """
    staged = ctx.places.incoming()
    with explain_write_errors(ctx.places.files):
        try:
            with staged.open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
            return _keep(ctx, staged, purpose, filename, expires_after_s)
        finally:
            staged.unlink(missing_ok=True)


def require(ctx: Context, file_id: str, purpose: str) -> File:
    """The file, which must have the purpose. Raises ApiError 404 when there is none, 400 when it is for another."""
    with ctx.store.reading() as session:
        file = _find(session, file_id)
    if file.purpose != purpose:
        message = f"The file {file_id} has the purpose '{file.purpose}', but '{purpose}' is needed."
        raise bad_request(message, "id", "invalid_file_purpose")
    return file


def sweep(ctx: Context) -> int:
    """Remove expired files; how many there were."""
    with ctx.store.reading() as session:
        expired = session.scalars(select(File.id).where(~_alive())).all()
    return sum(_remove(ctx, file_id) for file_id in expired)


def recover(store: Store, places: Places) -> None:
    """What a killed server left between disk and database, at start, while nothing else runs."""
    for mark in places.staging.glob("*.moving"):
        file_id = mark.name.removesuffix(".moving")
        with store.reading() as session:
            kept = session.scalar(select(File.id).where(File.id == file_id))
        if kept is None:
            places.file(file_id).unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
    for left in places.staging.iterdir():
        left.unlink(missing_ok=True)


# -- endpoints -----------------------------------------------------------------------------------------------------


@router.post("/files")
async def upload_file(request: Request) -> dict[str, Any]:
    ctx = context_of(request)
    upload = await receive(
        request.headers.get("content-type", ""),
        request.stream(),
        ctx.places.incoming(),
        file_field="file",
        most_bytes=ctx.config.max_file_bytes,
        timeout_s=ctx.config.body_timeout_s,
    )
    return await run_in_threadpool(_accept, ctx, upload)


def _accept(ctx: Context, upload: Upload) -> dict[str, Any]:
    try:
        purpose, filename, expires_after_s = _checked(ctx, upload)
        if purpose == "fine-tune":
            _require_jsonl(upload.path)
        return file_object(_keep(ctx, upload.path, purpose, filename, expires_after_s))
    finally:
        upload.path.unlink(missing_ok=True)


def _checked(ctx: Context, upload: Upload) -> tuple[str, str, int | None]:
    """Purpose, name and life of what was sent."""
    fields = upload.fields
    for name in fields:
        if name not in ("purpose", ANCHOR, SECONDS):
            raise unknown(name[:100])
    if upload.filename is None:
        raise bad_request("Missing required parameter: 'file'.", "file", "missing_required_parameter")
    purpose = require_field(upload, "purpose")
    if purpose not in PURPOSES:
        shown = ", ".join(f"'{known}'" for known in PURPOSES)
        raise bad_request(f"'{purpose[:100]}' is not one of [{shown}] - 'purpose'", "purpose")
    if upload.num_bytes == 0:
        raise bad_request("File is empty.", "file")
    if purpose == "batch" and upload.num_bytes > ctx.config.max_batch_file_bytes:
        raise too_large_file(ctx.config.max_batch_file_bytes)
    return purpose, plain_name(upload.filename), _life(fields, purpose)


def _life(fields: dict[str, str], purpose: str) -> int | None:
    """Seconds until the file expires; None for never."""
    if ANCHOR not in fields and SECONDS not in fields:
        return BATCH_EXPIRES_S if purpose == "batch" else None
    for name in (ANCHOR, SECONDS):
        if name not in fields:
            raise bad_request(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    if fields[ANCHOR] != "created_at":
        raise wrong_value(ANCHOR, fields[ANCHOR], ["created_at"])
    text = fields[SECONDS].strip()
    if not (text.isascii() and text.lstrip("-").isdigit() and len(text) < 16):
        raise wrong_type(SECONDS, "an integer", fields[SECONDS])
    least, most = EXPIRES_S
    if int(text) < least:
        raise too_small(SECONDS, least, int(text))
    if int(text) > most:
        raise too_large(SECONDS, most, int(text))
    return int(text)


def _require_jsonl(path: Path) -> None:
    """Refuse what is no JSONL at all: a table, a JSON array, an archive. A bad line among good ones is the job's."""
    with path.open("rb") as file:
        head = file.read(LOOK_BYTES)
        whole = not file.read(1)
    lines = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    cut = b"" if whole else lines.pop()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    looked = list(itertools.islice(numbered, LOOK_LINES))
    bad = [number for number, line in looked if not _is_object(line)]
    if not looked and cut.lstrip().startswith(b"{"):
        return  # one line, longer than what is looked at
    if not looked or len(bad) * 2 > len(looked):
        number = bad[0] if bad else 1
        raise bad_request(
            "Expected file to have JSONL format, where every line is a valid JSON dictionary. "
            f"Line {number} is not a dictionary (dictionaries start with '{{' and end with '}}').",
            "file",
        )


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


@router.get("/files")
def list_files(
    request: Request,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10000)] = 10000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    where = [_alive()] if purpose is None else [_alive(), File.purpose == purpose]
    with context_of(request).store.reading() as session:
        found = page(session, File, *where, limit=limit, after=after, ascending=order == "asc")
    rows = found.rows
    return {
        "object": "list",
        "data": [file_object(file) for file in rows],
        "first_id": rows[0].id if rows else None,
        "last_id": rows[-1].id if rows else None,
        "has_more": found.has_more,
    }


@router.get("/files/{file_id}")
def retrieve_file(request: Request, file_id: str) -> dict[str, Any]:
    with context_of(request).store.reading() as session:
        return file_object(_find(session, file_id))


@router.delete("/files/{file_id}")
def delete_file(request: Request, file_id: str) -> dict[str, Any]:
    if not _remove(context_of(request), file_id, _alive()):
        raise no_such_file(file_id)
    return {"object": "file", "id": file_id, "deleted": True}


@router.get("/files/{file_id}/content")
def file_content(request: Request, file_id: str) -> Response:
    ctx = context_of(request)
    with ctx.store.reading() as session:
        file = _find(session, file_id)
    try:
        bytes_ = ctx.places.file(file.id).open("rb")  # open, so that a deletion meanwhile does not cut it off
    except FileNotFoundError:
        raise no_such_file(file_id) from None
    headers = {"content-length": str(os.fstat(bytes_.fileno()).st_size)}
    return StreamingResponse(_chunks(bytes_), media_type="application/octet-stream", headers=headers)


async def _chunks(file: IO[bytes]) -> AsyncGenerator[bytes]:
    with file:
        while chunk := await to_thread.run_sync(file.read, CHUNK_BYTES):
            yield chunk


# -- rows and bytes ------------------------------------------------------------------------------------------------


def _alive() -> ColumnElement[bool]:
    return or_(File.expires_at.is_(None), File.expires_at > now())


def _find(session: Session, file_id: str) -> File:
    file = session.scalar(select(File).where(File.id == file_id, _alive()))
    if file is None:
        raise no_such_file(file_id)
    return file


def _keep(ctx: Context, staged: Path, purpose: str, filename: str, expires_after_s: int | None) -> File:
    """Mark, move, row, unmark: in this order."""
    file_id, created_at = names.file_id(), now()
    num_bytes = staged.stat().st_size
    final, mark = ctx.places.file(file_id), ctx.places.moving(file_id)
    mark.touch()
    staged.rename(final)
    _sync_folder(ctx.places.files)
    file = File(
        id=file_id,
        purpose=purpose,
        filename=filename,
        bytes=num_bytes,
        created_at=created_at,
        expires_at=None if expires_after_s is None else created_at + expires_after_s,
    )
    try:
        with ctx.store.session() as session:
            session.add(file)
    except BaseException:
        final.unlink(missing_ok=True)
        raise
    finally:
        mark.unlink(missing_ok=True)
    return file


def _remove(ctx: Context, file_id: str, *where: ColumnElement[bool]) -> bool:
    """Mark, row, bytes, unmark. Whether this call removed it: of two at once, one did."""
    with ctx.store.reading() as session:
        if session.scalar(select(File.id).where(File.id == file_id, *where)) is None:
            return False
    mark = ctx.places.moving(file_id)
    mark.touch()
    with ctx.store.session() as session:
        gone = session.scalars(delete(File).where(File.id == file_id).returning(File.id)).all()
    if gone:
        ctx.places.file(file_id).unlink(missing_ok=True)
    mark.unlink(missing_ok=True)
    return bool(gone)


def _sync_folder(folder: Path) -> None:
    """So that the new name is on the disk before the row that relies on it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
