"""The models that answer: loaded when first asked for, shared where they can be, unloaded when memory is short.

Comes in: names as clients know them. Goes out: `Served`, a model ready to answer under that name. Adapters of one base
share its weights and take turns; whole models stand for themselves. Loading one model holds up nobody who asks for
another. Knows which folder a name stands for; nothing of requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import psutil
from sqlalchemy import select

from afina.core.storage import read_json
from afina.engine.batching import Batcher, InferenceThread
from afina.engine.chat import ChatFormat, ChatStyle
from afina.engine.codec import Codec
from afina.engine.generation import Generation
from afina.engine.loader import BaseSpec, specialist_spec, weights_folder
from afina.engine.prefix import RecentTexts
from afina.server.config import Alias, ServerConfig
from afina.server.errors import no_such_chat_model, overloaded
from afina.server.places import Places
from afina.server.store import Store
from afina.server.tables import Model
from afina.server.weights import Weights, serving_dtype

T = TypeVar("T")
RECENT_BYTES = 256 * 2**20  # of keys and values of recent texts, of all models together
EMBED_TOKENS = 2048  # in one pass, so that answers wait little for a long list


@dataclass(frozen=True)
class _Target:
    """What a name stands for. adapter: a folder, or None; spec: the base under it, or the whole model."""

    spec: BaseSpec
    adapter: Path | None = None


@dataclass
class _Engine:
    """A target that is loaded. users: the handles that were given out."""

    target: _Target
    weights: Weights
    adapter: str | None
    batcher: Batcher
    owner: int
    num_bytes: int
    used_at: float = field(default_factory=time.monotonic)
    users: WeakSet[Served] = field(default_factory=lambda: WeakSet[Served]())

    @property
    def idle(self) -> bool:
        return not self.users and not self.batcher.busy


@dataclass(eq=False)
class Served:
    """A model under one of its names. It stays loaded while this object lives.

    name: in full, as answers carry it. context: tokens of prompt and answer together.
    """

    name: str
    codec: Codec
    chat: ChatFormat
    context: int
    base_name: str
    _batcher: Batcher
    _thread: InferenceThread
    _max_waiting: int

    def submit(self, generation: Generation) -> None:
        """Let the model answer. Raises ApiError when too many wait."""
        if self._batcher.num_waiting >= self._max_waiting:
            raise overloaded()
        self._batcher.submit(generation)

    def embed(self, texts_ids: Sequence[Sequence[int]], gone: Callable[[], bool] = lambda: False) -> list[np.ndarray]:
        """The mean of each text's last hidden states, of length 1, float32; in order. Waits for its turns. gone: asked
        before each of them; where nobody wants the rest, it is left out."""
        found: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(texts_ids)
        order = sorted(range(len(texts_ids)), key=lambda i: len(texts_ids[i]))
        while order and not gone():
            together = [order.pop()]
            longest = len(texts_ids[together[0]])
            while order and (len(together) + 1) * longest <= EMBED_TOKENS:
                together.append(order.pop())
            # An empty text still has a meaning to ask for: that of an end.
            chosen = [list(texts_ids[i]) or [self.codec.eos] for i in together]
            vectors = self._thread.call(self._batcher, lambda chosen=chosen: self._batcher.embed(chosen)).result()
            for i, vector in zip(together, vectors, strict=True):
                found[i] = vector
        return found


class ModelPool:
    """All models of one server, and the thread that runs them."""

    def __init__(self, config: ServerConfig, store: Store, places: Places) -> None:
        self.config, self.store, self.places = config, store, places
        self.budget_bytes = config.memory_budget_bytes or psutil.virtual_memory().total // 2
        self._recent = RecentTexts(RECENT_BYTES)
        self._thread = InferenceThread()
        self._lock = threading.Lock()
        self._engines: dict[_Target, Future[_Engine]] = {}
        self._weights: dict[BaseSpec, Future[Weights]] = {}
        self._retired: list[_Engine] = []
        self._names: dict[str, _Target] = {}
        self._owners = count()
        self._thread.start()

    def get(self, name: str) -> Served:
        """The model under a name, loaded if it is not. Raises ApiError for an unknown name, ModelError for a model that
        cannot be loaded."""
        full = self.config.full_name(name)
        if full is not None:
            alias = self.config.models[full]
            return self._served(full, self._base_target(alias), alias, alias.base_model, alias.style)
        with self.store.reading() as session:
            row = session.scalar(select(Model).where(Model.name == name))
            found = None if row is None else (row.folder, row.base)
        if found is None:
            raise no_such_chat_model(name)
        folder, base = self.places.absolute(found[0]), found[1]
        about = read_json(folder / "served.json") if (folder / "served.json").exists() else {}
        target = self._tuned_target(folder)
        alias = self.config.alias(base)
        self._names[name] = target
        return self._served(name, target, alias, str(about.get("base_name") or base), about.get("style", "auto"))

    def forget(self, name: str) -> None:
        """A model was deleted: it is unloaded as soon as nobody uses it."""
        target = self._names.pop(name, None)
        with self._lock:
            future = None if target is None else self._engines.pop(target, None)
            if future is not None and future.done() and future.exception() is None:
                self._retired.append(future.result())
        self._make_room(0)

    def answers(self) -> dict[str, float]:
        """How many are being written, and how many wait for it."""
        with self._lock:
            loaded = [f.result() for f in self._engines.values() if f.done() and f.exception() is None]
            batchers = [engine.batcher for engine in (*loaded, *self._retired)]
        return {
            "running": float(sum(batcher.num_rows for batcher in batchers)),
            "waiting": float(sum(batcher.num_waiting for batcher in batchers)),
        }

    def close(self) -> None:
        """Stop; whoever waits for an answer is told."""
        self._thread.stop()
        with self._lock:
            self._engines.clear()
            self._weights.clear()
            self._retired.clear()

    # -- names ----------------------------------------------------------------------------------

    def _base_target(self, alias: Alias) -> _Target:
        held = "4bit" if alias.train.get("load_in_4bit") else "8bit" if alias.train.get("load_in_8bit") else "none"
        spec = BaseSpec(alias.base_model, alias.train.get("revision"), held)
        return _Target(replace(spec, dtype=serving_dtype(spec)))

    def _tuned_target(self, folder: Path) -> _Target:
        place, spec = weights_folder(folder), specialist_spec(folder)
        if (place / "adapter_config.json").exists():
            return _Target(replace(spec, dtype=serving_dtype(spec)), place)
        whole = BaseSpec(str(place), dtype=spec.dtype)
        return _Target(replace(whole, dtype=serving_dtype(whole)))

    def _served(self, name: str, target: _Target, alias: Alias | None, base_name: str, style: str) -> Served:
        while True:
            engine = _once(self._lock, self._engines, target, lambda: self._load(target))
            codec = engine.weights.codec
            chosen: ChatStyle = "chat" if codec.tokenizer.chat_template else "completion"
            chat = engine.weights.chat(style if style in ("chat", "completion") else chosen)  # type: ignore[arg-type]
            context = engine.batcher.context
            served = Served(
                name,
                codec,
                chat,
                min(context, alias.context) if alias and alias.context else context,
                base_name,
                engine.batcher,
                self._thread,
                self.config.max_waiting,
            )
            with self._lock:
                # It may have been unloaded since.
                if (future := self._engines.get(target)) is not None and future.done() and future.result() is engine:
                    engine.users.add(served)
                    engine.used_at = time.monotonic()
                    return served

    # -- loading and unloading ------------------------------------------------------------------

    def _load(self, target: _Target) -> _Engine:
        self._make_room(Weights.estimate(target.spec) if target.spec not in self._weights else 0)
        weights = _once(self._lock, self._weights, target.spec, lambda: Weights(target.spec))
        owner = next(self._owners)
        with weights.lock:
            adapter = None if target.adapter is None else weights.add(target.adapter)
            batcher = Batcher(
                weights.model,
                weights.codec,
                weights.stop_ids,
                max_rows=self.config.max_rows,
                pad_id=weights.pad_id,
                recent=self._recent,
                owner=owner,
                activate=lambda: weights.activate(adapter),
                lock=weights.lock,
            )
        self._thread.attach(batcher)
        size = 0 if target.adapter is None else weights.adapter_bytes(target.adapter)
        engine = _Engine(target, weights, adapter, batcher, owner, size)
        self._make_room(0, but=target)
        return engine

    def _make_room(self, needed_bytes: int, but: _Target | None = None) -> None:
        """Unload what nobody uses: retired models at once, others by age as long as memory is short."""
        while True:
            with self._lock:
                engine = self._one_to_unload(needed_bytes, but)
                if engine is None:
                    break
                if engine in self._retired:
                    self._retired.remove(engine)
                else:
                    del self._engines[engine.target]
            self._unload(engine)

    def _one_to_unload(self, needed_bytes: int, but: _Target | None) -> _Engine | None:
        gone = next((engine for engine in self._retired if engine.idle), None)
        if gone is not None:
            return gone
        loaded = [f.result() for f in self._engines.values() if f.done() and f.exception() is None]
        weights = [f.result() for f in self._weights.values() if f.done() and f.exception() is None]
        total = sum(engine.num_bytes for engine in loaded) + sum(one.num_bytes for one in weights)
        if total + needed_bytes <= self.budget_bytes:
            return None
        idle = [engine for engine in loaded if engine.idle and engine.target != but]
        return min(idle, key=lambda engine: engine.used_at, default=None)

    def _unload(self, engine: _Engine) -> None:
        self._thread.detach(engine.batcher)
        self._thread.call(engine.batcher, lambda: self._recent.forget(engine.owner))
        if engine.adapter is not None:
            with engine.weights.lock:
                engine.weights.remove(engine.adapter)
        with self._lock:
            used = [f.result().weights for f in self._engines.values() if f.done() and f.exception() is None]
            used += [one.weights for one in self._retired]
            if not any(one is engine.weights for one in used):
                self._weights.pop(engine.weights.spec, None)


def _once(lock: threading.Lock, kept: dict[Any, Future[T]], key: Any, make: Callable[[], T]) -> T:
    """What is kept under a key, made by the first who asks; the others wait for it. A failure is not kept."""
    with lock:
        future, mine = kept.get(key), False
        if future is None:
            future, mine = Future[T](), True
            kept[key] = future
    if mine:
        try:
            future.set_result(make())
        except BaseException as error:
            with lock:
                if kept.get(key) is future:
                    del kept[key]
            future.set_exception(error)
    return future.result()
