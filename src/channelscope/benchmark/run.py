"""The benchmark: rank the channels by every score, then measure every trial that is missing."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

from channelscope import scores as scoring
from channelscope.benchmark.engines import Engine, Task
from channelscope.benchmark.engines import run_trials as engine_run
from channelscope.benchmark.grid import ORIGINAL, RECONSTRUCTION, Grid, allocated_as
from channelscope.benchmark.results import TrialStore
from channelscope.benchmark.setup import Setup
from channelscope.errors import InputError, SampleError, SingularError, TracingError, no_such
from channelscope.network.module_state import weights_hash
from channelscope.profiling.collect import collect
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeon
from channelscope.ranking import Ranking

FILE = "results.sqlite"

NEEDING_MAPS = ("hrank", "chip")


def benchmark(
    bench: Setup,
    grid: Grid,
    folder: str | Path,
    engine: Engine = "process",
    count: int = 2,
    address: str | None = None,
    step: Callable[[int, int], None] | None = None,
) -> TrialStore:
    """Measure every cell of the grid that is not in the folder's results yet, and return all that are there.

    A score only ranks: the groups, the budget, the removal, the repair and the images are the same for all. Interrupted at any
    moment it goes on where it was; a cell is kept as soon as it is measured, and never measured again.

    Parameters
    ----------
    step
        Is told how many cells of how many are done.

    Raises
    ------
    InputError
        For an engine that does not exist.
    MismatchError
        If the folder's results are of another network, data or number of images.
    """
    if engine not in get_args(Engine):
        raise InputError(no_such("engine", engine, get_args(Engine)))
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
    results = TrialStore(Path(folder) / FILE, facts)
    others = tuple(filter(None, map(allocated_as, grid.allocations)))
    tasks: list[Task] = []
    done = results.done()
    if ORIGINAL not in done:
        tasks.append((ORIGINAL, {}))
    wanted = {ORIGINAL}
    for seed in map(int, grid.seeds):
        rankings = make_rankings(bench, seed, grid.scores, others, results)
        names = tuple(name for name in _requested_scores(grid.scores) if name in rankings)
        for cell in grid.cells(names):
            if cell.seed == seed:
                wanted.add(cell)
                if cell not in done:
                    tasks.append((cell, {name: rankings[name] for name in cell.rankings if name in rankings}))
    count_done = len(wanted) - len(tasks)
    for cell, row in engine_run(bench, tasks, engine, count, address):
        results.add(cell, row)
        count_done += 1
        if step is not None:
            step(count_done, len(wanted))
    return results


def make_rankings(bench: Setup, seed: int, names: Iterable[str], others: Iterable[str], results: TrialStore) -> dict[str, Ranking]:
    """The rankings of one seed, from the results or made and kept there.

    Raises
    ------
    InputError
        If a score that was asked for by name cannot be computed on these images; with `all` it is left out.
    """
    asked = tuple(dict.fromkeys((*_requested_scores(names), *others)))
    known = results.rankings(seed)
    missing = [name for name in asked if name not in known]
    for name, ranking, reason in _make_ranking(bench, seed, missing):
        results.add_ranking(seed, name, ranking, reason)
        known[name] = ranking if ranking is not None else reason
    found: dict[str, Ranking] = {}
    for name in asked:
        value = known[name]
        if isinstance(value, Ranking):
            found[name] = value
        elif name in names or name in others:
            raise InputError(f"{name} cannot be computed here: {value}")
    return found


def _requested_scores(names: Iterable[str]) -> tuple[str, ...]:
    return (*scoring.REGISTRY, RECONSTRUCTION) if "all" in names else tuple(names)


def _make_ranking(bench: Setup, seed: int, names: list[str]) -> Iterator[tuple[str, Ranking | None, str]]:
    """Every ranking, or None and the reason."""
    if not names:
        return
    found, images = bench.open(seed)
    plain = [scoring.REGISTRY[name] for name in names if name != RECONSTRUCTION]
    if plain:
        gathered = partial(
            collect, found.graph.model, images.calibration, shards=0, seed=seed, maps=any(each.name in NEEDING_MAPS for each in plain)
        )
        foreign = ""
        try:
            profile = gathered(sensitivity=any(score.family == "gradient" for score in plain))
        except TracingError as error:
            profile, foreign = gathered(), str(error)
        for score in plain:
            options = {"seed": seed} if score.name == "random" else {}
            try:
                if foreign and score.family == "gradient":
                    raise InputError(foreign)
                yield score.name, score(profile, **options), ""
            except (InputError, SampleError, SingularError) as error:
                yield score.name, None, str(error)
    if RECONSTRUCTION in names:
        yield RECONSTRUCTION, optimal_brain_surgeon(found, images.calibration, seed=seed), ""
