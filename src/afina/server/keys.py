"""API keys: made, listed, revoked, checked. Only their SHA-256 is kept.

A key has 256 random bits, so a plain hash is as good as a slow one, which is for passwords. The check compares with
every key that is in force and never stops early. A running server notices within half a second what `afina keys` does
to the same database.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from dataclasses import dataclass

from sqlalchemy import select, update

from afina.core.errors import AfinaError, RunError
from afina.server.names import new_id, random_text
from afina.server.store import Store
from afina.server.tables import ApiKey
from afina.server.wire import now

PREFIX = "sk-afina-"
RANDOM_LENGTH = 43  # letters and digits, 256 bits
FRESH_S = 0.5
FIRST, PRESET = "first", "AFINA_API_KEY"
USABLE = re.compile(r"[\x21-\x7e]{8,200}")


@dataclass(frozen=True)
class KeyInfo:
    """shown: the key's first and last characters. revoked_at: None while it is in force."""

    id: str
    name: str
    shown: str
    created_at: int
    revoked_at: int | None


class Keys:
    """Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard, self._marking = threading.Lock(), threading.Lock()
        self._digests: tuple[str, ...] = ()
        self._read_at = -FRESH_S
        self._changes = 0

    def create(self, name: str) -> tuple[str, str]:
        """(id, key). The key is not kept, and can never be shown again."""
        plain = PREFIX + random_text(RANDOM_LENGTH)
        return self._add(name, plain), plain

    def list(self) -> list[KeyInfo]:
        """All keys ever, the oldest first."""
        with self._store.reading() as session:
            rows = session.scalars(select(ApiKey).order_by(ApiKey.seq)).all()
        return [KeyInfo(row.id, row.name, row.shown, row.created_at, row.revoked_at) for row in rows]

    def revoke(self, key_id: str) -> KeyInfo:
        """Close the door to a key, given by its id, or by the key itself. A key already revoked stays as it is.

        Raises RunError for one that was never made.
        """
        with self._store.session() as session:
            found = (ApiKey.id == key_id) | (ApiKey.digest == digest_of(key_id))
            row = session.scalar(select(ApiKey).where(found))
            if row is None:
                raise RunError(f"{masked(key_id)}: no such key. `afina keys list` shows the ids.")
            row.revoked_at = row.revoked_at or now()
            done = KeyInfo(row.id, row.name, row.shown, row.created_at, row.revoked_at)
        self.forget()
        return done

    def check(self, plain: str) -> bool:
        """Whether the key is in force. Reads the database when what is known is older than half a second."""
        return self.match(digest_of(plain))

    def match(self, digest: str) -> bool:
        """As `check`, of a key's digest."""
        if not self.fresh:
            self._read()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    @property
    def fresh(self) -> bool:
        """Whether `check` would answer without reading the database."""
        return time.monotonic() - self._read_at < FRESH_S

    def forget(self) -> None:
        """The next check reads the database."""
        with self._marking:
            self._changes += 1
            self._read_at = -FRESH_S

    def first_key(self, preset: str | None) -> str | None:
        """See that there is a key. preset: AFINA_API_KEY; it replaces what the variable said at an earlier start.

        The new key where one had to be made, which is the only time to show it; otherwise None.
        Raises AfinaError for a preset that no client could send, or that was revoked.
        """
        if preset:
            self._preset(preset)
            return None
        with self._store.reading() as session:
            in_force = session.scalar(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1))
        return self.create(FIRST)[1] if in_force is None else None

    def _preset(self, plain: str) -> None:
        if not USABLE.fullmatch(plain):
            raise AfinaError(
                "AFINA_API_KEY: expected 8 to 200 visible ASCII characters without spaces. Choose another."
            )
        digest = digest_of(plain)
        with self._store.session() as session:
            others = (ApiKey.name == PRESET) & (ApiKey.digest != digest) & ApiKey.revoked_at.is_(None)
            session.execute(update(ApiKey).where(others).values(revoked_at=now()))
            known = session.scalar(select(ApiKey).where(ApiKey.digest == digest))
            if known is not None and known.revoked_at is not None:
                raise RunError("AFINA_API_KEY: this key was revoked. Choose another, or unset the variable.")
        if known is None:
            self._add(PRESET, plain)
        self.forget()

    def _add(self, name: str, plain: str) -> str:
        key_id = new_id("key_", 16)
        row = ApiKey(id=key_id, name=name, digest=digest_of(plain), shown=masked(plain), created_at=now())
        with self._store.session() as session:
            session.add(row)
        self.forget()
        return key_id

    def _read(self) -> None:
        with self._guard:
            if self.fresh:
                return
            # Both from before the reading: what changes meanwhile is seen by the next one.
            changes, read_at = self._changes, time.monotonic()
            with self._store.reading() as session:
                self._digests = tuple(session.scalars(select(ApiKey.digest).where(ApiKey.revoked_at.is_(None))))
            with self._marking:
                if changes == self._changes:
                    self._read_at = read_at


def digest_of(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def masked(plain: str) -> str:
    """What may be shown of a key: a dozen characters of a long one, nothing to speak of of a short one."""
    first, last = (8, 4) if len(plain) >= 16 else (min(2, len(plain) // 4), 0)
    return f"{plain[:first]}****{plain[len(plain) - last :] if last else ''}"
