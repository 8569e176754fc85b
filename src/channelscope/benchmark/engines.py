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
"""Number of crashes without a result in between at which the benchmark stops."""


def run_trials(bench: Setup, tasks: Sequence[Task], engine: Engine = "process", count: int = 2, address: str | None = None) -> Done:
    """Measured rows of some trials, in any order.

    Parameters
    ----------
    bench
        Network and images.
    tasks
        Trials with the rankings they need.
    engine
        process: in this process, one after the other. workers: in `count` processes of this machine; trials of a process that
        crashes are retried. ray: on a Ray cluster (an extra), with one GPU per trial if the bench runs on a GPU.
    count
        Number of processes, or of CPUs of a new Ray cluster.
    address
        Address of a running Ray cluster; by default a new one on this machine.

    Yields
    ------
    tuple[Trial, dict]
        A trial and its row, as `measure` returns it.

    Raises
    ------
    ChannelscopeError
        If worker processes crash three times without a result in between.
    InputError
        For the engine ray without the extra.

    Examples
    --------
    >>> from channelscope.data.sources import ImageSource
    >>> list(run_trials(Setup("resnet20", None, ImageSource("digits")), tasks=[]))
    []
    """
    if engine == "process":
        for cell, rankings in tasks:
            yield cell, measure(bench, cell, rankings)
    elif engine == "workers":
        yield from _workers(bench, tasks, count)
    else:
        yield from _ray(bench, tasks, count, address)


def _workers(bench: Setup, tasks: Sequence[Task], count: int) -> Done:
    """Rows measured in several processes of this machine."""
    remaining, crashes = list(tasks), 0
    while remaining:
        finished: set[Trial] = set()
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _alone)
        try:
            waiting = {pool.submit(measure, bench, cell, rankings): cell for cell, rankings in remaining}
            for future in as_completed(waiting):
                row = future.result()
                finished.add(waiting[future])
                crashes = 0
                yield waiting[future], row
        except BrokenProcessPool as error:
            crashes += 1
            if crashes >= MAX_CRASHES:
                raise ChannelscopeError(
                    f"worker processes died {crashes} times without a result (out of memory?): use fewer workers; what is done is kept"
                ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        remaining = [task for task in remaining if task[0] not in finished]


def _alone() -> None:
    """Limit each worker to one thread."""
    torch.set_num_threads(1)


def _ray(bench: Setup, tasks: Sequence[Task], count: int, address: str | None) -> Done:
    """Rows measured on a Ray cluster."""
    try:
        import ray
    except ImportError as error:
        raise InputError("the engine ray needs an extra: pip install 'channelscope[ray]', or use --engine workers") from error
    started = not ray.is_initialized()
    if started and address:
        ray.init(address=address, log_to_driver=False)
    elif started:
        ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=1, num_gpus=1 if bench.device.startswith("cuda") else 0, max_retries=MAX_CRASHES)(measure)
    try:
        shared = ray.put(bench)
        waiting = {remote.remote(shared, cell, rankings): cell for cell, rankings in tasks}
        while waiting:
            (first, *_), _ = ray.wait(list(waiting))
            yield waiting.pop(first), ray.get(first)
    finally:
        if started:
            ray.shutdown()
