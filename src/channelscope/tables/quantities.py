"""The quantities per channel, with title, unit, meaning and source, and the columns that every table may use."""

from collections.abc import Mapping

from channelscope.tables.schema import OURS, PAPER, Column, Quantity

POSITIONS = "16 positions per image, at the layer's own output"

POOLED = "average over positions, one sample per image, at the layer's own output"

OWN = "variance of the channel's own output"

PEERS = "correlations with the other channels of its layer"

MARGIN = "correlation with the target, by default the network's logit margin"

BOTH = f"{MARGIN}, for the channel and its peers"

CAPTURE = Quantity(
    name="capture",
    title="input capture",
    symbol="I_X",
    axis="local",
    unit="nats",
    low=0.0,
    keeps="high",
    meaning="how much the channel takes from its input; compares within a layer only",
    formula="½ ln(1 + Var Y / s²), s² the layer's median variance",
    computed=OWN,
    readout=POSITIONS,
    reads="low: hardly varies between images and positions; high: varies most in its layer",
    source=PAPER,
)

OVERLAP = Quantity(
    name="overlap",
    title="peer overlap",
    symbol="R̄",
    axis="local",
    unit="nats",
    digits=4,
    low=0.0,
    keeps="low",
    meaning="how much the channel shares with a peer of its layer, on average",
    formula="mean over peers of −½ ln(1 − ρ²)",
    computed=PEERS,
    readout=POSITIONS,
    reads="low: independent of its peers; high: peers vary with it; infinite: an exact copy",
    source=PAPER,
)

RELEVANCE = Quantity(
    name="relevance",
    title="task information",
    symbol="I_T",
    axis="target",
    unit="nats",
    digits=4,
    low=0.0,
    keeps="high",
    meaning="how much the channel alone says about the task",
    formula="−½ ln(1 − ρ²) of channel and target",
    computed=MARGIN,
    readout=POOLED,
    reads="about 0 (below it where the bias exceeds the estimate): no information by itself; high: nearly determines the task",
    source=PAPER,
)

EXCESS = Quantity(
    name="excess",
    title="target excess",
    symbol="S",
    axis="target",
    unit="nats",
    digits=4,
    low=0.0,
    keeps="high",
    meaning="how much more a pair says about the task than its better half, averaged over peers",
    formula="mean over peers of I(T; Y, peer) − max(I_T, I_T of the peer)",
    computed=BOTH,
    readout=POOLED,
    reads="about 0: no synergy with any peer; high: strong synergy with its peers",
    source=f"{PAPER}; Barrett 2015",
)

RAYLEIGH = Quantity(
    name="rayleigh",
    title="Rayleigh quotient",
    symbol="RQ",
    axis="local",
    unit="variance per squared weight",
    low=0.0,
    keeps="high",
    meaning="output variance per squared weight norm",
    formula="w'Σw / |w|²",
    computed=f"{OWN}, and its weights",
    readout=POSITIONS,
    reads="low: weights lie in directions of low input variance; high: in directions of high input variance",
    source=PAPER,
)

SUPPORT = Quantity(
    name="support",
    title="peer support",
    symbol="E",
    axis="local",
    unit="fraction",
    low=0.0,
    high=1.0,
    keeps="low",
    meaning="share of the channel's variance that all its peers explain together",
    formula="explained variance of Y given all peers, ridge 0.001",
    computed=PEERS,
    readout=POSITIONS,
    reads="0: no peer can stand in; 1: the peers replace it exactly",
    source=f"{PAPER}; Guttman 1953",
)

UNIQUE = Quantity(
    name="unique",
    title="unique information",
    symbol="U",
    axis="target",
    unit="nats",
    digits=4,
    low=0.0,
    keeps="high",
    meaning="task information that no peer repeats, on average",
    formula="max(0, I_T − mean redundancy)",
    computed=BOTH,
    readout=POOLED,
    reads="0: peers know as much; high: alone in knowing it",
    source=PAPER,
)

REDUNDANCY = Quantity(
    name="redundancy",
    title="task redundancy",
    symbol="Red",
    axis="target",
    unit="nats",
    digits=4,
    low=0.0,
    keeps="low",
    meaning="task information that a peer has too, on average",
    formula="mean over peers of min(I_T, I_T of the peer)",
    computed=BOTH,
    readout=POOLED,
    reads="low: its task information is in no peer; high: its peers have it too",
    source=f"Barrett 2015; {PAPER}",
)

HULL_SIZE = Quantity(
    name="hull_size",
    title="hull size",
    symbol="|H|",
    axis="local",
    unit="channels",
    digits=0,
    low=0.0,
    keeps="high",
    meaning="peers needed to stand in for the channel",
    formula="smallest greedy peer set reaching 95 % of E, at most 10",
    computed=PEERS,
    readout=POSITIONS,
    reads="low: one or two peers replace it; high: it takes many",
    source=PAPER,
)

COMPACTNESS = Quantity(
    name="compactness",
    title="hull compactness",
    symbol="E/|H|",
    axis="local",
    unit="fraction/member",
    low=0.0,
    high=1.0,
    keeps="low",
    meaning="variance explained per peer of the hull",
    formula="explained variance / hull size",
    computed=PEERS,
    readout=POSITIONS,
    reads="low: hard to replace; high: few peers replace it well",
    source=PAPER,
)

QUANTITIES: Mapping[str, Quantity] = {
    each.name: each for each in (CAPTURE, OVERLAP, RELEVANCE, EXCESS, RAYLEIGH, SUPPORT, UNIQUE, REDUNDANCY, HULL_SIZE, COMPACTNESS)
}
"""The quantities of both axes; the first four are the headline ones."""

HEADLINE = ("capture", "overlap", "relevance", "excess")


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=OURS)


def _count(unit: str, meaning: str) -> Column:
    return Column(unit, 0, meaning, OURS, low=0)


def _part(meaning: str, digits: int = 3, source: str = OURS) -> Column:
    return Column("fraction", digits, meaning, source, 0.0, 1.0)


def _index(meaning: str, source: str = OURS) -> Column:
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
    "n": _count("", "sample size of the row's value"),
    "seconds": Column("s", 2, "wall-clock time", OURS, 0.0),
    "rho": _index("Spearman rank correlation between a local and a target quantity", "Spearman 1904"),
    "pooled": _index("the same over all layers at once, which mixes layer effects", "Spearman 1904"),
    "low": Column("", 3, "lower end of the 95 % interval", OURS),
    "high": Column("", 3, "upper end of the 95 % interval", OURS),
    "p": _part("p-value of the permutation test, (1 + hits) / (1 + permutations)", 3, "Phipson & Smyth 2010"),
    "ari": _index("adjusted Rand index between the grouping by local and by target quantities", "Hubert & Arabie 1985"),
    "null_mean": _index("mean of the index when channels are shuffled"),
    "null_high": _index("95th percentile of the index when channels are shuffled"),
    "silhouette_local": _index("silhouette of the grouping by local quantities", "Rousseeuw 1987"),
    "silhouette_target": _index("silhouette of the grouping by target quantities", "Rousseeuw 1987"),
    "stability_local": _index("agreement of the local grouping between random starts, adjusted Rand index"),
    "stability_target": _index("agreement of the target grouping between random starts, adjusted Rand index"),
    "accuracy": _part("share of images whose label is the network's first choice"),
    "loss": Column("nats", 3, "cross-entropy", OURS, 0.0),
    "macs": _count("MACs", "multiply-adds for one image"),
    "parameters": _count("", "trainable numbers"),
}
"""Every column the library's own tables use; a table may bring more."""
