"""The command that follows a network over its training: trajectory."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from channelscope import store, zoo
from channelscope.cli.addition import Addition
from channelscope.cli.sources import Convention, console
from channelscope.collect import collect
from channelscope.errors import InputError, MismatchError, SampleError
from channelscope.experiments.hulls import Rule
from channelscope.experiments.progress import bar
from channelscope.experiments.trajectory import trajectory as followed
from channelscope.net.identity import weights_hash
from channelscope.stats.profile import Profile
from channelscope.zoo import History, ImageSource

USUAL = 2000
"""Calibration images where the user says nothing."""
Stage = tuple[str, int, Path]
"""run, epoch, weights"""


def trajectory(
    runs: list[Path],
    convention: Convention,
    rule: Rule,
    out: Path,
    images: int | None = None,
    layers: int = 6,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Follow hulls, synergy, communities and the alignment of the axes over the checkpoints of one or more training runs.

    runs    folders that `channelscope train` left, as a rule of several seeds
    out     folder for the tables, the profiles and report.html; an interrupted call goes on from there
    images  calibration images, the same for every checkpoint and run; by default 2,000, or all there are
    layers  layers to look at, evenly spaced in depth
    seed    which calibration images are drawn
    device  where it runs: cpu, cuda, cuda:1, …
    """
    histories = [History.read(run) for run in runs]
    source = _source(histories, images, seed)
    pairs = zip(names(runs), histories, strict=True)
    stages = [(run, epoch, path) for run, one in pairs for epoch, path in one.checkpoints.items()]
    if not stages:
        raise SampleError(f"no checkpoint in {', '.join(map(str, runs))}: train with --every 1 to keep one per epoch")
    addition = Addition(out)
    addition.agrees("", histories[0].network)
    profiles = dict(_profiles(stages, histories[0].network, source, device, out / "profiles"))
    frames = followed(((run, epoch, profiles[run, epoch]) for run, epoch, _ in stages), layers, rule, **convention.options())
    last = profiles[stages[-1][0], stages[-1][1]]
    for row in frames["trajectory_change"].query("verdict != ''").itertuples():
        console.print(f"{row.quantity}: {row.first:.3f} → {row.last:.3f} over {row.n} runs, the published direction {row.verdict}")
    print(addition.write(last, f"Training of {last.network}", frames, data=source.data, target=convention.target))


def names(runs: Sequence[Path]) -> list[str]:
    """Names of run folders: as many last parts of their paths as tell them apart.

    Parameters
    ----------
    runs
        The folders.

    Returns
    -------
    list
        One name a folder, in their order.

    Raises
    ------
    InputError
        If a folder is given twice.

    Examples
    --------
    >>> names([Path("runs/seed0"), Path("runs/seed1")]), names([Path("/a/seed0"), Path("/b/seed0")])
    (['seed0', 'seed1'], ['a/seed0', 'b/seed0'])
    """
    parts = [run.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise InputError(f"expected different runs, received {', '.join(map(str, runs))}: name each folder once")
    count = next(count for count in itertools.count(1) if len({each[-count:] for each in parts}) == len(parts))
    return ["/".join(each[-count:]) for each in parts]


def _source(histories: list[History], images: int | None, seed: int) -> ImageSource:
    """The images of the runs, normalized as they were in training.

    Raises   MismatchError if the runs are of different networks or images.
    """
    kinds = {(one.network, one.settings["images"]["data"]) for one in histories}
    if len(kinds) > 1:
        raise MismatchError(f"the runs are of different things: {'; '.join(f'{network} on {data}' for network, data in sorted(kinds))}")
    told = histories[0].settings["images"]
    if images is None:
        images = min(USUAL, told["splits"]["train"])
        if images < USUAL:
            console.print(f"--images: {images:,} training images, for that is all there are; {USUAL:,} where there are so many")
    return ImageSource(told["data"], images=images, seed=seed, mean=tuple(told["mean"]), std=tuple(told["std"]))


def _profiles(
    stages: list[Stage], network: str, source: ImageSource, device: str, folder: Path
) -> Iterator[tuple[tuple[str, int], Profile]]:
    """The profile of every checkpoint, kept in a folder; one that is there already is read."""
    with bar("checkpoints", len(stages)) as step:
        for run, epoch, weights in stages:
            model, images = zoo.load(network, source, weights, device)
            path = folder / f"{run.replace('/', '_')}_{weights.stem}.profile"
            if path.exists():
                found = store.load(path)
                if (found.weights_hash, found.images, found.seed) != (weights_hash(model), len(images.calibration), source.seed):
                    raise MismatchError(f"{path} is of other weights or images than {weights}: delete it, or give another --out")
            else:
                found = collect(model, images.calibration, shards=0, seed=source.seed)
                store.save(found, path)
            yield (run, epoch), found
            step()
