"""The recipe's `models` that answer elsewhere: by name or address to an `Asker`, with key, price and limits.

Comes in: a `ModelConfig`. Goes out: an `Asker`, or one clear line why there is none. Nothing is sent yet. What is asked
is not known here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from afina.core.strategy_config import ModelConfig
from afina.providers.asking import Asker
from afina.providers.budget import Budget, BudgetError
from afina.providers.cache import AnswerCache
from afina.providers.client import Provider, ProviderError, connect, find_provider
from afina.providers.names import is_fine_tune
from afina.providers.prices import FREE, Price, load_prices

# Their addresses, and what they call the limit of an answer's tokens. Ollama passes over names that it does not know,
# and a limit that is passed over is none.
NAMED = {
    "groq": Provider("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "maritaca": Provider("maritaca", "https://chat.maritaca.ai/api", "MARITACA_API_KEY", "max_tokens"),
    "ollama": Provider("ollama", "http://127.0.0.1:11434/v1", "OLLAMA_API_KEY", "max_tokens"),
}
NAMES = ("openai", "azure", *NAMED)
BATCH_PAUSE_S, LOCAL_BATCH_PAUSE_S = 30.0, 1.0


def find_endpoint(text: str, api_key_env: str | None = None) -> Provider:
    """The provider that a model of the recipe names. Raises ProviderError."""
    if text in NAMED:
        known = NAMED[text]
        return Provider(known.name, known.base_url, api_key_env or known.key_variable, known.limit_key)
    if text not in NAMES and "/" not in text:
        near = difflib.get_close_matches(text.lower(), NAMES, n=1)
        raise ProviderError(
            f"provider {text!r}: expected {', '.join(NAMES)}, or an address as http://127.0.0.1:8000/v1."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    return find_provider(text, api_key_env)


def find_chat_price(provider: Provider, config: ModelConfig) -> Price | None:
    """What answers cost: the user's own price, else OpenAI's for OpenAI; a server on this machine is free.

    None where no price of answers is known.
    """
    of_openai, fine_tuned = provider.name == "openai", is_fine_tune(config.model)
    found = load_prices(config.prices, packaged=of_openai, fine_tuned=fine_tuned).find(config.model)
    if found is not None and found.answers_usd(1, 1) is not None:
        return found
    return FREE if provider.is_local else None


def connect_model(
    config: ModelConfig, cache: AnswerCache, budget: Budget, tell: Callable[[str], None] = lambda line: None
) -> Asker:
    """Who asks a model of the recipe. Raises ProviderError without a key, BudgetError for a cap that cannot be kept.

    budget: shared by all models that the cap is for. tell: is given what the user should know while it is asked.
    """
    assert config.provider is not None, "called for a model at a provider"
    provider = find_endpoint(config.provider, config.api_key_env)
    # A key that the recipe names is wanted; else a server on this machine mostly needs none.
    key_optional = provider.is_local and config.api_key_env is None
    connection = connect(provider, key_optional=key_optional, timeout_s=config.timeout_s)
    price = find_chat_price(provider, config)
    if price is None and budget.cap_usd is not None:
        raise BudgetError(
            f"max_cost_usd is {budget.cap_usd:g}, but no price of {config.model} at {provider.name} is known, so the "
            f"cap cannot be kept. Name a file with `models: {{{config.model}: {{input: ..., output: ...}}}}` (US "
            "dollars per million tokens) in the model's `prices`, or remove the cap."
        )
    return Asker(
        connection,
        cache,
        price,
        budget,
        batch=config.batch,
        num_threads=config.concurrency,
        pause_s=LOCAL_BATCH_PAUSE_S if provider.is_local else BATCH_PAUSE_S,
        tell=tell,
    )
