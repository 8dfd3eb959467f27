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
    whole = _Whole(plan)
    for _ in range(threads):
        executor.submit(whole.work)
    return whole.future


class _Whole:
    def __init__(self, plan: Callable[[], Iterable[Callable[[], None]]]) -> None:
        self.future: Future[int] = Future()
        self._plan = plan
        self._jobs: Iterator[Callable[[], None]] | None = None  # None until it has begun
        self._began_ns = 0
        self._at_work = 0
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def work(self) -> None:
        """Do jobs until there are no more."""
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException as error:
                self._error = self._error or error
            with self._lock:
                self._at_work -= 1

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self.future.done() or not (self._began_ns or self.future.set_running_or_notify_cancel()):
                return None
            job = None
            try:
                if not self._began_ns:
                    self._began_ns = time.perf_counter_ns()
                    self._jobs = iter(self._plan())
                if self._jobs is not None and self._error is None:
                    job = next(self._jobs, None)
            except BaseException as error:
                self._error = error
            if job is not None:
                self._at_work += 1
            elif not self._at_work:
                self._end()
            return job

    def _end(self) -> None:
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(time.perf_counter_ns() - self._began_ns)
