"""The queue in which the app's models work: one job at a time, a queue that is seen, stops that are heard."""

from __future__ import annotations

import json
import threading
import time

import pytest

from workbench.core.errors import BadInput
from workbench.ui.jobs import MAX_WAITING, Job, JobQueue


@pytest.fixture
def queue():
    return JobQueue()


def counting(upto: int, pause: float = 0.01):
    def work(stop):
        for n in range(upto):
            if stop.is_set():
                return
            yield n
            time.sleep(pause)

    return work


def wait(job: Job) -> list:
    return list(job.watch(0.01))


def test_a_job_is_watched_from_its_first_view_to_its_last(queue):
    job = queue.submit("count", counting(5))
    views = wait(job)
    assert views[-1] == 4 and job.state == "done" and job.is_over and 0 < job.seconds < 5
    assert [v for v in views if v is not None] == sorted(v for v in views if v is not None)


def test_jobs_work_one_at_a_time_in_the_order_in_which_they_came(queue):
    at_work, order, acquired = threading.Semaphore(1), [], []

    def work(name):
        def go(stop):
            acquired.append(at_work.acquire(blocking=False))
            order.append(name)
            time.sleep(0.02)
            at_work.release()
            yield name

        return go

    jobs = [queue.submit(name, work(name)) for name in "abc"]
    assert [queue.jobs_ahead(job) for job in jobs] == [0, 1, 2]
    for job in jobs:
        wait(job)
    assert order == list("abc") and all(acquired) and queue.list_jobs() == []


def test_a_job_that_is_asked_to_stop_ends_with_what_it_has(queue):
    job = queue.submit("count", counting(10_000))
    while job.latest is None:
        time.sleep(0.005)
    queue.stop(job)
    views = wait(job)
    assert job.state == "stopped" and 0 <= views[-1] < 9_999


def test_a_waiting_job_that_is_stopped_never_begins(queue):
    first, second = queue.submit("long", counting(10_000)), queue.submit("never", counting(1))
    queue.stop(second)
    assert second.state == "stopped" and wait(second) == [None] and second.started_at == 0
    queue.stop(first)
    wait(first)


def test_whoever_leaves_early_stops_the_job_and_frees_the_queue(queue):
    job = queue.submit("long", counting(10_000))
    watching = job.watch(0.01)
    next(watching)
    watching.close()
    assert wait(queue.submit("next", counting(1)))[-1] == 0 and job.state == "stopped"


def test_whoever_leaves_while_the_job_waits_takes_it_out_of_the_queue(queue):
    first, began = queue.submit("long", counting(10_000)), []
    second = queue.submit("left", lambda stop: iter([began.append("left")]))
    third = queue.submit("patient", counting(1))
    watching = second.watch(0.01)
    next(watching)
    watching.close()
    assert queue.jobs_ahead(third) == 1 and second not in queue.list_jobs() and second.state == "stopped"
    queue.stop(first)
    assert wait(third)[-1] == 0 and not began and second.started_at == 0


def test_a_queue_full_of_jobs_that_nobody_waits_for_takes_another(queue):
    jobs = [queue.submit("long", counting(10_000)) for _ in range(MAX_WAITING + 1)]
    for job in jobs[1:]:
        watching = job.watch(0.01)
        next(watching)
        watching.close()
    last = queue.submit("next", counting(1))
    queue.stop(jobs[0])
    assert wait(last)[-1] == 0


def test_a_failure_reaches_the_watcher_and_the_queue_goes_on(queue, capsys):
    def broken(stop):
        yield 1
        raise BadInput("no such thing")

    job = queue.submit("broken", broken)
    with pytest.raises(BadInput, match="no such thing"):
        wait(job)
    assert job.state == "failed" and job.latest == 1
    assert wait(queue.submit("next", counting(1)))[-1] == 0


def test_the_queue_has_an_end(queue):
    jobs = [queue.submit("long", counting(10_000)) for _ in range(MAX_WAITING + 1)]
    with pytest.raises(BadInput, match="wait already"):
        queue.submit("one too many", counting(1))
    for job in reversed(jobs):
        queue.stop(job)


def test_a_clock_ticks_for_the_watcher_while_nothing_new_comes(queue):
    job = queue.submit("slow", counting(1, pause=0.2))
    assert len(wait(job)) > 5


def test_jobs_on_two_devices_work_at_once_and_those_on_one_never(queue):
    free, at_work = threading.Event(), []

    def work(name):
        def go(stop):
            at_work.append(name)
            yield free.wait(10)

        return go

    queue.device = "cuda:0"
    first = queue.submit("here", work("here"))
    others = [queue.submit(name, work(name), device=name[:6]) for name in ("cuda:1", "cuda:0-b", "cuda:1-b")]
    deadline = time.monotonic() + 5
    while len(at_work) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(at_work) == ["cuda:1", "here"] and [queue.jobs_ahead(job) for job in others] == [0, 1, 1]
    free.set()
    for job in (first, *others):
        wait(job)
    assert sorted(at_work) == ["cuda:0-b", "cuda:1", "cuda:1-b", "here"]


def test_waiting_jobs_are_moved_paused_and_resumed(queue):
    free, order = threading.Event(), []
    first = queue.submit("first", lambda stop: iter([free.wait(10)]))
    a, b, c = (queue.submit(name, lambda stop, name=name: iter([order.append(name)])) for name in "abc")
    queue.move(c, -2)
    queue.move(a, 5)
    queue.move(first, 1)
    assert [job.title for job in queue.list_jobs()] == ["first", "c", "b", "a"]
    queue.pause(c)
    assert c.state == "paused" and [queue.jobs_ahead(job) for job in (b, a)] == [1, 2], "it holds nobody up"
    free.set()
    wait(a)
    assert order == ["b", "a"] and queue.list_jobs() == [c]
    queue.resume(c)
    wait(c)
    assert order == ["b", "a", "c"]
    with pytest.raises(BadInput, match="not in the queue any more"):
        queue.find_job(c.key)


def test_a_job_with_a_process_is_paused_at_work_and_begins_again_later(queue):
    begun = []

    def go(stop):
        begun.append(1)
        while not stop.wait(0.01) and len(begun) < 2:
            yield len(begun)

    job = queue.submit("training", go, has_process=True)
    while not begun:
        time.sleep(0.005)
    queue.pause(job)
    deadline = time.monotonic() + 5
    while job.state != "paused" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.state == "paused" and not job.is_over and queue.list_jobs() == [job]
    queue.resume(job)
    wait(job)
    assert job.state == "done" and len(begun) == 2


def test_what_can_go_on_is_in_the_file_at_every_moment(queue, tmp_path):
    file, free = tmp_path / "queue.json", threading.Event()
    assert queue.save_to(file) == []

    def entries():
        return [(entry["run"], entry["paused"]) for entry in json.loads(file.read_text())["jobs"]]

    first = queue.submit("a", lambda stop: iter([free.wait(10)]), saved={"run": "a"})
    queue.submit("scores of a dropped file", counting(1))
    last = queue.submit("b", counting(1), saved={"run": "b"})
    queue.pause(last)
    assert entries() == [("a", False), ("b", True)]
    assert [entry["run"] for entry in JobQueue().save_to(file)] == ["a", "b"], "another server finds both"
    queue.stop(last)
    free.set()
    wait(first)
    deadline = time.monotonic() + 5
    while entries() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert entries() == []
    for damage in ("{", "[]", '{"jobs": 3}', '{"jobs": [1]}'):
        (tmp_path / "damaged.json").write_text(damage)
        with pytest.raises(BadInput, match="damaged.json"):
            JobQueue().save_to(tmp_path / "damaged.json")
