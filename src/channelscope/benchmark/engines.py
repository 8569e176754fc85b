"""Where trials run: this process, several processes, or Ray. Each engine yields rows in any order."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

import torch

from channelscope.benchmark.grid import Trial
from channelscope.benchmark.setup import Setup, measure
from channelscope.errors import ChannelscopeError, InputError
from channelscope.ranking import Ranking

Engine = Literal["process", "workers", "ray"]

Task = tuple[Trial, Mapping[str, Ranking]]

Done = Iterator[tuple[Trial, dict[str, Any]]]

MAX_CRASHES = 3
"""Worker processes may die so often without a single result in between."""


def run_trials(bench: Setup, tasks: Sequence[Task], engine: Engine = "process", count: int = 2, address: str | None = None) -> Done:
    """Measure every task's cell.

    process   in this process, one after the other
    workers   in `count` processes of this machine; tasks of one that dies are given to others
    ray       on a Ray cluster (an extra) at `address`, or on a new one of `count` workers here; on a GPU each if the bench has one
    """
    if engine == "process":
        for cell, rankings in tasks:
            yield cell, measure(bench, cell, rankings)
    elif engine == "workers":
        yield from _workers(bench, tasks, count)
    else:
        yield from _ray(bench, tasks, count, address)


def _workers(bench: Setup, tasks: Sequence[Task], count: int) -> Done:
    left, deaths = list(tasks), 0
    while left:
        finished: set[Trial] = set()
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _alone)
        try:
            waiting = {pool.submit(measure, bench, cell, rankings): cell for cell, rankings in left}
            for future in as_completed(waiting):
                row = future.result()
                finished.add(waiting[future])
                deaths = 0
                yield waiting[future], row
        except BrokenProcessPool as error:
            deaths += 1
            if deaths >= MAX_CRASHES:
                raise ChannelscopeError(
                    f"worker processes died {deaths} times without a result (out of memory?): use fewer workers; what is done is kept"
                ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        left = [task for task in left if task[0] not in finished]


def _alone() -> None:
    """Workers share the processor: one thread each."""
    torch.set_num_threads(1)


def _ray(bench: Setup, tasks: Sequence[Task], count: int, address: str | None) -> Done:
    try:
        import ray
    except ImportError as error:
        raise InputError("the engine ray needs an extra: pip install 'channelscope[ray]', or use --engine workers") from error
    begun = not ray.is_initialized()
    if begun and address:
        ray.init(address=address, log_to_driver=False)
    elif begun:
        ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=1, num_gpus=1 if bench.device.startswith("cuda") else 0, max_retries=MAX_CRASHES)(measure)
    try:
        shared = ray.put(bench)
        waiting = {remote.remote(shared, cell, rankings): cell for cell, rankings in tasks}
        while waiting:
            (first, *_), _ = ray.wait(list(waiting))
            yield waiting.pop(first), ray.get(first)
    finally:
        if begun:
            ray.shutdown()
