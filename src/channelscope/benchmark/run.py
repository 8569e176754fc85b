"""The benchmark: rankings of every score, then every missing trial, in one process, several or on Ray; a run goes on from its file."""

import json
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from channelscope import scores as scoring
from channelscope.benchmark.trial import ORIGINAL, RECONSTRUCTION, Grid, Setup, Trial, allocated_as, measure
from channelscope.data.splits import Split
from channelscope.errors import ChannelscopeError, InputError, SampleError, SingularError, TracingError, check_choice
from channelscope.evaluation import bfloat16_gap
from channelscope.network.module_state import weights_hash
from channelscope.profiling.collect import collect
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeon
from channelscope.ranking import Ranking
from channelscope.site import Site
from channelscope.storage import ResumableStore

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


TABLES = """
CREATE TABLE IF NOT EXISTS rankings (seed INTEGER, score TEXT, about TEXT NOT NULL, numbers BLOB NOT NULL, PRIMARY KEY (seed, score));
CREATE TABLE IF NOT EXISTS cells (cell TEXT PRIMARY KEY, row TEXT NOT NULL, hits BLOB NOT NULL);
"""

RANKING_FIELDS = {
    "name": "name",
    "unit": "unit",
    "keeps": "keeps",
    "family": "axis",
    "source": "source",
    "comparable_across_layers": "comparable",
}
"""Field of a ranking → its name in the file."""


class TrialStore(ResumableStore):
    """Measured trials and rankings in one SQLite file; a file of another network, data or number of images is refused.

    Parameters
    ----------
    path
        The file, made if it does not exist.
    facts
        What the benchmark must agree in with the file.

    Raises
    ------
    FormatError
        If the file is damaged or holds no benchmark results.
    MismatchError
        If it holds another benchmark.

    Examples
    --------
    >>> import tempfile
    >>> row = {"accuracy": 0.5, "images": 2, "hits": np.packbits([True, False]).tobytes()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = TrialStore(Path(folder) / "results.sqlite", {"model": "toy"})
    ...     store.add(Trial(0, "l1", 0.5, "global", "none"), row)
    ...     ((trial, back),) = store.done().items()
    ...     store.close()
    >>> trial.score, back["accuracy"], back["hits"].tolist()
    ('l1', 0.5, [True, False])
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]):
        super().__init__(path, facts, TABLES, "a benchmark")

    def add_ranking(self, seed: int, name: str, ranking: Ranking | None, reason: str = "") -> None:
        """Store a ranking, or the reason why there is none.

        Parameters
        ----------
        seed
            Seed of the calibration images.
        name
            Name of the score.
        ranking
            The ranking; None if it cannot be computed.
        reason
            Why it cannot be computed.
        """
        about, numbers = {"reason": reason}, b""
        if ranking is not None:
            about = {stored: vars(ranking)[field] for field, stored in RANKING_FIELDS.items()}
            about |= {"sites": [site.as_dict() for site in ranking.sites], "input_shape": list(ranking.input_shape)}
            numbers = np.concatenate([ranking[site.name] for site in ranking.sites]).astype("<f8").tobytes()
        self.insert("rankings", seed, name, json.dumps(about), numbers)

    def rankings(self, seed: int) -> dict[str, Ranking | str]:
        """Score → its ranking for one seed, or the reason why there is none."""
        found: dict[str, Ranking | str] = {}
        for name, text, numbers in self.select("SELECT score, about, numbers FROM rankings WHERE seed = ?", seed):
            about = json.loads(text)
            about |= {field: about.pop(stored) for field, stored in RANKING_FIELDS.items() if stored in about}
            if "reason" in about:
                found[name] = about["reason"]
                continue
            sites = tuple(Site.from_dict(site) for site in about.pop("sites"))
            ends = np.cumsum([site.channels for site in sites])
            parts = np.split(np.frombuffer(numbers, "<f8"), ends[:-1])
            values = {site.name: part.copy() for site, part in zip(sites, parts, strict=True)}
            found[name] = Ranking(values=values, sites=sites, input_shape=tuple(about.pop("input_shape")), **about)
        return found

    def add(self, cell: Trial, row: Mapping[str, Any]) -> None:
        """Store one measured trial.

        Parameters
        ----------
        cell
            The trial.
        row
            Its row, as `measure` returns it.
        """
        plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items() if key != "hits"}
        self.insert("cells", _key(cell), json.dumps(plain), row["hits"])

    def done(self) -> dict[Trial, dict[str, Any]]:
        """Every measured trial with its row; `hits` is bool (images,)."""
        found = {}
        for key, text, hits in self.select("SELECT cell, row, hits FROM cells"):
            row: dict[str, Any] = {name: math.nan if value is None else value for name, value in json.loads(text).items()}
            row["hits"] = np.unpackbits(np.frombuffer(hits, np.uint8), count=row["images"]).astype(bool)
            found[Trial(**json.loads(key))] = row
        return found


def _key(cell: Trial) -> str:
    return json.dumps(cell.as_dict(), sort_keys=True)


FILE = "results.sqlite"

NEEDING_MAPS = ("hrank", "chip")

PRECISION_IMAGES = 2000

LARGEST_GAP = 0.001
"""Change of the unpruned network's accuracy from which on networks are not evaluated in bfloat16."""


def benchmark(
    bench: Setup,
    grid: Grid,
    folder: str | Path,
    engine: Engine = "process",
    count: int = 2,
    address: str | None = None,
    step: Callable[[int, int], None] | None = None,
) -> TrialStore:
    """Results of every trial of the grid; those that are not in the folder's results yet are measured.

    Channel groups, budget, removal, repair and images are the same for all scores. An interrupted benchmark continues where it
    was: a trial is stored as soon as it is measured, and never measured again.

    Parameters
    ----------
    bench
        Network and images.
    grid
        Combinations to measure.
    folder
        Folder of the results.
    engine
        process, workers or ray, as in `run_trials`.
    count
        Number of processes.
    address
        Address of a Ray cluster.
    step
        Called when the trials begin, and after each, with the number of finished trials and of all trials.

    Returns
    -------
    TrialStore
        All results of the folder.

    Raises
    ------
    InputError
        For an unknown engine, or a score that cannot be computed on these images.
    MismatchError
        If the folder's results are of another network, data or number of images.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope.data.sources import ImageSource
    >>> bench = Setup("resnet20(width=2)", None, ImageSource("digits", images=60), tests=90)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = benchmark(bench, Grid(("l2",), (0.8,), repairs=("none",)), folder)
    ...     rows = results.done()
    ...     results.close()
    >>> [(trial.score, row["kept"] <= trial.budget) for trial, row in sorted(rows.items())]
    [('', True), ('l2', True)]
    """
    check_choice("engine", engine, get_args(Engine))
    first = int(grid.seeds[0])
    found, images = bench.open(first)
    test = bench.test(images)
    facts = {
        "model": bench.model,
        "weights": weights_hash(found.graph.model),
        "data": bench.source.data,
        "calibration": len(images.calibration),
        "tests": f"{len(test):,} {test.name} images",
    }
    if bench.precision == "bfloat16":
        bench, facts["evaluation"] = _evaluated_in(bench, found.graph.model, test)
    results = TrialStore(Path(folder) / FILE, facts)
    allocating = tuple(filter(None, map(allocated_as, grid.allocations)))
    tasks: list[Task] = []
    done = results.done()
    if ORIGINAL not in done:
        tasks.append((ORIGINAL, {}))
    wanted = {ORIGINAL}
    for seed in map(int, grid.seeds):
        rankings = make_rankings(bench, seed, grid.scores, allocating, results)
        names = tuple(name for name in _requested_scores(grid.scores) if name in rankings)
        for cell in grid.cells(names):
            if cell.seed == seed:
                wanted.add(cell)
                if cell not in done:
                    tasks.append((cell, {name: rankings[name] for name in cell.rankings if name in rankings}))
    finished = len(wanted) - len(tasks)
    tell = step or (lambda done, total: None)
    tell(finished, len(wanted))
    for cell, row in run_trials(bench, tasks, engine, count, address):
        results.add(cell, row)
        finished += 1
        tell(finished, len(wanted))
    return results


def _evaluated_in(bench: Setup, model: nn.Module, test: Split) -> tuple[Setup, str]:
    """The setup, in float32 where bfloat16 changes the network's accuracy, and what tables say of it."""
    count, gap = min(PRECISION_IMAGES, len(test)), bfloat16_gap(model, test, PRECISION_IMAGES)
    bench = replace(bench, precision="bfloat16" if abs(gap) < LARGEST_GAP else "float32")
    return bench, f"{bench.precision}; the unpruned network's accuracy in bfloat16 differs by {100 * gap:.2f} points on {count:,} images"


def make_rankings(bench: Setup, seed: int, names: Iterable[str], others: Iterable[str], results: TrialStore) -> dict[str, Ranking]:
    """Rankings of one seed, from the results, or computed and stored there.

    Parameters
    ----------
    bench
        Network and images.
    seed
        Seed of the calibration images.
    names
        Scores, or `all`.
    others
        Further scores, whose allocation the grid uses.
    results
        Where rankings are stored.

    Returns
    -------
    dict[str, Ranking]
        Score → ranking.

    Raises
    ------
    InputError
        If a score that was asked for by name cannot be computed on these images; with `all` it is left out.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope.data.sources import ImageSource
    >>> bench = Setup("resnet20(width=2)", None, ImageSource("digits", images=60), tests=90)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = TrialStore(Path(folder) / FILE, {})
    ...     rankings = make_rankings(bench, 0, ("l2",), ("l1",), store)
    ...     store.close()
    >>> list(rankings)
    ['l2', 'l1']
    """
    asked = tuple(dict.fromkeys((*_requested_scores(names), *others)))
    known = results.rankings(seed)
    missing = [name for name in asked if name not in known]
    for name, ranking, reason in _make_ranking(bench, seed, missing):
        results.add_ranking(seed, name, ranking, reason)
        known[name] = ranking if ranking is not None else reason
    found: dict[str, Ranking] = {}
    for name in asked:
        ranking_or_reason = known[name]
        if isinstance(ranking_or_reason, Ranking):
            found[name] = ranking_or_reason
        elif name in names or name in others:
            raise InputError(f"{name} cannot be computed here: {ranking_or_reason}")
    return found


def _requested_scores(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the scores, with `all` resolved."""
    return (*scoring.REGISTRY, RECONSTRUCTION) if "all" in names else tuple(names)


def _make_ranking(bench: Setup, seed: int, names: list[str]) -> Iterator[tuple[str, Ranking | None, str]]:
    """Each score with its ranking, or None and the reason."""
    if not names:
        return
    found, images = bench.open(seed)
    plain = [scoring.REGISTRY[name] for name in names if name != RECONSTRUCTION]
    if plain:
        collect_profile = partial(
            collect, found.graph.model, images.calibration, shards=0, seed=seed, maps=any(each.name in NEEDING_MAPS for each in plain)
        )
        refusal = ""
        try:
            profile = collect_profile(sensitivity=any(score.family == "gradient" for score in plain))
        except TracingError as error:
            profile, refusal = collect_profile(), str(error)
        for score in plain:
            options = {"seed": seed} if score.name == "random" else {}
            try:
                if refusal and score.family == "gradient":
                    raise InputError(refusal)
                yield score.name, score(profile, **options), ""
            except (InputError, SampleError, SingularError) as error:
                yield score.name, None, str(error)
    if RECONSTRUCTION in names:
        yield RECONSTRUCTION, optimal_brain_surgeon(found, images.calibration, seed=seed, progress=False), ""
