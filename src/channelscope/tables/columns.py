"""columns: every column the library's own tables use, by name."""

from collections.abc import Mapping

from channelscope.tables.column import Column
from channelscope.tables.quantities import QUANTITIES

HERE = "this library"


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=HERE)


def _count(unit: str, meaning: str) -> Column:
    return Column(unit, 0, meaning, HERE, low=0)


def _part(meaning: str, digits: int = 3, source: str = HERE) -> Column:
    return Column("fraction", digits, meaning, source, 0.0, 1.0)


def _index(meaning: str, source: str = HERE) -> Column:
    return Column("", 3, meaning, source, -1.0, 1.0)


COLUMNS: Mapping[str, Column] = {
    **QUANTITIES,
    "stage": _text("initialization, trained, or where weights come from that no file gives"),
    "network": _text("the network"),
    "data": _text("the images"),
    "site": _text("layer, by its module path"),
    "kind": _text("conv, grouped, depthwise or linear"),
    "note": _text("why a value is undefined or infinite"),
    "reason": _text("why it was left out"),
    "local": _text("quantity of the local axis"),
    "target": _text("quantity of the target axis"),
    "score": _text("the score"),
    "members": _text("channels of the set"),
    "depth": _count("", "position of the layer in execution order, from 0"),
    "channel": _count("", "channel within its layer, from 0"),
    "seed": _count("", "random seed"),
    "epoch": _count("epochs", "passes over the training images; 0 is the initialization"),
    "images": _count("images", "images measured"),
    "channels": _count("channels", "channels measured"),
    "layers": _count("layers", "layers measured"),
    "n": _count("", "number of things the row's value is made of"),
    "seconds": Column("s", 2, "wall-clock time", HERE, 0.0),
    "rho": _index("Spearman rank correlation between a local and a target quantity", "Spearman 1904"),
    "pooled": _index("the same over all layers at once, which mixes layer effects", "Spearman 1904"),
    "low": Column("", 3, "lower end of the 95 % interval", HERE),
    "high": Column("", 3, "upper end of the 95 % interval", HERE),
    "p": _part("p-value of the permutation test, (1 + hits) / (1 + permutations)", 3, "Phipson & Smyth 2010"),
    "ari": _index("adjusted Rand index between the grouping by local and by target quantities", "Hubert & Arabie 1985"),
    "null_mean": _index("mean of the index when channels are shuffled"),
    "null_high": _index("95th percentile of the index when channels are shuffled"),
    "silhouette_local": _index("silhouette of the grouping by local quantities", "Rousseeuw 1987"),
    "silhouette_target": _index("silhouette of the grouping by target quantities", "Rousseeuw 1987"),
    "stability_local": _index("agreement of the local grouping between random starts, adjusted Rand index"),
    "stability_target": _index("agreement of the target grouping between random starts, adjusted Rand index"),
    "accuracy": _part("share of images whose label is the network's first choice"),
    "loss": Column("nats", 3, "cross-entropy", HERE, 0.0),
    "macs": _count("MACs", "multiply-adds for one image"),
    "parameters": _count("", "trainable numbers"),
}
"""Every column the library's own tables use; a table may bring more."""
