"""What the columns of the experiments' tables mean, where the library's common list does not say."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from channelscope import tables
from channelscope.tables.schema import Column

OURS = "this library"

PAPER = "Safaai et al. 2026"

LOCAL, TARGET = ("capture", "overlap"), ("relevance", "excess")


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=OURS)


def _count(meaning: str, unit: str = "") -> Column:
    return Column(unit, 0, meaning, OURS, low=0)


def _part(meaning: str, source: str = OURS) -> Column:
    return Column("fraction", 3, meaning, source)


def _index(meaning: str, source: str = OURS) -> Column:
    return Column("", 3, meaning, source, -1.0, 1.0)


def _repaid(name: str, quantity: str) -> Column:
    return _part(
        f"1 − damage in {quantity} with {name} in its place / damage of silence; nan where that does not exceed its standard error", PAPER
    )


DAMAGE = {
    "loss": Column("nats", 4, "rise of the cross-entropy", OURS),
    "accuracy": Column("fraction", 4, "fall of the accuracy", OURS),
    "margin": Column("logits", 4, "fall of the logit margin", OURS),
    "kl": Column("nats", 4, "Kullback-Leibler divergence of the output from the intact network's", OURS, 0.0),
}
"""columns of damage: positive is worse"""

COLUMNS: Mapping[str, Column] = {
    **DAMAGE,
    **{f"repaid_{name}_{harm}": _repaid(name, harm) for name in ("hull", "random", "mean") for harm in ("loss", "kl")},
    "size": _count("members of the hull, or their mean", "members"),
    "saturated": _part("whether the hull is full before the threshold is reached, or the share of channels where it is", PAPER),
    "explained": _part("explained variance with the hull's members"),
    "compactness": Column("fraction/member", 3, "peer support over hull size", PAPER, 0.0),
    "intervention": _text("silence, or what stands in: hull, random (as many random peers), mean"),
    "said": _text("what a reader must be told"),
    "readers": _text("layers that see the channel with no layer in between"),
    "quantity": _text("quantity: of damage (loss or kl), or of a layer"),
    "stand_in": _text("what replaced the channel"),
    "baseline": _text("what its damage is compared with"),
    "which": _text("all ablated channels, or those that have controls"),
    "repaid": _part("1 − summed damage with the stand-in / summed damage of the baseline", PAPER),
    "damage": Column("nats", 4, "mean damage of the baseline per channel", OURS),
    "outcome": _text("what the score is compared with"),
    "bin": _text("cell of channels alike in task information and input capture, by thirds of the layer"),
    "given": _text("scores held equal"),
    "plain": _index("the same rank correlation with nothing held equal"),
    "rho": _index("rank correlation", "Spearman 1904"),
    "graph": _text("R: what two channels share; S: what they say only together; R − S: the gap"),
    "modularity": _index("modularity of the greedy partition of the strongest edges", "Clauset, Newman, Moore 2004"),
    "communities": _count("communities of the partition"),
    "edges": _count("edges of the graph"),
    "community": _count("community of the channel, 0 the largest"),
    "x": Column("", 3, "place in the drawing", OURS),
    "y": Column("", 3, "place in the drawing", OURS),
    "peer": _count("the other channel of the edge"),
    "weight": Column("nats", 3, "weight of the edge", OURS, 0.0),
    "run": _text("training run"),
    "value": Column("", 4, "mean over the runs of the mean over layers", OURS),
    "hull_size": Column("members", 3, "peers in a channel's replaceability hull", PAPER, 0.0),
    "triple": Column("nats", 4, "S3: what three channels say about the target beyond their best pair", PAPER, 0.0),
    "ratio": Column("", 3, "S3/S2: triplet excess over the pair excess inside the same triples", PAPER, 0.0),
    "modularity_r": _index("modularity of the R-graph", PAPER),
    "modularity_s": _index("modularity of the S-graph", PAPER),
    "gap": Column("", 3, "modularity of the R-graph minus that of the S-graph", PAPER),
    **{f"{one}_{other}": _index(f"Spearman's rho of {one} and {other} over a layer's channels") for one in LOCAL for other in TARGET},
    "first": Column("", 4, "mean over the runs at the first epoch", OURS),
    "last": Column("", 4, "mean over the runs at the last epoch", OURS),
    "change": Column("", 4, "last minus first epoch, paired within runs", OURS),
    "published_first": Column("", 3, "as published, at the start of training", PAPER),
    "published_last": Column("", 3, "as published, at the end of training", PAPER),
    "verdict": _text("whether the published direction holds, is reversed, or is open (the interval over runs has zero inside)"),
    "upstream": _text("quantity of the channels that are read"),
    "downstream": _text("quantity of the channels that read them"),
    "pair": _text("from which quantity to which"),
    "axes": _text("from which axis to which"),
    "reader": _text("the layer that reads"),
    "cosine": _index("Euclidean cosine of the two gradient directions", PAPER),
    "identity": Column("", 3, "|w'g| / (|w| |g|): zero but for rounding", PAPER, 0.0),
    "step": _count("gradient steps"),
    "system": _text("what follows the gradient: single channels, or a linear network"),
    "alignment": _index("Spearman's rho of input capture and task information over the channels", "Spearman 1904"),
}


def table(name: str, rows: pd.DataFrame | Iterable[Mapping[str, Any]], **facts: Any) -> pd.DataFrame:
    """A described table of an experiment; `facts` (units, assumption, …) become part of its description."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    return tables.describe(frame, {"name": name, "columns": COLUMNS, **facts})
