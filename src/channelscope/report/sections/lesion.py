"""Lesions: what breaks when a channel is silenced, what its peers repay, and which scores knew."""

import pandas as pd

from channelscope.report import text
from channelscope.report.chart import Chart
from channelscope.report.run import Run, where
from channelscope.report.section import Section
from channelscope.tables import interval

DAMAGE, REPAID = "damage_kl", "repaid_hull_kl"
PEERS = ("overlap", "support", "compactness")


def answer(run: Run) -> list[str]:
    """What is repaid, which score goes with damage, and whether peers matter once what a channel says is held equal."""
    repaid, correlations, partial = (run.table(name) for name in ("repaid", "lesion_correlations", "lesion_partial"))
    said = [] if repaid is None else _repaid(repaid)
    said += [] if correlations is None else _scores(correlations)
    said += [] if partial is None else _beyond(partial)
    told = run.table("said")
    return said + ([] if told is None else [f"{line[0].upper()}{line[1:]}." for line in told["said"]])


def _repaid(frame: pd.DataFrame) -> list[str]:
    whole = where(frame, site="all layers", quantity="kl")
    said = []
    for name, which, words in (
        ("hull", "all", "Of the divergence that silencing causes, hulls repay"),
        ("hull", "controls", "among the channels with controls they repay"),
        ("random", "controls", "as many random peers"),
        ("mean", "controls", "and the mean"),
    ):
        for row in where(whole, stand_in=name, baseline="silence", which=which).to_dict("records"):
            said.append(f"{words} {interval(row['repaid'], row['low'], row['high'], row['n'], 'channels')}")
    return [", ".join(said) + "."] if said else []


def _scores(frame: pd.DataFrame) -> list[str]:
    said = []
    for outcome, words in ((DAMAGE, "Damage goes most with"), (REPAID, "What hulls repay goes most with")):
        rows = where(frame, outcome=outcome).dropna(subset=["rho"])
        rows = rows.reindex(rows["rho"].abs().sort_values(ascending=False).index)
        if len(rows):
            said.append(f"{words} {', '.join(_spoken(row) for row in rows.head(3).to_dict('records'))}; means over layers.")
    return said


def _beyond(frame: pd.DataFrame) -> list[str]:
    rows = where(frame, outcome=DAMAGE).to_dict("records")
    peers = [_spoken(row) for row in rows if row["score"] in PEERS and row["rho"] == row["rho"]]
    return [f"With task information and input capture held equal, damage goes with {', '.join(peers)}."] if peers else []


def _spoken(row: dict) -> str:
    return f"{text.title(row['score'])} {interval(row['rho'], row['low'], row['high'], int(row['n']), 'channels', top=1.0)}"


LESION = Section(
    "lesion_correlations",
    "Lesions",
    "A channel is silenced at the place where its readers look; then its hull, as many random peers, or its mean stand in. "
    "How much breaks, how much is repaid, and which scores knew?",
    (
        Chart(
            "Rank correlation with the damage of silencing",
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
            "Rank correlation with what hulls repay",
            "score",
            "rho",
            kind="rows",
            where={"outcome": (REPAID,)},
            low="low",
            high="high",
            of="channels",
            label="Spearman ρ, mean over layers",
            zero=True,
            caption="Only channels whose damage exceeds its standard error have a repaid share.",
        ),
        Chart(
            "Repaid share of the damage, layer by layer",
            "depth",
            "repaid",
            by="stand_in",
            where={"quantity": ("kl",), "baseline": ("silence",), "which": ("controls",)},
            table="repaid",
            low="low",
            high="high",
            of="channels",
            zero=True,
            caption="Hull, as many random peers, and the mean, for the same channels. Below zero the stand-in does more harm than silence.",
        ),
        Chart(
            "Damage against peer support",
            "support",
            "kl",
            kind="scatter",
            table="lesioned_channels",
            caption="One point per channel; the divergence of the output in nats when it is silenced.",
        ),
    ),
    answer,
    more=("repaid", "lesion_partial", "lesion_matched", "lesioned_channels", "lesions", "readers", "said"),
    value="rho",
)
