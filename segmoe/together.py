"""One future for several jobs that threads do side by side. What the jobs are is direct.py, who waits is slots.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future


class Together(Future[int]):
    """Several jobs that make one result: the nanoseconds from the first one's beginning to the last one's end.

    The first thread makes the `plan`, so that who asks spends no time on it, and then each takes the next job. It can
    be cancelled until one has begun, and is done once none is at work: behind the last job, or behind those that had
    begun when one raised or all were stopped.
    """

    def __init__(self, plan: Callable[[], Iterable[Callable[[], None]]]) -> None:
        super().__init__()
        self._plan = plan
        self._jobs: Iterator[Callable[[], None]] = iter(())
        self._began_ns = 0  # 0 until it has
        self._at_work = 0
        self._error: BaseException | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    def begin(self, executor: Executor, threads: int) -> Together:
        """Have so many threads of an executor do the jobs, once they are free."""
        for _ in range(threads):
            executor.submit(self._work)
        return self

    def stop(self) -> None:
        """Begin no further job; those that have begun are the result."""
        self._is_stopped = True

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException as error:
                self._error = self._error or error
            with self._lock:
                self._at_work -= 1

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self.done() or not (self._began_ns or self.set_running_or_notify_cancel()):
                return None
            job = None
            try:
                if not self._began_ns:
                    self._began_ns = time.perf_counter_ns()
                    self._jobs = iter(self._plan())
                if self._error is None and not self._is_stopped:
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
            self.set_exception(self._error)
        else:
            self.set_result(time.perf_counter_ns() - self._began_ns)
