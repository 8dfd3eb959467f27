"""One future for several jobs that threads do side by side. What the jobs are is direct.py, who waits is slots.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future


def together(executor: Executor, plan: Callable[[], Iterable[Callable[[], None]]], threads: int) -> Future[int]:
    """Have so many threads do what there is to do; the future tells the nanoseconds from beginning to end.

    The first of them makes the `plan`, so that who asks spends no time on it, and then each takes the next job. The
    future can be cancelled until one has begun, and is done once none is at work: behind the last job, or with the
    first error, behind which no other job begins.
    """
    whole = _Whole(plan, threads)
    for _ in range(threads):
        executor.submit(whole.work)
    return whole.future


class _Whole:
    def __init__(self, plan: Callable[[], Iterable[Callable[[], None]]], threads: int) -> None:
        self.future: Future[int] = Future()
        self._plan, self._threads = plan, threads
        self._jobs: Iterator[Callable[[], None]] | None = None
        self._began_ns = 0
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def work(self) -> None:
        try:
            while (job := self._next()) is not None:
                job()
        except BaseException as error:
            self._error = self._error or error
        self._leave()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if not self._began_ns and not self.future.cancelled() and self.future.set_running_or_notify_cancel():
                self._began_ns = time.perf_counter_ns()
                self._jobs = iter(self._plan())
            return None if self._jobs is None or self._error else next(self._jobs, None)

    def _leave(self) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads or not self._began_ns:
                return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(time.perf_counter_ns() - self._began_ns)
