"""Commands that ask how channels hang together, and what pulls them apart: graphs, propagation, theory."""

from pathlib import Path

from channelscope import store
from channelscope.cli.addition import Addition, folder_at
from channelscope.cli.sources import Convention, Network, console, opened
from channelscope.experiments.graphs import graphs as communities
from channelscope.experiments.propagation import propagation as handed_on
from channelscope.experiments.simulation import simulation as simulated
from channelscope.experiments.theory import Readout
from channelscope.experiments.theory import theory as directions
from channelscope.zoo import ImageSource


def graphs(profile: Path, convention: Convention, out: Path, share: float = 0.1, weighted: bool = True, shards: bool = True) -> None:
    """Find the communities of channels that share information, and of channels that complete each other.

    profile   profile file
    out       folder for the tables and report.html
    share     edges kept: this share of the positive ones, the strongest
    weighted  count the edges' weights in the modularity
    shards    give intervals over images, at ten times the cost
    """
    addition, found = Addition(out), store.load(profile)
    addition.agrees(found.weights_hash, found.network)
    print(addition.write(found, f"Graphs of {found.network}", communities(found, share, weighted, shards, **convention.options())))


def propagation(
    network: Network,
    source: ImageSource,
    convention: Convention,
    out: Path = Path("runs/propagation"),
    profile: Path | None = None,
    permutations: int = 200,
) -> None:
    """Follow what channels have on each axis to the channels that read them.

    out           folder for the tables and report.html
    profile       a profile collected before, instead of a new pass over the calibration images
    permutations  shuffles of the upstream channels behind the null
    """
    folder_at(out)
    model, images = opened(network, source)
    addition = Addition(out)
    found = addition.profiled(model, images, profile)
    frames = handed_on(model, found, permutations, source.seed, **convention.options())
    print(addition.write(found, f"Propagation in {network.model}", frames, data=source.data, target=convention.target, **network.origin))


def theory(
    network: Network,
    source: ImageSource,
    out: Path = Path("runs/theory"),
    profile: Path | None = None,
    readout: Readout = "positions",
    sites: tuple[str, ...] | None = None,
) -> None:
    """Measure the angle between the directions in which input capture and task information pull each channel's weights.

    out      folder for the tables and report.html
    profile  a profile collected before; the directions take a pass over the calibration images of their own
    readout  what a sample is: every position of an image, or its average
    sites    sites to look at; by default every one
    """
    folder_at(out)
    model, images = opened(network, source)
    addition = Addition(out)
    found = addition.profiled(model, images, profile)
    frames = directions(model, found, images.calibration, readout, sites) | simulated()
    for row in frames["theory_skipped"].itertuples():
        console.print(f"  skipped {row.site}: {row.reason}", style="dim")
    print(addition.write(found, f"Gradient directions in {network.model}", frames, data=source.data, target="margin", **network.origin))
