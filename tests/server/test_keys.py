"""API keys: only hashes are kept, several are in force, a revoked one closes within a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from afina.core.errors import AfinaError, MachineError, RunError
from afina.server.keys import PREFIX, Keys, digest_of, masked
from afina.server.store import Store
from afina.server.tables import ApiKey

SLOW = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path, database: str | None) -> Any:
    made = Store(database or f"sqlite:///{tmp_path / 'afina.db'}")
    yield made
    made.close()


def test_a_key_opens_until_it_is_revoked(store: Store) -> None:
    keys = Keys(store)
    key_id, plain = keys.create("notebook")
    other_id, other = keys.create("server")
    assert plain.startswith(PREFIX)
    assert len(plain) >= 50
    assert [keys.check(one) for one in (plain, other, "sk-afina-no", "", plain[:-1])] == [
        True,
        True,
        False,
        False,
        False,
    ]
    gone = keys.revoke(key_id)
    assert gone.revoked_at is not None
    assert gone.name == "notebook"
    assert [keys.check(plain), keys.check(other)] == [False, True]
    assert [(row.id, row.revoked_at is None) for row in keys.list()] == [(key_id, False), (other_id, True)]
    assert keys.revoke(key_id).revoked_at == gone.revoked_at  # a second time changes nothing


def test_a_key_can_be_revoked_by_itself_and_an_unknown_one_is_told(store: Store) -> None:
    keys = Keys(store)
    _, plain = keys.create("lost")
    keys.revoke(plain)
    assert not keys.check(plain)
    with pytest.raises(RunError, match=r"no such key. `afina keys list`"):
        keys.revoke("key_nobody")


def test_only_the_hash_is_kept(store: Store) -> None:
    _, plain = Keys(store).create("notebook")
    with store.reading() as session:
        row = session.scalars(select(ApiKey)).one()
        kept = " ".join(str(value) for value in vars(row).values())
    assert row.digest == digest_of(plain)
    assert plain not in kept
    assert plain[len(PREFIX) : -4] not in kept


def test_another_process_s_changes_are_seen_within_a_second(store: Store) -> None:
    server, command = Keys(store), Keys(store)
    key_id, plain = command.create("a")
    assert not server.check("something")  # what is in force is known now
    deadline = time.monotonic() + 1
    while not server.check(plain):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command.revoke(key_id)
    deadline = time.monotonic() + 1
    while server.check(plain):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_first_start_makes_a_key_and_the_next_does_not(store: Store) -> None:
    first = Keys(store).first_key(None)
    assert first is not None
    assert Keys(store).first_key(None) is None
    assert Keys(store).check(first)


def test_a_preset_key_replaces_the_preset_before(store: Store) -> None:
    made = Keys(store).create("by hand")[1]
    assert Keys(store).first_key("sk-preset-one") is None
    assert Keys(store).first_key("sk-preset-one") is None
    assert [Keys(store).check(key) for key in ("sk-preset-one", made)] == [True, True]
    Keys(store).first_key("sk-preset-two")
    assert [Keys(store).check(key) for key in ("sk-preset-one", "sk-preset-two", made)] == [False, True, True]
    assert len(Keys(store).list()) == 3
    Keys(store).revoke("sk-preset-two")
    with pytest.raises(RunError, match="this key was revoked"):
        Keys(store).first_key("sk-preset-two")


@pytest.mark.parametrize("preset", ["short", "with a space", "chave-secretíssima", "x" * 201, "line\nbreak-in-it"])
def test_a_preset_that_no_header_carries_is_refused(tmp_path: Path, preset: str) -> None:
    store = Store(f"sqlite:///{tmp_path / 'afina.db'}")
    with pytest.raises(AfinaError, match="AFINA_API_KEY: expected 8 to 200") as caught:
        Keys(store).first_key(preset)
    assert preset not in str(caught.value)
    store.close()


@pytest.mark.parametrize(
    ("plain", "shown"),
    [("not-a-real-key-but-anonymized", "not-a-re****ized"), ("0123456789abcdef", "01234567****cdef"), ("abc", "****")],
)
def test_what_is_shown_of_a_key(plain: str, shown: str) -> None:
    assert masked(plain) == shown


def test_many_threads_at_once(store: Store) -> None:
    keys, made, errors = Keys(store), [], []

    def one(number: int) -> None:
        try:
            key_id, plain = keys.create(f"n{number}")
            assert keys.check(plain)
            if number % 2:
                keys.revoke(key_id)
                assert not keys.check(plain)
            made.append(plain)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(made) == 50
    keys.forget()
    assert sum(keys.check(plain) for plain in made) == 25


def test_a_database_of_another_version_is_refused(store: Store, database: str | None, tmp_path: Path) -> None:
    from sqlalchemy import update

    from afina.server.tables import Setting

    with store.session() as session:
        session.execute(update(Setting).values(value="0"))
    with pytest.raises(RunError, match=r"schema 0, this one reads \d+"):
        Store(database or f"sqlite:///{tmp_path / 'afina.db'}")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "is no database's URL"),
        ("oracle9://x", "is no database's URL"),
        ("sqlite:////proc/no/such/afina.db", "cannot be opened"),
        ("postgresql://nobody:secret@127.0.0.1:1/x", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(MachineError, match=reason) as caught:
        Store(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "afina.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(MachineError, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path / 'afina.db'}")


def test_a_database_made_by_eight_at_once(tmp_path: Path, database: str | None) -> None:
    """As a server and `afina keys` may start together."""
    url = database or f"sqlite:///{tmp_path / 'new.db'}"
    code = f"from afina.server.store import Store; from afina.server.keys import Keys; Keys(Store({url!r})).create('x')"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(8)]
    assert [(process.wait(60), process.stderr.read()[-500:] if process.stderr else b"") for process in processes] == [
        (0, b"")
    ] * 8
    assert len(Keys(Store(url)).list()) == 8


# -- the command line ----------------------------------------------------------------------------------------------


def _keys(data_dir: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AFINA_")}
    command = [sys.executable, "-m", "afina", "keys", *argv, "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_keys_without_a_server_s_folder_say_so(tmp_path: Path) -> None:
    outcome = _keys(tmp_path / "nothing", "list")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "no server has worked here yet" in outcome.stderr
    assert not (tmp_path / "nothing").exists()


def test_the_command_line_makes_lists_and_revokes(tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path / 'afina.db'}").close()
    made = json.loads(_keys(tmp_path, "create", "caderno", "--json").stdout)
    assert made["key"].startswith(PREFIX)
    listed = json.loads(_keys(tmp_path, "list", "--json").stdout)
    assert [(row["id"], row["name"], row["revoked_at"]) for row in listed] == [(made["id"], "caderno", None)]
    assert made["key"] not in _keys(tmp_path, "list").stdout
    assert _keys(tmp_path, "revoke", made["id"]).returncode == 0
    assert "revoked" in _keys(tmp_path, "list").stdout
    unknown = _keys(tmp_path, "revoke", "key_0")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("afina: ")


@SLOW
def test_a_running_server_sees_new_and_revoked_keys_within_a_second(server: Any) -> None:
    import httpx

    made = json.loads(_keys(server.data_dir, "create", "x", "--json").stdout)
    time.sleep(1)

    def status() -> int:
        headers = {"Authorization": f"Bearer {made['key']}"}
        return httpx.get(f"{server.url}/v1/models", headers=headers, trust_env=False).status_code

    assert status() == 200
    assert _keys(server.data_dir, "revoke", made["id"]).returncode == 0
    time.sleep(1)
    assert status() == 401
    assert server.http.get("/v1/models").status_code == 200
