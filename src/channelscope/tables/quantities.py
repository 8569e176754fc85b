"""Column, Quantity and Schema: the description of a table's column, of a quantity per channel, and of a table.

Below them stand the quantities per channel, with title, unit, meaning and source, and the columns that every table may use.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from channelscope.ranking import Keeps

OURS = "this library"
"""source of what is defined nowhere else"""
PAPER = "Safaai et al. 2026"
"""source of the quantities of both axes"""


@dataclass(frozen=True)
class Column:
    """Description of one column: unit, decimals, meaning, source and range.

    Examples
    --------
    >>> Column("nats", meaning="loss", low=0.0).as_dict()
    {'unit': 'nats', 'digits': 3, 'meaning': 'loss', 'low': 0.0}
    """

    unit: str = ""
    """nats, fraction, images, …; '' for names and pure numbers"""
    digits: int = 3
    """decimals shown; 0 for counts"""
    meaning: str = ""
    """one line, no full stop"""
    source: str = ""
    """where the definition comes from"""
    low: float | None = None
    """smallest possible value, if there is one"""
    high: float | None = None
    """largest possible value, if there is one"""

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary, without the empty fields."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "") or key in ("unit", "meaning")}

    @classmethod
    def text(cls, meaning: str, source: str = OURS) -> "Column":
        """A column of names or sentences."""
        return cls(meaning=meaning, source=source)

    @classmethod
    def count(cls, meaning: str, unit: str = "", source: str = OURS) -> "Column":
        """A column of whole numbers from 0."""
        return cls(unit, 0, meaning, source, low=0)

    @classmethod
    def fraction(cls, meaning: str, source: str = OURS, digits: int = 3) -> "Column":
        """A column of fractions."""
        return cls("fraction", digits, meaning, source)

    @classmethod
    def correlation(cls, meaning: str, source: str = OURS) -> "Column":
        """A column of numbers from −1 to 1, such as a correlation or a modularity."""
        return cls("", 3, meaning, source, -1.0, 1.0)


@dataclass(frozen=True)
class Quantity(Column):
    """Description of a number per channel; `name` is its column and its score.

    Examples
    --------
    >>> Quantity(unit="fraction", low=0.0, high=1.0, name="support", title="peer support").range
    '[0, 1]'
    """

    name: str = ""
    title: str = ""
    """what people call it"""
    symbol: str = ""
    """as the paper writes it"""
    axis: Literal["local", "target"] = "local"
    """which of the two questions it answers"""
    formula: str = ""
    """in one line"""
    computed: str = ""
    """what it is computed from"""
    readout: str = ""
    """what a sample is"""
    keeps: Keeps = "high"
    """which end a pruner keeps"""
    reads: str = ""
    """a low and a high value in words"""

    @property
    def range(self) -> str:
        """The possible values, as an interval."""
        low = "(−∞" if self.low is None else f"[{self.low:g}"
        high = "∞)" if self.high is None else f"{self.high:g}]"
        return f"{low}, {high}"


@dataclass(frozen=True)
class Schema:
    """Name and columns of one table; it stands beside the function that fills the table, and `tables.fill` applies it.

    Examples
    --------
    >>> curve = Schema("hull_curve", "site n", {"size": Column.count("members of the hull", "members")})
    >>> curve.name, curve.names
    ('hull_curve', ('site', 'n', 'size'))
    """

    name: str
    """of the table: its file without ending, its key among the tables of a function, its name in the report"""
    common: str = ""
    """columns with the meaning they have in every table (`tables.COLUMNS`), separated by spaces"""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """the table's own columns; NAME_se, NAME_low and NAME_high are described by NAME"""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, the common ones first."""
        return (*self.common.split(), *self.columns)


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

SCORE_TITLES = {
    "peer_residual": "variance peers do not explain",
    "capture_overlap": "input capture and peer overlap",
    "task_credit": "residualized task credit",
    "norm_capture": "L2 norm and input capture",
    "duplicate_task": "duplicate task mass",
    "nonreplaceable_task": "non-replaceable task mass",
    "l1": "L1 norm",
    "l2": "L2 norm",
    "bn_scale": "BN scale",
    "activation_mean": "mean activation",
    "activation_rms": "RMS activation",
    "taylor_weight": "Taylor expansion, weights",
    "taylor_activation": "Taylor expansion, activations",
    "fisher": "Fisher information",
    "fpgm": "FPGM",
    "hrank": "HRank",
    "chip": "CHIP",
}
"""titles of scores that are no quantities of the axes, where they differ from the score's name"""


def score_title(name: str) -> str:
    """Title of a quantity or a score for readers.

    Parameters
    ----------
    name
        Name of the quantity, the score or anything else.

    Returns
    -------
    str
        The title; for an unknown name, its words.

    Examples
    --------
    >>> score_title("capture"), score_title("fpgm"), score_title("local_composite")
    ('input capture', 'FPGM', 'local composite')
    """
    return QUANTITIES[name].title if name in QUANTITIES else SCORE_TITLES.get(name, name.replace("_", " "))


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
