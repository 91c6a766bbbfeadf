"""A specialist in LangChain: a chat model for `prompt | llm | parser`, and a runnable from inputs to an answer object.

Only langchain-core is used (the extra `langchain`). Nothing here switches on tracing: what LangChain sends where is
decided by its own environment variables alone.
"""

from __future__ import annotations

from afina.integrations import MissingExtraError

try:
    from afina.integrations.langchain.chat import ChatAfina
    from afina.integrations.langchain.prompt_text import PromptError
    from afina.integrations.langchain.runnable import SpecialistRunnable
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "langchain_core":
        raise
    raise MissingExtraError(
        "langchain-core is not installed. Install it with: pip install 'afina[langchain]'"
    ) from missing

__all__ = ["ChatAfina", "PromptError", "SpecialistRunnable"]
