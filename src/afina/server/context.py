"""What every endpoint reaches: the parts of the running server, put together once by `app.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from afina.server.batch_worker import BatchWorker
    from afina.server.config import ServerConfig
    from afina.server.keys import Keys
    from afina.server.metrics import Meter
    from afina.server.places import Places
    from afina.server.pool import ModelPool
    from afina.server.store import Store
    from afina.server.supervisor import Supervisor


@dataclass
class Context:
    """keys: who may ask. meter: what is counted, and charged against the rate limits. batches: while they run."""

    config: ServerConfig
    places: Places
    store: Store
    pool: ModelPool
    supervisor: Supervisor
    keys: Keys
    meter: Meter
    batches: BatchWorker | None = None


def context_of(request: HTTPConnection) -> Context:
    return cast("Context", request.app.state.context)


def request_id_of(request: HTTPConnection) -> str:
    """The id that the answer's `x-request-id` carries."""
    return cast(str, request.scope["state"]["request_id"])
