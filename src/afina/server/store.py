"""The database behind the server: sessions and pages.

Comes in: a SQLAlchemy URL. Every call is synchronous; endpoints that use it are plain functions, which FastAPI runs in
threads. Knows nothing of HTTP but the error of an unknown cursor.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker

from afina.core.errors import MachineError, RunError
from afina.server.errors import bad_request
from afina.server.tables import SCHEMA_VERSION, Base, Setting

T = TypeVar("T")
Row = TypeVar("Row", bound=Base)
# PostgreSQL's name for "one at a time while the tables are made": any number that nobody else takes.
MAKING_TABLES = 0x0AF1_4A00
READ_ONLY = "afina_read_only"


@dataclass(frozen=True)
class Page(Generic[T]):
    """rows: in the order asked for. has_more: whether others follow them."""

    rows: Sequence[T]
    has_more: bool


class Store:
    """One database. url: as `sqlite:///path/afina.db` or `postgresql+psycopg://user@host/name`."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        # SQLite has one writer at a time. Waiting here is fair; SQLite's own waiting sleeps and starves.
        self._one_writer = threading.RLock() if self.engine.dialect.name == "sqlite" else None
        self._inside = threading.local()
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._readers = sessionmaker(self.engine.execution_options(**{READ_ONLY: True}), expire_on_commit=False)
        shown = self.engine.url.render_as_string(hide_password=True)
        try:
            found = self._make_tables()
        except DatabaseError as error:
            self.close()
            reason = " ".join(str(error.orig).split())
            raise MachineError(
                f"{shown}: the database cannot be opened ({reason}). Check AFINA_DATABASE_URL, or the data folder."
            ) from error
        if found != str(SCHEMA_VERSION):
            self.close()
            raise RunError(
                f"{shown}: the database was made by another version of Afina (schema {found}, this one reads "
                f"{SCHEMA_VERSION}). Start with another --data-dir."
            )

    @contextmanager
    def session(self) -> Generator[Session]:
        """A transaction that may write: committed at the end, rolled back when something is raised.

        Never inside another of the same thread: on SQLite it would wait for itself.
        """
        assert not getattr(self._inside, "session", False), "a session inside a session of the same thread"
        if self._one_writer is None:
            with self._sessions() as session, session.begin():
                yield session
            return
        with self._one_writer:
            self._inside.session = True
            try:
                with self._sessions() as session, session.begin():
                    yield session
            finally:
                self._inside.session = False

    @contextmanager
    def reading(self) -> Generator[Session]:
        """A transaction that only reads; on SQLite it waits for no writer."""
        with self._readers() as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()

    def setting(self, key: str, default: str) -> str:
        """The kept value, which is `default` from the first call on."""
        with self.reading() as session:
            found = session.get(Setting, key)
        if found is not None:
            return found.value
        with self.session() as session:
            found = session.get(Setting, key)
            if found is None:
                session.add(Setting(key=key, value=default))
            return default if found is None else found.value

    def _make_tables(self) -> str:
        """The schema's version. Two processes may come at once: a server, and `afina keys`."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING_TABLES})
            Base.metadata.create_all(connection)
            kept = connection.scalar(select(Setting.value).where(Setting.key == "schema_version"))
            if kept is None:
                connection.execute(
                    Setting.__table__.insert().values(key="schema_version", value=str(SCHEMA_VERSION))  # type: ignore[attr-defined]
                )
            return kept or str(SCHEMA_VERSION)


def page(
    session: Session,
    table: type[Row],
    *where: ColumnElement[bool],
    limit: int,
    after: str | None = None,
    ascending: bool = False,
    param: str = "after",
) -> Page[Row]:
    """Rows of a table by age, newest first unless `ascending`. after: the id of the last row of the page before.

    Raises ApiError for an `after` that is no row of this list.
    """
    key: Any = table
    query = select(table).where(*where)
    if after is not None:
        cursor = None if "\0" in after else session.scalar(select(table).where(key.id == after, *where))
        if cursor is None:
            shown = after[:100]
            raise bad_request(f"No such object to continue after: '{shown}'.", param, "invalid_value")
        at = cursor.seq  # type: ignore[attr-defined]
        query = query.where(key.seq > at if ascending else key.seq < at)
    query = query.order_by(key.seq.asc() if ascending else key.seq.desc()).limit(limit + 1)
    rows = session.scalars(query).all()
    return Page(rows[:limit], len(rows) > limit)


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        # As many connections as requests that the server answers in threads.
        engine = create_engine(parsed, pool_pre_ping=True, pool_size=16, max_overflow=112)
    except (ArgumentError, NoSuchModuleError) as error:
        raise MachineError(
            "AFINA_DATABASE_URL: is no database's URL, expected one as postgresql://user:password@host/name."
        ) from error
    except ModuleNotFoundError as error:
        raise MachineError(
            f"The database's driver is not installed ({error.name}). pip install {error.name}"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that will write says so at once: taking the lock later could not wait for another writer.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Writers wait for each other, readers never wait, and a killed process loses nothing that was committed."""
    connection.isolation_level = None  # begin by hand: the driver's own begins too late to wait for a writer
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
