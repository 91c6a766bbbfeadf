"""The verb `push`. No logic."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer


def push(
    source: Annotated[Path, typer.Argument(help="A run, a specialist, or a run's catalogue.", metavar="RUN")],
    target: Annotated[
        str, typer.Argument(help="owner/name on the Hugging Face Hub, or a folder, as ./name.", metavar="TARGET")
    ],
    shards: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this annotation
        typer.Option(help="Publish these shards of the catalogue, as 0-4, 0,7 or all, and not the model."),
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Adapter and base as one model.")] = False,
    private: Annotated[bool, typer.Option("--private", help="A repository that others cannot see.")] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Branch of the repository; main when not given.", metavar="BRANCH"),
    ] = None,
    license_id: Annotated[
        str, typer.Option("--license", help="As the Hub names it: mit, cc-by-4.0, llama3.2, ...", metavar="ID")
    ] = "other",
    language: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Of the texts, as pt or en; give it once for each.", metavar="CODE"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send without asking; replace a changed folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Publish a model or a catalogue's shards.

    To the Hugging Face Hub or to a folder, the same files. Killed, the same command sends what is missing.
    """
    from afina.publishing import PushRequest
    from afina.publishing import push as publish

    request = PushRequest(
        source=source,
        target=target,
        shards=shards,
        merged=merged,
        private=private,
        revision=revision,
        license_id=license_id,
        languages=language or (),
        overwrite=yes,
    )
    done = publish(request, _asker(yes))
    if as_json:
        print(json.dumps(asdict(done), ensure_ascii=False, indent=1))
        return
    print(f"{done.num_files} files, {done.num_bytes:,} bytes; {done.num_sent} of them new or changed")
    print(f"Published: {done.where}")


def _asker(yes: bool):
    def agree(lines: Sequence[str]) -> None:
        from afina.publishing import PublishError

        print(*lines, sep="\n", file=sys.stderr, flush=True)
        if yes:
            return
        if not sys.stdin.isatty():
            raise PublishError("this sends files to another machine. Pass --yes to agree.")
        if not typer.confirm("Send them?", err=True):
            raise PublishError("not agreed to; nothing was sent.")

    return agree
