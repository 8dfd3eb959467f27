"""Run Alembic on the record: over the connection of observer.db.session, or on the file of `-x db=FILE`."""

from __future__ import annotations

from pathlib import Path

from alembic import context
from sqlalchemy import Connection

from observer.db.tables import metadata


def migrate(connection: Connection) -> None:
    """Upgrade or downgrade over an open connection."""
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


def migrate_file(path: str) -> None:
    """Open the file as the observer does, then migrate it."""
    from observer.db.session import engine_for

    engine = engine_for(Path(path), foreign_keys=False)
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    migrate_file(context.get_x_argument(as_dictionary=True).get("db", "observer.db"))
