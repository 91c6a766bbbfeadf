"""The application: parts, routes, and what every request passes.

Comes in: a ServerConfig. Goes out: an ASGI application whose lifespan opens the data folder, the database, the models
and the jobs, and closes them. Knows every part and does nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Any, cast

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from afina.server import ask, files, health
from afina.server.batch_worker import start_batches
from afina.server.config import ServerConfig
from afina.server.context import Context
from afina.server.errors import ApiError
from afina.server.gate import Door, Envelope, Intake, Turnstile, answer, unknown_url
from afina.server.limits import Limits
from afina.server.metrics import Meter
from afina.server.page import api as page_api
from afina.server.page.files import PageFiles
from afina.server.page.keys import PageKeys
from afina.server.page.runs import RunShelf
from afina.server.places import Places
from afina.server.pool import ModelPool
from afina.server.refusals import refusal, unparsable
from afina.server.store import Store
from afina.server.supervisor import Supervisor

log = logging.getLogger("afina.server")
ROUTES = ("files", "models", "fine_tuning", "chat", "completions", "embeddings", "batches", "responses")
SWEEP_EVERY_S = 60.0
THREADS = 64  # for plain endpoints, which wait for the disk and the database
NO_TELEMETRY = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False,
}  # fmt: skip


def create_app(config: ServerConfig, *, preset_key: str | None = None, log_requests: bool = False) -> FastAPI:
    """preset_key: AFINA_API_KEY. While the application lives, `app.state.context` is its Context and
    `app.state.first_key` the key that was made because there was none, else None; `app.state.failure` is why it could
    not start. Raises AfinaError for a run folder that is none."""
    names = {*config.models, *config.short_names}
    shelf = RunShelf.open(config.runs, taken=names, most_waiting=config.max_waiting)
    meter = Meter(Limits(config.requests_per_minute, config.tokens_per_minute))
    app = FastAPI(
        title="Afina",
        lifespan=_lifespan(config, meter, preset_key, shelf),
        openapi_url=None,  # its pages would load scripts from elsewhere
        redirect_slashes=False,
        telemetry=cast(Any, NO_TELEMETRY),
    )
    app.state.context = app.state.first_key = app.state.failure = None
    app.state.shelf = shelf
    for name in ROUTES:
        app.include_router(import_module(f"afina.server.{name}").router, prefix="/v1")
    for router in (page_api.router, ask.router, health.router):
        app.include_router(router)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(ValidationError, _invalid_value)
    # The last one added is the first one passed.
    app.add_middleware(cast(Any, Intake), config=config)
    app.add_middleware(cast(Any, Turnstile), limits=meter.limits)
    app.add_middleware(cast(Any, Door), keys=lambda: app.state.context.keys)
    app.add_middleware(cast(Any, PageFiles), tickets=shelf.tickets)
    app.add_middleware(cast(Any, Envelope), meter=meter, organisation=config.organisation, log_requests=log_requests)
    return app


def _lifespan(
    config: ServerConfig, meter: Meter, preset_key: str | None, shelf: RunShelf
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        try:
            with contextlib.ExitStack() as stack:
                try:
                    context, app.state.first_key = _open(config, meter, preset_key, stack)
                    stack.callback(shelf.close)
                except Exception as error:
                    app.state.failure = error
                    raise
                app.state.context = context
                to_thread.current_default_thread_limiter().total_tokens = THREADS
                sweeper = asyncio.create_task(_sweep(context))
                batches = start_batches(context)
                try:
                    yield
                finally:
                    sweeper.cancel()
                    await batches.stop()
                    # A close that waits must not stop the loop, on which answers under way still end.
                    await to_thread.run_sync(stack.pop_all().close)
        finally:
            app.state.context = None

    return lifespan


def _open(
    config: ServerConfig, meter: Meter, preset_key: str | None, stack: contextlib.ExitStack
) -> tuple[Context, str | None]:
    """Everything in the order of need; `stack` closes it in the other. The second: a key that was made."""
    places = Places(config.data_dir)
    places.prepare()
    stack.enter_context(places.held())
    store = Store(config.url_of_database(places.database))
    stack.callback(store.close)
    files.recover(store, places)
    keys = PageKeys(store)
    first_key = keys.first_key(preset_key)
    pool = ModelPool(config, store, places)
    stack.callback(pool.close)
    supervisor = Supervisor(config, store, places, pool)
    context = Context(config, places, store, pool, supervisor, keys, meter)
    health.watch(context)
    supervisor.start()
    stack.callback(supervisor.stop)
    return context, first_key


async def _sweep(context: Context) -> None:
    """Expired files go, also when nobody asks for them."""
    while True:
        try:
            await to_thread.run_sync(files.sweep, context)
        except Exception:
            log.exception("the sweep of expired files failed; it is tried again")
        await asyncio.sleep(SWEEP_EVERY_S)


async def _refused(_: Request, error: Exception) -> Response:
    return answer(cast(ApiError, error))


async def _refused_by_framework(request: Request, error: Exception) -> Response:
    """What Starlette and FastAPI refuse by themselves, in the contract's words."""
    raised = cast(HTTPException, error)
    method, path = request.method, request.url.path
    if raised.status_code == 404:
        return answer(unknown_url(method, path))
    if raised.status_code == 405:
        message = f"Not allowed to {method} on {path[:200]}. (HINT: Perhaps you meant to use a different HTTP method?)"
        return answer(ApiError(405, message, code="method_not_supported", headers=dict(raised.headers or {})))
    if raised.status_code == 400:
        return answer(unparsable())
    return answer(ApiError(raised.status_code, str(raised.detail), headers=dict(raised.headers or {})))


async def _invalid_request(_: Request, error: Exception) -> Response:
    invalid = cast(RequestValidationError, error)
    return answer(refusal(invalid.errors(), invalid.body))


async def _invalid_value(_: Request, error: Exception) -> Response:
    problems = cast(ValidationError, error).errors()
    return answer(refusal([{**problem, "loc": ("body", *problem["loc"])} for problem in problems], None))
