"""A publication into a repository of the Hugging Face Hub: one commit, and only the files that are not there yet.

Comes in: a sealed publication, owner/name. Goes out: the commit's address. huggingface_hub speaks the protocol; large
files are stored by their hash before the commit, so a killed upload, given again, sends the rest, and the repository is
never half of one publication and half of another. The token is huggingface_hub's own (HF_TOKEN, or `hf auth login`):
it is never read into a message or a file.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from afina import __version__
from afina.engine.hub import no_telemetry
from afina.publishing.files import MANIFEST, Publication, read_manifest
from afina.publishing.target import Kind, PublishError

MAIN = "main"
FOREIGN = (".gitattributes", "README.md", "LICENSE", ".gitignore")  # what a new repository may hold by itself
LONGEST_SHOWN = 200  # characters of what a server says


@dataclass(frozen=True)
class Uploaded:
    """url: of the commit. num_sent: files that were new or changed. num_deleted: of an earlier publication."""

    url: str
    num_sent: int
    num_deleted: int


class Hub:
    """One repository. kind: of what is published there. revision: a branch that is there; None for the main one."""

    def __init__(self, repository: str, kind: Kind, revision: str | None = None) -> None:
        no_telemetry()
        try:
            import huggingface_hub
        except ImportError as error:  # transformers needs it, so this is a broken installation
            raise PublishError(
                "huggingface_hub is not installed. Install it with: pip install huggingface_hub"
            ) from error
        # The variable is read when the library is imported, and transformers may have done that before.
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
        self.repository, self.kind, self.revision = repository, kind, revision or MAIN
        endpoint = (os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT).rstrip("/")
        self._api = huggingface_hub.HfApi(endpoint, library_name="afina", library_version=__version__)
        self._of: dict[str, Any] = {"repo_id": repository, "repo_type": kind}

    @property
    def endpoint(self) -> str:
        return str(self._api.endpoint)

    def require_access(self) -> None:
        """Raises PublishError where the Hub must not be asked, or no token is known. Sends nothing."""
        from huggingface_hub import constants, get_token

        if constants.HF_HUB_OFFLINE or _is_set("HF_HUB_OFFLINE") or _is_set("TRANSFORMERS_OFFLINE"):
            raise PublishError(
                f"{self.repository}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it to publish there, or "
                "publish to a folder."
            )
        if not get_token():
            raise PublishError(
                f"{self.repository}: no token for {self.endpoint}. Set HF_TOKEN to one with write access, or run: "
                "hf auth login"
            )

    def upload(self, publication: Publication, *, private: bool) -> Uploaded:
        """Make the repository if need be, send what is missing, commit. Raises PublishError.

        private: of a new repository; one that is there and public is refused.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with self._explained():
            # 1. The repository, and that it is ours to write and as private as was asked.
            self._api.create_repo(**self._of, private=private or None, exist_ok=True)
            found = self._api.repo_info(**self._of)
            if private and not found.private:
                raise PublishError(
                    f"{self.repository}: is there already, and everybody can read it, but --private was asked. Change "
                    "it in its settings, or choose another name. Nothing was sent."
                )
            # 2. What it holds, and what of that an earlier publication wrote.
            there = self._files()
            stale = self._stale(publication, there)
            # 3. One commit; what has the same hash there is left out of it.
            additions = [
                CommitOperationAdd(file.path, str(publication.folder / file.path)) for file in publication.files
            ]
            deletions = [CommitOperationDelete(path) for path in stale]
            commit = self._api.create_commit(
                **self._of,
                operations=[*additions, *deletions],
                commit_message=f"Publish with Afina {__version__}",
                revision=self.revision,
            )
            num_sent = sum(one._remote_oid is None or one._remote_oid != one._local_oid for one in additions)
        return Uploaded(commit.commit_url, num_sent, len(stale))

    def _files(self) -> set[str]:
        tree = self._api.list_repo_tree(**self._of, revision=self.revision, recursive=True)
        return {entry.path for entry in tree if hasattr(entry, "size")}

    def _stale(self, publication: Publication, there: set[str]) -> list[str]:
        """Files of an earlier publication that this one has not. Raises PublishError for those of somebody else."""
        ours = {file.path for file in publication.files}
        before: set[str] = set()
        if MANIFEST in there:
            with tempfile.TemporaryDirectory() as folder:
                path = self._api.hf_hub_download(
                    self.repository, MANIFEST, repo_type=self.kind, revision=self.revision, local_dir=folder
                )
                before = set(read_manifest(Path(path)) or ()) | {MANIFEST}
        foreign = sorted(there - before - set(FOREIGN))
        if foreign:
            raise PublishError(
                f"{self.repository}: holds files that no publication wrote ({foreign[0]}), so nothing was sent. Choose "
                "another name, or a --revision of its own."
            )
        return sorted((there & before) - ours)

    # -- errors -----------------------------------------------------------------------------------

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Turn what the Hub's client raises into one PublishError; its bars are shown on a terminal only."""
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        bars = not are_progress_bars_disabled() and not sys.stderr.isatty()
        if bars:
            disable_progress_bars()
        logger = getLogger("huggingface_hub")
        level = logger.level
        logger.setLevel(ERROR)  # it warns where nothing is new, which is said anyway
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a card without a licence: the Hub shows that itself
                yield
        except (PublishError, MemoryError):
            raise
        except Exception as error:
            reason = self._reason(error)
            if reason is None:
                raise
            raise PublishError(f"{self.repository}: {reason}") from error
        finally:
            logger.setLevel(level)
            if bars:
                enable_progress_bars()

    def _reason(self, error: Exception) -> str | None:
        """What to tell the user; None for a bug of ours."""
        from huggingface_hub import errors

        causes = list(_chain(error))
        if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
            return "HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it."
        if any(isinstance(cause, errors.HFValidationError) for cause in causes):
            return f"is no name of a repository: {_first_line(error)}"
        if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
            return f"has no branch {self.revision!r}. Make it there (hf repos branch create), or leave --revision out."
        answered: Any = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
        if answered is not None:
            said = _first_line(answered.server_message or "", "")
            return self._status_reason(answered.response.status_code, f" ({self._redacted(said)})" if said else "")
        if any(_is_network(cause) for cause in causes):
            said = self._redacted(_first_line(causes[-1]))
            return (
                f"the connection to {self.endpoint} failed ({said}). What was uploaded is kept there; the same command "
                "sends the rest."
            )
        if any(isinstance(cause, ValueError) for cause in causes):
            said = self._redacted(_first_line(error))
            return f"what {self.endpoint} answered is not what a Hub says ({said}). Is HF_ENDPOINT right?"
        return None

    def _status_reason(self, status: int, said: str) -> str:
        again = "What was uploaded is kept there; the same command sends the rest."
        match status:
            case 401:
                hint = "Set HF_TOKEN to one with write access, or run: hf auth login"
                return f"{self.endpoint} does not know the token{said}. {hint}"
            case 403:
                return f"the token may not write there{said}. Use one with write access, or a name of your own."
            case 404:
                return f"is not there, or the token may not see it{said}. Check owner and name."
            case 409 | 412:
                return f"was changed by somebody else at the same time{said}. Give the same command again."
            case 413:
                return f"the Hub does not take so much at once{said}. Publish fewer shards."
            case 429:
                return f"the Hub asks to wait, for there were too many requests{said}. {again}"
            case _ if status >= 500:
                return f"the Hub fails with status {status}{said}. {again}"
            case _:
                return f"the Hub refuses the publication with status {status}{said}. Correct that, and publish again."

    @staticmethod
    def _redacted(text: str) -> str:
        from huggingface_hub import get_token

        token = get_token()
        return text.replace(token, "***") if token else text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_network(cause: BaseException) -> bool:
    """Errors of the HTTP library (huggingface_hub has changed it once), and of the sockets below it."""
    return type(cause).__module__.startswith("httpx") or isinstance(cause, ConnectionError | TimeoutError)


def _first_line(found: object, otherwise: str = "no reason given") -> str:
    lines = [line.strip() for line in str(found).splitlines() if line.strip()]
    return lines[0][:LONGEST_SHOWN] if lines else otherwise


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
