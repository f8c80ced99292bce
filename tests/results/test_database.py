"""A database goes only when nobody has it open and all that it holds is published."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from calibrant.errors import CalibrantError, DataError, OutputError
from calibrant.results import Store, pack, verify
from calibrant.results.database import HALF_SUFFIX, DamagedError, Database
from calibrant.results.live import DATABASE, TABLES, VERSION

from tests.refusing import refused
from tests.results.conftest import told, varied
from tests.results.samples import OTHER_RUN, QUIZ, QUIZZED, RUN

ALL = (2, 6)
"""The runs and measurements of a varied store."""


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A store whose results are in its tables and still in its database."""
    folder = varied(tmp_path / "both")
    pack(folder, tmp_path / "packed")
    for path in (tmp_path / "packed").glob("*.*"):
        path.rename(folder / path.name)
    return folder


def test_what_is_published_goes(both: Path):
    said = told(both)
    with Store(both) as store:
        store.remove_database(*ALL)
        assert not list(both.glob(f"{DATABASE}*"))
        assert store.ids() == sorted([RUN.id, OTHER_RUN.id])
    assert told(both) == said


def test_not_while_somebody_has_it_open(both: Path):
    said = told(both)
    with Store(both) as store, Store(both, create=False) as reader:
        reader.ids()
        with refused(OutputError, both):
            store.remove_database(*ALL)
        assert reader.ids() == store.ids()
        store.add_failure("sha256:1", {"error": "it is written as before"})
        store.clear_failure("sha256:1")
    assert told(both) == said


def test_not_with_what_came_in_since(both: Path):
    with Store(both) as store:
        added = store.add_measurement(OTHER_RUN.id, QUIZ, QUIZZED)
        with refused(OutputError, both):
            store.remove_database(*ALL)
        with refused(OutputError, both):
            store.remove_database(0, 0)
        assert added in store.measured(OTHER_RUN.id)
        assert store.live.database.rows("PRAGMA journal_mode") == [("wal",)]
    assert verify(both) == []


def test_a_value_that_is_too_large_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("calibrant.results.database.LARGEST", 2000)
    database = Database(tmp_path / "new.sqlite", ("one (a TEXT)",), 1)
    with (
        pytest.raises(OutputError, match="larger than"),
        database.writing("write it") as connection,
    ):
        connection.execute("INSERT INTO one VALUES (?)", ("x" * 3000,))
    assert database.rows("SELECT * FROM one") == []


def test_a_file_that_another_holds_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("calibrant.results.database.PATIENCE", 0)
    path = tmp_path / "new.sqlite"
    Database(path, ("one (a TEXT)",), 1).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("CREATE TABLE one (a TEXT)")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match="another process has been at it") as raised:
            Database(path, (), 1, create=False).rows("SELECT * FROM one")
    assert not isinstance(raised.value, DamagedError)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path):
    path = tmp_path / "new.sqlite"
    path.mkdir()
    with pytest.raises(DataError, match="is it yours to read"):
        Database(path, (), 1, create=False).version()


def test_an_interrupt_after_a_transaction_began_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Interrupted(sqlite3.Connection):
        def execute(self, sql: str, *given: object) -> sqlite3.Cursor:
            done = super().execute(sql, *given)  # pyright: ignore[reportArgumentType]
            if sql == "BEGIN IMMEDIATE":
                raise KeyboardInterrupt
            return done

    database = Database(tmp_path / "new.sqlite", ("one (a TEXT)",), 1)
    assert database.rows("SELECT * FROM one") == []
    connection = sqlite3.connect(database.path, isolation_level=None, factory=Interrupted)
    monkeypatch.setattr(database, "_connection", connection)
    with pytest.raises(KeyboardInterrupt), database.writing("be interrupted"):
        pass
    assert not connection.in_transaction


@pytest.mark.parametrize(
    ("beside", "mode"), [("", "mode=ro&immutable=1"), ("-wal", "mode=ro"), ("-shm", "mode=ro")]
)
def test_what_somebody_may_write_is_not_taken_for_unchanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str, mode: str
):
    path = tmp_path / DATABASE
    if beside:
        path.with_name(path.name + beside).touch()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert Database(path, TABLES, VERSION, create=False)._mode() == mode


@pytest.mark.parametrize(("create", "error"), [(True, OutputError), (False, DataError)])
def test_a_file_that_is_removed_while_it_is_opened_is_called_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool, error: type[CalibrantError]
):
    path = tmp_path / DATABASE
    made = Database(path, TABLES, VERSION)
    made.version()
    made.close()
    # As whoever removes it leaves it.
    with closing(sqlite3.connect(path)) as remover:
        remover.execute("PRAGMA journal_mode = DELETE")
    connected = Database._connected

    def too_late(self: Database, path: Path, mode: str) -> sqlite3.Connection:
        if not create:
            path.unlink()
        connection = connected(self, path, mode)
        if create:
            connection.execute("PRAGMA user_version").fetchone()
            path.unlink()
        return connection

    monkeypatch.setattr(Database, "_connected", too_late)
    with pytest.raises(error, match="removed meanwhile; run the same command again"):
        Database(path, TABLES, VERSION, create).version()


def test_what_a_killed_maker_left_goes_and_what_a_living_one_has_stays(tmp_path: Path):
    path = tmp_path / "some.sqlite"
    left = path.with_name(f"{path.name}{HALF_SUFFIX}999999999-ab")
    living = path.with_name(f"{path.name}{HALF_SUFFIX}{os.getpid()}-ab")
    left.touch()
    living.touch()
    Database(path, ("things (name TEXT)",), 1).rows("SELECT * FROM things")
    assert not left.exists()
    assert living.exists()
