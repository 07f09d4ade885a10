"""Threads that start together, each on a CPU of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence


def at_once(jobs: Sequence[Callable[[], object]]) -> None:
    """Runs each in a thread with a CPU of its own, as far as there are as many."""
    cpus = sorted(os.sched_getaffinity(0))
    start = threading.Barrier(len(jobs))
    failures: list[BaseException] = []

    def work(job: Callable[[], object], cpu: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            start.wait()
            job()
        except BaseException as failure:
            failures.append(failure)

    threads = [
        threading.Thread(target=work, args=(job, cpus[i % len(cpus)])) for i, job in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
