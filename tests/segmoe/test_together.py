"""Several jobs behind one future: done when nobody is at work any more, and cancelled as a whole or not at all."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from segmoe.together import together


def test_it_is_done_when_the_last_job_is_and_tells_how_long_that_took() -> None:
    go_on, done = threading.Event(), []
    with ThreadPoolExecutor(2) as executor:
        jobs = [lambda: done.append("waited" if go_on.wait(60) else "late"), lambda: done.append("at once")]
        whole = together(executor, jobs, lambda: done.append("then"))
        while not done:
            pass
        assert whole.running() and not whole.cancel()
        go_on.set()
        assert whole.result(60) > 0
    assert done == ["at once", "waited", "then"]


def test_jobs_run_side_by_side_with_those_of_another() -> None:
    meet = threading.Barrier(4)
    with ThreadPoolExecutor(4) as executor:
        both = [together(executor, [meet.wait, meet.wait], lambda: None) for _ in range(2)]
        assert all(one.result(60) for one in both)


def test_before_any_has_begun_it_can_be_cancelled_and_none_begins() -> None:
    go_on, done = threading.Event(), []
    with ThreadPoolExecutor(1) as executor:
        executor.submit(go_on.wait, 60)
        whole = together(executor, [lambda: done.append(1), lambda: done.append(2)], lambda: done.append(3))
        assert whole.cancel() and whole.cancelled()
        go_on.set()
    assert done == []
    with pytest.raises(CancelledError):
        whole.result()


def test_an_error_is_told_when_the_others_are_over_and_no_more_begin() -> None:
    go_on, failed, done = threading.Event(), threading.Event(), []

    def fail() -> None:
        failed.set()
        raise OSError("the disk")

    with ThreadPoolExecutor(2) as executor:
        jobs = [lambda: done.append(go_on.wait(60)), fail, lambda: done.append("begun")]
        whole = together(executor, jobs, lambda: done.append("then"))
        assert failed.wait(60) and not whole.done(), "the first still writes into the memory that is given back"
        go_on.set()
        with pytest.raises(OSError, match="the disk"):
            whole.result(60)
    assert done == [True]


def test_what_then_raises_is_told() -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(ZeroDivisionError):
        together(executor, [lambda: None], lambda: 1 // 0).result(60)
