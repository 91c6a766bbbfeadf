"""The Hugging Face hub without surprises: no telemetry, quick failure, one clear line for each refusal."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from logging import ERROR, getLogger
from pathlib import Path
from urllib.parse import urlsplit

from afina.core.errors import AfinaError, ModelError

NANO = "afina/nano"


def no_telemetry() -> None:
    """Called before the libraries that would send any are imported; a user's own setting of the rest stays."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it has read the variable already: llguidance imports transformers, which imports it
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]


@contextmanager
def local_code_only() -> Generator[None]:
    """Where bitsandbytes may be imported for the first time. On a CPU with AVX512_BF16 its version 0.50 would fetch
    native code from the hub if the package `kernels` is installed, and complain if it is not."""
    missing = object()
    before = sys.modules.get("kernels", missing)
    logger = getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(ERROR)
    if "bitsandbytes" not in sys.modules:
        sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is missing:
            sys.modules.pop("kernels", None)
        else:
            sys.modules["kernels"] = before  # type: ignore[assignment]


@contextmanager
def quiet() -> Generator[None]:
    """No log lines, bars, telemetry or fetched code while libraries load; their settings come back afterwards."""
    no_telemetry()
    with local_code_only():
        from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    others = [getLogger(name) for name in ("huggingface_hub", "accelerate")]
    levels = [logger.level for logger in others]
    for logger in others:
        logger.setLevel(ERROR)
    try:
        with warnings.catch_warnings(), local_code_only():
            # transformers 5 renames things that PEFT still calls by their old names.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, before in zip(others, levels, strict=True):
            logger.setLevel(before)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def online(name: str) -> bool:
    """Whether the hub can be asked for `name`. Local models never ask it.

    A failing name look-up answers at once; the hub's own client would retry for half a minute.
    """
    if name == NANO or Path(name).expanduser().exists():
        return False
    no_telemetry()
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(k) or os.environ.get(k.upper()) for k in ("https_proxy", "all_proxy")):
        return True
    with suppress(OSError):
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        return True
    return False


def config_file(name: str, revision: str | None) -> Path:
    """config.json of a hub model, downloaded or from the cache. Raises ModelError saying what to do."""
    no_telemetry()
    from huggingface_hub import hf_hub_download

    with explain(name):
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=not online(name)))


@contextmanager
def explain(name: str) -> Generator[None]:
    """Turn what transformers and the hub raise into one ModelError: what was found, what to do."""
    try:
        yield
    except AfinaError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        message = _reason(name, error)
        if message is None:
            raise
        raise ModelError(f"{name}: {message}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(name: str, error: Exception) -> str | None:
    from huggingface_hub import errors

    causes = list(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    first = " ".join(str(error).split())[:300]
    if caused_by(errors.GatedRepoError):
        return (
            f"the model is gated. Accept its licence at https://huggingface.co/{name}, then set HF_TOKEN or run: "
            "hf auth login"
        )
    if caused_by(errors.RepositoryNotFoundError):
        return (
            "the hub knows no such public model. Check the spelling; if it is private or gated, set HF_TOKEN or run: "
            "hf auth login"
        )
    if caused_by(errors.RevisionNotFoundError):
        return "the model has no such revision. Check train.revision."
    if caused_by(errors.HFValidationError):
        return "is neither a folder here nor a Hugging Face id such as owner/model. Check the path."
    if caused_by(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return (
            "is neither a folder here nor in the download cache, and the hub cannot be reached. Connect (or unset "
            "HF_HUB_OFFLINE), copy the model's folder here and name it, or use base_model: afina/nano."
        )
    if caused_by(errors.RemoteEntryNotFoundError, errors.EntryNotFoundError):
        return f"the repository lacks a file that a model needs ({first}). Choose a causal language model's repository."
    if "safetensors" in first and isinstance(error, OSError):
        return "has no safetensors weights; pickled ones are not read. Choose a revision or model that has them."
    if "backend tokenizer" in first:
        return "has no tokenizer.json that can be read. Copy the model's tokenizer files beside its weights."
    if isinstance(error, ImportError):
        return f"needs a library that is not installed: {first}"
    if (
        isinstance(error, OSError | ValueError | RuntimeError | KeyError | TypeError)
        or "Safetensor" in type(error).__name__
        or type(error) is Exception  # the tokenizers library raises no class of its own
    ):
        return f"cannot be loaded: {first}. Expected a complete Hugging Face causal language model."
    return None
