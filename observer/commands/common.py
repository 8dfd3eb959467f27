"""What all subcommands share: the option of the record, opening it, and one line for what is expected to fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from observer.errors import ObserverError
from segmoe.errors import SegmoeError

if TYPE_CHECKING:
    from sqlalchemy import Engine

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130
INCOMPLETE = 3
DB = Path("observer.db")

db_option = click.option("--db", type=click.Path(path_type=Path), default=DB, show_default=True, help="The record.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")


def expected_failures(command: Callable[P, R]) -> Callable[P, R]:
    """Print one line and exit with 1 for what is expected to go wrong; a bug keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (SegmoeError, ObserverError) as error:
            message = " ".join(str(error).split())
            if kwargs.get("as_json"):
                click.echo(json.dumps({"error": {"kind": type(error).__name__, "message": message}}))
            else:
                click.echo(f"observer: {message}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("observer: interrupted", err=True)
            sys.exit(INTERRUPTED)

    return run


@contextmanager
def opened(db: Path) -> Iterator[Engine]:
    """Open a record that exists, and let it go."""
    from observer.db.session import open_db

    engine = open_db(db, create=False)
    try:
        yield engine
    finally:
        engine.dispose()
