"""One future for several jobs that threads do side by side. What the jobs are is direct.py, who waits is slots.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future


def together(executor: Executor, jobs: Sequence[Callable[[], None]], then: Callable[[], None]) -> Future[int]:
    """Have the jobs done; the future tells the nanoseconds from the first's beginning to the last's end.

    It can be cancelled until one has begun, and is done once none is at work: with what `then`, called behind them, or
    the first of them raised, behind which no other begins.
    """
    whole = _Whole(len(jobs), then)
    for job in jobs:
        executor.submit(whole.do, job)
    return whole.future


class _Whole:
    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self.future: Future[int] = Future()
        self._left, self._then = count, then
        self._began_ns = 0
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def do(self, job: Callable[[], None]) -> None:
        if not self._begin():
            return
        try:
            if self._error is None:
                job()
        except BaseException as error:
            self._error = self._error or error
        with self._lock:
            self._left -= 1
            if self._left:
                return
        try:
            if self._error is not None:
                raise self._error
            self._then()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(time.perf_counter_ns() - self._began_ns)

    def _begin(self) -> bool:
        with self._lock:
            if not self._began_ns and not self.future.cancelled() and self.future.set_running_or_notify_cancel():
                self._began_ns = time.perf_counter_ns()
            return self._began_ns > 0
