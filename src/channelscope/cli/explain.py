"""Commands that ask how channels hang together: graphs."""

from pathlib import Path

from channelscope import store
from channelscope.cli.addition import Addition
from channelscope.cli.sources import Convention
from channelscope.experiments.graphs import graphs as communities


def graphs(profile: Path, convention: Convention, out: Path, share: float = 0.1, weighted: bool = True, shards: bool = True) -> None:
    """Find the communities of channels that share information, and of channels that complete each other.

    profile   profile file
    out       folder for the tables and report.html
    share     edges kept: this share of the positive ones, the strongest
    weighted  count the edges' weights in the modularity
    shards    give intervals over images, at ten times the cost
    """
    addition, found = Addition(out), store.load(profile)
    addition.agrees(found.weights_hash)
    print(addition.write(found, f"Graphs of {found.network}", communities(found, share, weighted, shards, **convention.options())))
