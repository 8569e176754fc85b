"""quantities: the numbers that describe a channel on the two axes, with everything needed to read them."""

from collections.abc import Mapping

from channelscope.tables.column import Quantity

PAPER = "Safaai et al. 2026"
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
    reads="low: shared with no one; high: peers carry it too; infinite: an exact copy",
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
    reads="0 or, after the finite-sample bias is subtracted, just below: nothing of the task by itself; high: nearly decides it",
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
    reads="0 or just below: adds nothing to any peer; high: completes its peers",
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
    reads="low: its weights miss what varies in the input; high: they point along it",
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
    reads="low: nothing that peers repeat; high: peers repeat it",
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
