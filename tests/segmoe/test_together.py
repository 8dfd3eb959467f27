"""Several jobs behind one future: done when nobody is at work any more, and cancelled as a whole or not at all."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from segmoe.together import Together


def test_it_is_done_when_the_last_job_is_and_tells_how_long_that_took() -> None:
    go_on, at_once, done = threading.Event(), threading.Event(), []
    jobs = [lambda: done.append(go_on.wait(60)), at_once.set]
    with ThreadPoolExecutor(2) as executor:
        whole = Together(lambda: jobs).begin(executor, 2)
        assert at_once.wait(60) and whole.running() and not whole.cancel()
        go_on.set()
        assert whole.result(60) > 0
    assert done == [True]


@pytest.mark.parametrize(("threads", "jobs"), [(1, 5), (2, 5), (3, 1), (4, 0)])
def test_each_job_is_done_once_however_many_threads_there_are(threads: int, jobs: int) -> None:
    done, planned = [], []

    def plan():
        planned.append(threading.current_thread())
        yield from ((lambda number=number: done.append(number)) for number in range(jobs))

    with ThreadPoolExecutor(threads) as executor:
        assert Together(plan).begin(executor, threads).result(60) >= 0
    assert sorted(done) == list(range(jobs))
    assert len(planned) == 1 and planned[0] is not threading.current_thread()


def test_jobs_run_side_by_side_with_those_of_another() -> None:
    meet = threading.Barrier(4, timeout=60)
    with ThreadPoolExecutor(4) as executor:
        both = [Together(lambda: [meet.wait, meet.wait]).begin(executor, 2) for _ in range(2)]
        assert all(one.result(60) for one in both)


def test_before_any_has_begun_it_can_be_cancelled_and_none_begins() -> None:
    go_on, done = threading.Event(), []
    with ThreadPoolExecutor(1) as executor:
        executor.submit(go_on.wait, 60)
        whole = Together(lambda: done.append("planned")).begin(executor, 3)
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
        whole = Together(lambda: [lambda: done.append(go_on.wait(60)), fail, lambda: done.append("begun")]).begin(
            executor, 2
        )
        assert failed.wait(60) and not whole.done(), "the first still writes into the memory that is given back"
        go_on.set()
        with pytest.raises(OSError, match="the disk"):
            whole.result(60)
    assert done == [True]


def test_a_plan_that_cannot_be_made_is_told() -> None:
    with ThreadPoolExecutor(2) as executor, pytest.raises(ZeroDivisionError):
        Together(lambda: 1 // 0).begin(executor, 2).result(60)


def test_once_stopped_no_job_begins_and_those_that_have_are_the_result() -> None:
    begun, go_on, done = threading.Barrier(3, timeout=60), threading.Event(), []

    def job() -> None:
        begun.wait()
        done.append(go_on.wait(60))

    with ThreadPoolExecutor(2) as executor:
        whole = Together(lambda: [job, job, job]).begin(executor, 2)
        begun.wait()
        assert not whole.cancel()
        whole.stop()
        assert not whole.done(), "both still write"
        go_on.set()
        assert whole.result(60) > 0
    assert done == [True, True]
