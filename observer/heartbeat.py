"""Tells readers of the record every few seconds that the job is alive, also while one forward pass takes minutes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from observer.errors import DatabaseError

HEARTBEAT_S = 5.0

logger = logging.getLogger(__name__)


@contextmanager
def beating(beat: Callable[[], None], every_s: float = HEARTBEAT_S) -> Iterator[None]:
    """While this lasts, call `beat` on a thread of its own; a record that cannot be written then is not its concern."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            try:
                beat()
            except DatabaseError as error:
                logger.debug("no heartbeat: %s", error)

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
