"""why: what the run folders of one network say about one of its channels, joined into a plain answer."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from channelscope import tables
from channelscope.errors import InputError, MismatchError, SiteError
from channelscope.study.evidence import TELLERS, Finding, Folder, counted, standing
from channelscope.tables import Column

COLUMNS = {
    "evidence": Column(meaning="what kind of run says it"),
    "run": Column(meaning="folder of the run"),
    "said": Column(meaning="what it says about the channel"),
    "score": Column(meaning="name of the score"),
    "value": Column("", 4, "the channel's score, in the unit of its quantity"),
    "rank": Column("", 0, "place among the channels of its layer, 1 is the largest", low=1.0),
    "of": Column("channels", 0, "channels of the layer that have the score", low=1.0),
    "above": Column("fraction", 3, "share of the layer's other channels with a smaller value", low=0.0, high=1.0),
}
MADE = {
    "pruning": ("No pruning", "channelscope prune {network} --out RUN"),
    "lesions": ("No lesion of it", "channelscope lesion {network} --sites {layer} --all --out RUN"),
    "circuits": ("No circuit of a feature that {layer} leads to", "channelscope circuit {network} --feature LAYER:CHANNEL --out RUN"),
    "scores": ("No scores", "channelscope axes {network} --out RUN"),
    "hulls": ("No stand-ins", "channelscope hulls PROFILE --out RUN, with the profile that axes leaves"),
}
"""kind of evidence → what is said where it is missing, and the command that makes it; in the order in which a reader asks"""
COUNTED = {"pruning": ("kept by", "pruning"), "lesions": ("missed in", "lesion"), "circuits": ("part of", "circuit")}
"""kind of evidence → how the answer counts it"""


def why(channel: str, folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Everything some run folders of one network say about a channel.

    channel  layer:channel, such as layer3.0.conv2:17

    Returns  `why`, one row a sentence, the answer first and what is missing last; `why_scores`, one row a score.
    Raises   SiteError, with near matches, for a layer no run knows; InputError for a channel it has not;
             MismatchError if the runs are of different weights; FormatError for a folder that is no run.
    """
    runs = [Folder.read(Path(path)) for path in folders]
    _same(runs)
    layer, number = _named(channel, runs)
    found = [finding for tell in TELLERS for run in runs for finding in tell(run, layer, number)]
    rows = [{"evidence": "answer", "run": "", "said": answer(f"{layer}:{number}", found)}]
    rows += [{"evidence": each.kind, "run": each.run, "said": each.said} for each in found]
    rows += [{"evidence": "missing", "run": "", "said": said} for said in missing(layer, found, runs[0])]
    about = {name: next((run.facts[name] for run in runs if run.facts.get(name)), "") for name in ("network", "data")}
    facts = about | {"channel": f"{layer}:{number}", "weights": runs[0].facts["weights"], "runs": [str(run.path) for run in runs]}
    ranks = [row for run in runs for row in standing(run, layer, number)]
    scores = pd.DataFrame(ranks, columns=["score", "value", "rank", "of", "above", "run"])
    return {"why": tables.table(rows, "why", COLUMNS, facts), "why_scores": tables.table(scores, "why_scores", COLUMNS, facts)}


def answer(channel: str, found: Sequence[Finding]) -> str:
    """The answer in a sentence: what speaks for the channel, counted."""
    parts = []
    for kind, (verb, noun) in COUNTED.items():
        votes = [finding.speaks_for for finding in found if finding.kind == kind and finding.speaks_for is not None]
        if votes:
            parts.append(f"{verb} {sum(votes)} of {counted(len(votes), noun)}")
    return f"{channel}: {', '.join(parts)}." if parts else f"{channel}: no run here prunes, lesions or uses it."


def missing(layer: str, found: Sequence[Finding], run: Folder) -> list[str]:
    """What kinds of evidence there are not, each with the command that makes it."""
    kinds = {finding.kind for finding in found if finding.kind != "circuits" or finding.speaks_for is not None}
    network = f"{run.facts.get('network', 'NETWORK')} --data {run.facts.get('data', 'DATA')}"
    return [f"{lack}: {made}".format(network=network, layer=layer) for kind, (lack, made) in MADE.items() if kind not in kinds]


def _same(runs: Sequence[Folder]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.facts["weights"] != first.facts["weights"]:
            raise MismatchError(
                f"the runs are of different networks: {first.path} has weights {first.facts['weights'][:12]} "
                f"({first.facts.get('network')}), {run.path} has {run.facts['weights'][:12]} ({run.facts.get('network')}): "
                "ask about runs of one network"
            )


def _named(channel: str, runs: Sequence[Folder]) -> tuple[str, int]:
    match = re.fullmatch(r"(.+):(\d+)", channel)
    if not match:
        raise InputError(f"channel: expected layer:channel, such as layer3.0.conv2:17; received '{channel}'")
    layer, number = match[1], int(match[2])
    known: dict[str, int] = {}
    for run in runs:
        known |= {name: max(count, known.get(name, 0)) for name, count in run.layers().items()}
    if layer not in known:
        near = ", ".join(f"{name}:{number}" for name in get_close_matches(layer, known, n=4, cutoff=0.3)) or "none"
        raise SiteError(f"no layer is called '{layer}' in these runs; near matches: {near}")
    if number >= known[layer]:
        raise InputError(f"{layer} has channels 0 to {known[layer] - 1} in these runs, received {number}")
    return layer, number
