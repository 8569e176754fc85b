"""The quantities of every report: what each is, what it is computed from, at which readout, and which end is kept."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """One line of the summary a reader of a report needs."""

    name: str
    """column in tables and name of the score"""
    title: str
    """the field's name for it"""
    symbol: str
    """symbol in formulas"""
    axis: Literal["local", "target"]
    """which question it answers"""
    computed: str
    """what it is computed from"""
    readout: str
    """what a sample is"""
    span: str
    """range and unit"""
    keeps: Literal["high", "low"]
    """which end a pruner keeps"""
    digits: int = 3
    """decimals shown"""


QUANTITIES = (
    Quantity(
        "capture", "Input capture", "I_X", "local", "output variance against the layer's median variance: ½ ln(1 + Var/s²)",
        "positions of each image, before normalization", "0 … ∞ nats, comparable within a layer", "high",
    ),
    Quantity(
        "overlap", "Peer overlap", "R̄", "local", "correlation with each same-layer peer: mean of −½ ln(1 − ρ²)",
        "positions of each image, before normalization", "0 … ∞ nats, ∞ for an exact copy", "low",
    ),
    Quantity(
        "support", "Peer support", "E", "local", "ridge regression on all peers: explained share of the variance",
        "positions of each image, before normalization", "0 … 1", "low",
    ),
    Quantity(
        "rayleigh", "Rayleigh quotient", "RQ", "local", "output variance per squared weight norm: w'Σw / |w|²",
        "positions of each image, before normalization", "0 … ∞ (input units squared)", "high",
    ),
    Quantity(
        "relevance", "Task information", "I_T", "target", "correlation with the target: −½ ln(1 − ρ²), less its bias 1/(2n)",
        "average over positions, one sample per image", "about 0 … ∞ nats", "high", 4,
    ),
    Quantity(
        "excess", "Target excess", "S", "target", "mean over peers of what a pair says beyond its better half: I(pair) − max(I_i, I_j)",
        "average over positions, one sample per image", "0 … ∞ nats", "high", 4,
    ),
    Quantity(
        "unique", "Unique information", "U", "target", "task information beyond the mean redundancy with peers",
        "average over positions, one sample per image", "0 … ∞ nats", "high", 4,
    ),
    Quantity(
        "redundancy", "Redundant information", "min", "target", "mean over peers of min(I_i, I_j)",
        "average over positions, one sample per image", "0 … ∞ nats", "low", 4,
    ),
)  # fmt: skip
MAIN = ("capture", "overlap", "relevance", "excess")
"""the four of the paper"""
BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}


def diagram() -> str:
    """How the four main quantities come about, as an SVG drawing that follows the page's colors."""
    boxes = [
        _box(20, 100, 150, "images", "calibration split"),
        _box(220, 100, 170, "channel output", "before normalization"),
        _box(430, 20, 210, "positions of each image", "16 drawn by image index"),
        _box(430, 180, 210, "average over positions", "one sample per image"),
        _box(220, 250, 170, "target", "logit margin"),
        _box(700, 0, 250, "I_X · input capture", "variance → ½ ln(1 + Var/s²)", "local"),
        _box(700, 70, 250, "R̄ · peer overlap", "ρ with peers → −½ ln(1 − ρ²)", "local"),
        _box(700, 160, 250, "I_T · task information", "ρ with target → −½ ln(1 − ρ²)", "target"),
        _box(700, 230, 250, "S · target excess", "pairs: I(pair) − max(I)", "target"),
    ]
    arrows = [
        (170, 125, 220, 125), (390, 118, 430, 50), (390, 132, 430, 200), (640, 40, 700, 28), (640, 50, 700, 92),
        (640, 200, 700, 186), (640, 210, 700, 250), (390, 275, 700, 262), (390, 268, 700, 196),
    ]  # fmt: skip
    lines = [f'<line x1="{a}" y1="{b}" x2="{c}" y2="{d}" marker-end="url(#tip)"/>' for a, b, c, d in arrows]
    return (
        '<svg class="diagram" viewBox="0 -8 970 320" role="img" aria-label="How the four quantities are computed" '
        'xmlns="http://www.w3.org/2000/svg"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>' + "".join(lines) + "".join(boxes) + "</svg>"
    )


def _box(x: int, y: int, width: int, title: str, note: str, kind: str = "step") -> str:
    return (
        f'<g class="{kind}"><rect x="{x}" y="{y}" width="{width}" height="52" rx="8"/>'
        f'<text x="{x + width / 2:g}" y="{y + 22}" class="head">{title}</text><text x="{x + width / 2:g}" y="{y + 40}">{note}</text></g>'
    )
