"""Opening the record: create, upgrade or refuse it. What is written into it is writer.py."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError

from observer.errors import DatabaseError

HEADER = b"SQLite format 3\x00"
BUSY_TIMEOUT_MS = 30_000
PAGE_BYTES = 8192


def open_db(path: str | Path, *, create: bool = True) -> Engine:
    """Return an engine on the record at this path, created or upgraded to the newest revision if need be.

    Each transaction of it is BEGIN IMMEDIATE; `reading(engine)` gives one that takes no write lock. Raises
    DatabaseError for a file that is not a record, was written by a newer version, or cannot be written.
    """
    path = Path(path)
    _check_file(path, create)
    try:
        upgrader = engine_for(path, foreign_keys=False)  # Alembic's batch mode with foreign keys deletes child rows
        try:
            if not _is_current(upgrader, path):
                with upgrader.begin() as connection:
                    _upgrade(connection, path)
        finally:
            upgrader.dispose()
    except DBAPIError as error:
        raise DatabaseError(path, explain(error.orig)) from error
    return engine_for(path)


def reading(engine: Engine) -> Engine:
    """Return the engine with transactions that see one snapshot and take no write lock."""
    return engine.execution_options(begin="BEGIN DEFERRED")


def engine_for(path: Path, *, foreign_keys: bool = True) -> Engine:
    """Return an engine with the record's settings, without looking at the file."""
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def settings(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # sqlite3 must not begin or commit by itself, or DDL is not rolled back
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute(f"PRAGMA page_size={PAGE_BYTES}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))

    return engine


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _check_file(path: Path, create: bool) -> None:
    """Refuse what SQLite would only refuse later, or overwrite."""
    if path.is_dir():
        raise DatabaseError(path, "is a folder; give the name of a file in it")
    if not path.exists():
        if not create:
            raise DatabaseError(path, "there is no such file; `observer run` makes a record, --db says where")
        if not path.parent.is_dir():
            raise DatabaseError(path, f"the folder {path.parent} does not exist; make it first")
        return
    try:
        with path.open("rb") as file:
            start = file.read(len(HEADER))
    except OSError as error:
        raise DatabaseError(path, f"cannot be read ({error.strerror}); check its permissions") from None
    if start and start != HEADER:
        raise DatabaseError(path, "is not a database; give another file with --db")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _is_current(engine: Engine, path: Path) -> bool:
    with reading(engine).begin() as connection:
        return _check_revision(connection, path)


def _check_revision(connection: Connection, path: Path) -> bool:
    """Whether the record is at the newest revision; refuse one that is unknown or that Alembic never stamped."""
    names = inspect(connection).get_table_names()
    script = ScriptDirectory.from_config(_config())
    if "alembic_version" not in names:
        if names:
            shown = ", ".join(names[:3])
            raise DatabaseError(path, f"is a database of something else (tables {shown}); give another file with --db")
        return False
    stamps = [str(row[0]) for row in connection.exec_driver_sql("SELECT version_num FROM alembic_version")]
    known = {revision.revision for revision in script.walk_revisions()}
    if not stamps and len(names) > 1:
        raise DatabaseError(path, "has tables but no revision; give another file with --db")
    for stamp in stamps:
        if stamp not in known:
            raise DatabaseError(
                path,
                f"was written by a newer version (revision {stamp}, this one knows up to "
                f"{script.get_current_head()}); upgrade segmoe, or give another file with --db",
            )
    return stamps == script.get_heads()


def _upgrade(connection: Connection, path: Path) -> None:
    """Bring the record to the newest revision in this transaction, unless another process just did."""
    if not _check_revision(connection, path):
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def explain(error: BaseException | None) -> str:
    """Say in a sentence what SQLite means."""
    text = str(error)
    if isinstance(error, sqlite3.OperationalError):
        if "unable to open" in text or "readonly" in text:
            return (
                "cannot be opened for writing, as SQLite must even to read it; check the permissions of the file and "
                "its folder, or copy it"
            )
        if "locked" in text:
            return f"is locked by another program for more than {BUSY_TIMEOUT_MS // 1000} s; end it, or try again"
        if "full" in text:
            return "cannot be written: the disk is full; make room and start the job again, it goes on where it stopped"
        return f"cannot be used: {text}; check the disk"
    return f"is not a database or is damaged ({text}); give another file with --db"
