"""Ablations: the damage of silenced channels, the part that peers recover, and the scores that predict it."""

import pandas as pd

from channelscope.report import verdict
from channelscope.report.section import Chart, Section
from channelscope.tables.frame import format_interval, format_percent
from channelscope.tables.run_folder import RunFolder, where

DAMAGE, RECOVERED = "damage_kl", "recovered_hull_kl"

PEERS = ("overlap", "support", "compactness")


def ablation_sentences(run: RunFolder) -> list[str]:
    """Sentences: the recovered share, the scores that correlate with the damage, and the partial correlations of the peer scores.

    Examples
    --------
    >>> from pathlib import Path
    >>> rows = [{"outcome": "damage_kl", "score": "l2", "rho": 0.7, "low": 0.65, "high": 0.75, "n": 40}]
    >>> ablation_sentences(RunFolder(Path(), {}, {"ablation_correlations": pd.DataFrame(rows)}))
    ['Damage correlates most with l2 0.70 [0.65, 0.75] (n = 40 channels); means over layers.']
    """
    recovered, correlations, partial = (run.table(name) for name in ("recovered", "ablation_correlations", "ablation_partial"))
    said = [] if recovered is None else _recovered(recovered)
    said += [] if correlations is None else _scores(correlations)
    said += [] if partial is None else _beyond(partial)
    notes = run.table("notes")
    return said + ([] if notes is None else [f"{line[0].upper()}{line[1:]}." for line in notes["note"]])


def _recovered(frame: pd.DataFrame) -> list[str]:
    whole = where(frame, site="all layers", quantity="kl")
    said = []
    for name, subset, words in (
        ("hull", "all", "Of the KL divergence that ablation causes, replacement sets (hulls) recover"),
        ("hull", "controls", "among the channels with controls they recover"),
        ("random", "controls", "as many random peers"),
        ("mean", "controls", "and the mean"),
    ):
        for row in where(whole, replacement=name, baseline="silence", subset=subset).to_dict("records"):
            said.append(f"{words} {format_interval(row['recovered'], row['low'], row['high'], row['n'], 'channels')}")
    return [", ".join(said) + "."] if said else []


def _scores(frame: pd.DataFrame) -> list[str]:
    said = []
    for outcome, words in ((DAMAGE, "Damage correlates most with"), (RECOVERED, "The share that hulls recover correlates most with")):
        rows = where(frame, outcome=outcome).dropna(subset=["rho"])
        rows = rows.reindex(rows["rho"].abs().sort_values(ascending=False).index)
        if len(rows):
            said.append(f"{words} {', '.join(_spoken(row) for row in rows.head(3).to_dict('records'))}; means over layers.")
    return said


def _beyond(frame: pd.DataFrame) -> list[str]:
    rows = where(frame, outcome=DAMAGE).to_dict("records")
    peers = [_spoken(row) for row in rows if row["score"] in PEERS and row["rho"] == row["rho"]]
    return [f"Partial correlation of the damage, controlling for task information and input capture: {', '.join(peers)}."] if peers else []


def _spoken(row: dict) -> str:
    return f"{verdict.title(row['score'])} {format_interval(row['rho'], row['low'], row['high'], int(row['n']), 'channels', top=1.0)}"


ABLATION = Section(
    "ablation_correlations",
    "Ablations",
    "Each channel is set to zero at its cut point; then it is replaced by a prediction from its hull, from as many random "
    "peers, or by its mean. "
    "How large is the damage, how much of it does each replacement recover, and which scores predict it?",
    (
        Chart(
            "Rank correlation with the damage of ablation",
            "score",
            "rho",
            kind="rows",
            where={"outcome": (DAMAGE,)},
            low="low",
            high="high",
            of="channels",
            label="Spearman ρ, mean over layers",
            zero=True,
            caption="Damage is the divergence of the output. Bars are 95 % intervals over channels within layers and over images.",
        ),
        Chart(
            "Rank correlation with the share that hulls recover",
            "score",
            "rho",
            kind="rows",
            where={"outcome": (RECOVERED,)},
            low="low",
            high="high",
            of="channels",
            label="Spearman ρ, mean over layers",
            zero=True,
            caption="Only channels whose damage exceeds its standard error have a recovered share.",
        ),
        Chart(
            "Recovered share of the damage, layer by layer",
            "depth",
            "recovered",
            by="replacement",
            where={"quantity": ("kl",), "baseline": ("silence",), "subset": ("controls",)},
            table="recovered",
            low="low",
            high="high",
            of="channels",
            zero=True,
            caption="Hull, as many random peers, and the mean, for the same channels. "
            "Below zero, the replacement is worse than zero-ablation.",
        ),
        Chart(
            "Damage against peer support",
            "support",
            "kl",
            kind="scatter",
            table="ablated_channels",
            caption="One point per channel; the KL divergence of the output in nats when it is ablated.",
        ),
    ),
    ablation_sentences,
    more=("recovered", "ablation_partial", "ablation_matched", "ablated_channels", "ablations", "consumers", "notes"),
    value="rho",
    anchor="ablations",
)


def hull_sentences(run: RunFolder) -> list[str]:
    """Sentences: the mean hull size of the layers, and how many hulls are full before they reach their threshold.

    Examples
    --------
    >>> from pathlib import Path
    >>> hulls = pd.DataFrame({"support": [0.9, 0.5, None], "saturated": [True, False, False]})
    >>> hull_sentences(RunFolder(Path(), {}, {"hulls": hulls}))
    ['1 of 2 hulls (50.0 %) are full before they reach their threshold.', '1 channel does not vary and has no hull.']
    """
    frame = run.table("hulls")
    if frame is None:
        return []
    known = frame.dropna(subset=["support"])
    silent, full = len(frame) - len(known), int(known["saturated"].sum())
    said = [
        _hull_layers(run.table("hull_layers")),
        f"{full:,} of {len(known):,} hulls ({format_percent(full / len(known)) if len(known) else 'none'}) are full before they reach "
        f"their threshold.",
    ]
    if silent:
        said.append(
            f"{silent:,} {'channel does' if silent == 1 else 'channels do'} not vary and {'has' if silent == 1 else 'have'} no hull."
        )
    return [line for line in said if line]


def _hull_layers(layers: pd.DataFrame | None) -> str:
    rows = [] if layers is None else layers.dropna(subset=["size"]).sort_values("size").to_dict("records")
    if not rows:
        return ""
    least, middle, most = (f"{_size(row)} in {row['site']}" for row in (rows[0], rows[len(rows) // 2], rows[-1]))
    return f"Mean number of members of a hull: {middle}, the median layer; from {least} to {most}."


def _size(row: dict) -> str:
    return format_interval(row["size"], row["size_low"], row["size_high"], int(row["channels"]), "channels")


HULLS = Section(
    "hull_layers",
    "Replaceability hulls",
    "How many same-layer channels are needed to predict a channel? Peers are added greedily, by explained variance, until "
    "the hull reaches its share of the variance that all peers explain.",
    (
        Chart(
            "Mean hull size",
            "depth",
            "size",
            low="size_low",
            high="size_high",
            count="channels",
            of="channels",
            label="members",
            caption="Bars are 95 % intervals over images (jackknife over shards).",
        ),
        Chart(
            "Hulls that are full before they reach the threshold",
            "depth",
            "saturated",
            low="saturated_low",
            high="saturated_high",
            count="channels",
            of="channels",
            label="fraction of channels",
            caption="Bars are 95 % intervals over images (jackknife over shards).",
        ),
        Chart(
            "Explained variance with one, two, three, five and ten members",
            "depth",
            "explained",
            by="size",
            where={"size": (1, 2, 3, 5, 10)},
            of="channels",
            table="hull_curve",
            label="explained variance",
            caption="Mean over the channels of a layer; complete hulls keep their final value.",
        ),
    ),
    hull_sentences,
    more=("hulls", "hull_curve"),
    anchor="hulls",
)
