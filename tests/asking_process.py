"""Processes that ask and can be killed: forked from one that has imported what they need, so that each begins at once.

Reads one line of JSON per process: {"url", "cache", "texts", "num_threads", "price", "cap_usd"}. Says its number, and
when it has ended its exit code: 0 when all was answered, 3 when the money was gone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from afina.providers.asking import Asker
from afina.providers.budget import Budget, BudgetError
from afina.providers.cache import AnswerCache
from afina.providers.client import connect, find_provider
from afina.providers.prices import Price

NO_MONEY = 3


def body(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_completion_tokens": 50}


def work(job: dict[str, Any]) -> int:
    cache = AnswerCache(Path(job["cache"]))
    price = Price("m", "a test", "today", input=job["price"], output=job["price"]) if job["price"] else None
    budget = Budget(job["cap_usd"], cache.spent_usd)
    asker = Asker(connect(find_provider(job["url"])), cache, price, budget, batch=False, num_threads=job["num_threads"])
    try:
        answers = asker.ask([body(text) for text in job["texts"]], None)
    except BudgetError:
        return NO_MONEY
    assert [found.content for found in answers] == [text.upper() for text in job["texts"]]
    return 0


def main() -> None:
    import openai

    client = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9/v1")
    assert client.chat.completions.with_raw_response is not None  # what the SDK imports late is imported now
    print("ready", flush=True)
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            code = 1
            try:
                code = work(json.loads(line))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(code)
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
