"""Summary of one channel: what the run folders of a network contain about it, and how these are read."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from channelscope import tables
from channelscope.circuits import folder as circuit_folder
from channelscope.circuits.circuit import Circuit
from channelscope.errors import FormatError, InputError, MismatchError, SiteError, no_such
from channelscope.pruning.folder import Manifest
from channelscope.tables.frame import counted, format_number, format_percent
from channelscope.tables.quantities import Column, score_title
from channelscope.tables.run_folder import FACTS, RunFolder

GROUP = "circuit_[0-9]*"
"""Pattern of the folders of circuits of groups of images."""


class EvidenceFolder(RunFolder):
    """A run folder with its circuits and pruned network."""

    @classmethod
    def read(cls, folder: str | Path) -> "EvidenceFolder":
        """The run folder, whose run.json has to name the weights.

        Parameters
        ----------
        folder
            The folder.

        Returns
        -------
        EvidenceFolder
            Its facts and tables.

        Raises
        ------
        FormatError
            If it is no run folder, its run.json does not name the weights, or a file in it is damaged.
        """
        run = RunFolder.read(folder)
        if not run.facts.get("weights"):
            raise FormatError(f"{run.folder / FACTS} does not say which weights the network had: make the run again with this version")
        return cls(run.folder, run.facts, run.tables)

    @cached_property
    def circuits(self) -> dict[str, Circuit]:
        """Folder → circuit: its own, or those of groups of images."""
        files = [*self.folder.glob(circuit_folder.RECIPE), *self.folder.glob(f"{GROUP}/{circuit_folder.RECIPE}")]
        return {str(file.parent): circuit_folder.load_mask(file.parent) for file in sorted(files)}

    @cached_property
    def pruned(self) -> Manifest | None:
        """Manifest of the pruned network; None where the folder has none."""
        path = self.folder / "recipe.json"
        return Manifest.read(path) if path.is_file() else None

    def layers(self) -> dict[str, int]:
        """Layer → number of channels, as far as the tables, circuits and the pruned network name them."""
        found: dict[str, int] = {}
        for frame in (self.table(name) for name in ("channels", "hulls", "ablations")):
            if frame is not None:
                for site, last in frame.groupby("site")["channel"].max().items():
                    found[str(site)] = max(found.get(str(site), 0), int(last) + 1)
        marks = [circuit.masks for circuit in self.circuits.values()] + ([self.pruned.kept.masks] if self.pruned else [])
        for each in marks:
            found |= {layer: len(rows) for layer, rows in each.items()}
        return found


SIGNIFICANT = 2.0
"""Number of standard errors above which damage counts as a reason to keep the channel."""

NO_SCORES = ("depth", "channel")


@dataclass(frozen=True)
class Finding:
    """One sentence about a channel.

    Examples
    --------
    >>> Finding("pruning", "runs/small", "runs/small kept it.", speaks_for=True).speaks_for
    True
    """

    kind: str
    """pruning, ablations, circuits, scores or hulls"""
    run: str
    """folder it comes from"""
    sentence: str
    """the sentence"""
    speaks_for: bool | None = None
    """whether it is a reason to keep the channel: it was kept, its ablation does damage, a circuit has its kernels"""


def _pruning_findings(run: EvidenceFolder, layer: str, number: int) -> list[Finding]:
    """Whether a pruning kept the channel."""
    if run.pruned is None:
        return []
    kept, made = run.pruned.kept, run.pruned.made
    how = f"{run.folder} (score {made.get('score')}, {format_percent(float(made.get('macs', float('nan'))), 0)} of the multiply-adds)"
    if layer not in kept:
        return [Finding("pruning", str(run.folder), f"{how} had no choice about {layer}: all its channels are left.")]
    marks = kept[layer]
    own = bool(marks[number])
    left = f"{int(marks.sum())} of the {counted(len(marks), 'channel')} of {layer} are left"
    return [Finding("pruning", str(run.folder), f"{how} {'kept' if own else 'removed'} it: {left}.", own)]


def _ablation_findings(run: EvidenceFolder, layer: str, number: int) -> list[Finding]:
    """Damage of ablating the channel, and the part that its replacement recovers."""
    frame = run.table("ablations")
    if frame is None:
        return []
    silenced = frame[frame["intervention"] == "silence"]
    own = silenced[(silenced["site"] == layer) & (silenced["channel"] == number)]
    if own.empty:
        return []
    row, peers = own.iloc[0], silenced[silenced["site"] == layer]["kl"]
    place = f"{_ordinal(int((peers > row['kl']).sum()) + 1)} of the {counted(len(peers), 'ablated channel')} of its layer"
    said = (
        f"Taken away in {run.folder} ({frame.attrs['provenance'].get('images')} images), it changes the loss by {_sure(row, 'loss')} nats "
        f"and the output by {_sure(row, 'kl')} nats of divergence, the {place}."
    )
    whole = run.table("ablated_channels")
    if whole is not None:
        recovered = whole[(whole["site"] == layer) & (whole["channel"] == number)].iloc[0]
        if recovered["recovered_hull_kl"] == recovered["recovered_hull_kl"]:
            peers_in_place = counted(int(recovered["hull_size"]), "peer")
            said += (
                f" Put in its place, {peers_in_place} recover {format_percent(float(recovered['recovered_hull_kl']), 0)} of the divergence."
            )
    return [Finding("ablations", str(run.folder), said, bool(row["loss"] > SIGNIFICANT * row["loss_se"]))]


def _circuit_findings(run: EvidenceFolder, layer: str, number: int) -> list[Finding]:
    """Circuits that contain kernels of the channel."""
    found = []
    for home, circuit in run.circuits.items():
        own, every = (int(marks[layer][number].sum()) if layer in marks else 0 for marks in (circuit.masks, circuit.relevant))
        head = f"The circuit of {circuit.feature} in {home} ({circuit.count:,} of {circuit.total:,} kernels{_fidelity(run, home)})"
        speaks_for = None
        if circuit.feature and circuit.feature.layer == layer and number in circuit.feature.channels:
            said = f"{head} computes it."
        elif not every:
            said = f"{head} cannot have it: nothing leads from {layer}:{number} to the feature."
        elif own:
            said, speaks_for = f"{head} has {own} of its {counted(every, 'kernel')}{_weight(run, home, layer, number)}.", True
        else:
            said, speaks_for = f"{head} has none of its {counted(every, 'kernel')}.", False
        found.append(Finding("circuits", home, said, speaks_for))
    return found


def _fidelity(run: EvidenceFolder, home: str) -> str:
    """Fidelity of a circuit, as text."""
    frame = run.table("circuit") if Path(home) == run.folder else None
    return (
        ""
        if frame is None
        else f", r = {format_number(float(frame.iloc[0]['r']), 3)}, error {format_number(float(frame.iloc[0]['error']), 3)}"
    )


def _weight(run: EvidenceFolder, home: str, layer: str, number: int) -> str:
    """Share of the circuit's saliency in the channel's kernels, and number of kernels that read it."""
    kernels, channels = (run.table(name) if Path(home) == run.folder else None for name in ("circuit_kernels", "circuit_channels"))
    if kernels is None or channels is None:
        return ""
    own, feeds = (frame[(frame["site"] == layer) & (frame["channel"] == number)] for frame in (kernels, channels))
    share = format_percent(float(own["saliency"].sum() / kernels["saliency"].sum()))
    return f", with {share} of the circuit's saliency; the circuit reads it by {counted(int(feeds['feeds'].iloc[0]), 'kernel')}"


def _ranks(run: EvidenceFolder, layer: str, number: int) -> list[dict[str, Any]]:
    """Each score of the channel with its rank in the layer, 1 the largest; of the last stage where there are several."""
    frame = run.table("channels")
    if frame is None:
        return []
    if "stage" in frame.columns:
        frame = frame[frame["stage"] == frame["stage"].iloc[-1]]
    part = frame[frame["site"] == layer]
    rows = []
    for score in part.select_dtypes("number").columns.difference(NO_SCORES, sort=False):
        values, own = part[score].dropna(), part.loc[part["channel"] == number, score]
        if len(own) and own.iloc[0] == own.iloc[0]:
            value, others = float(own.iloc[0]), max(1, len(values) - 1)
            rank = {"rank": int((values > value).sum()) + 1, "of": len(values), "above": float((values < value).sum()) / others}
            rows.append({"score": score, "value": value, **rank, "run": str(run.folder)})
    return rows


def _score_findings(run: EvidenceFolder, layer: str, number: int) -> list[Finding]:
    """Scores of the channel with their ranks in the layer."""
    rows = _ranks(run, layer, number)
    if not rows:
        return []
    listed = ", ".join(f"{score_title(row['score'])} {format_number(row['value'], 3)} ({_ordinal(row['rank'])})" for row in rows)
    return [
        Finding(
            "scores", str(run.folder), f"Scores in {run.folder}, among the {max(row['of'] for row in rows)} channels of {layer}: {listed}."
        )
    ]


def _hull_findings(run: EvidenceFolder, layer: str, number: int) -> list[Finding]:
    """Peers that predict the channel."""
    frame = run.table("hulls")
    own = None if frame is None else frame[(frame["site"] == layer) & (frame["channel"] == number)]
    if own is None or own.empty:
        return []
    row = own.iloc[0]
    peers = f"{counted(int(row['size']), 'peer')} ({', '.join(str(row['members']).split())})"
    return [
        Finding("hulls", str(run.folder), f"In {run.folder}, {peers} make up {format_percent(float(row['explained']), 0)} of its variance.")
    ]


FINDERS: tuple[Callable[[EvidenceFolder, str, int], list[Finding]], ...] = (
    _pruning_findings,
    _ablation_findings,
    _circuit_findings,
    _score_findings,
    _hull_findings,
)


def _sure(row: pd.Series, name: str) -> str:
    return f"{format_number(float(row[name]), 4)} (standard error {format_number(float(row[f'{name}_se']), 4)})"


def _ordinal(place: int) -> str:
    """1 → largest, 2 → 2nd largest."""
    if place == 1:
        return "largest"
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} largest"


CHANNEL_COLUMNS = {
    "evidence": Column(meaning="what kind of run says it"),
    "run": Column(meaning="folder of the run"),
    "sentence": Column(meaning="what it says about the channel"),
    "score": Column(meaning="name of the score"),
    "value": Column("", 4, "the channel's score, in the unit of its quantity"),
    "rank": Column("", 0, "place among the channels of its layer, 1 is the largest", low=1.0),
    "of": Column("channels", 0, "channels of the layer that have the score", low=1.0),
    "above": Column("fraction", 3, "share of the layer's other channels with a smaller value", low=0.0, high=1.0),
}

COMMANDS = {
    "pruning": ("No pruning", "channelscope prune {network} --out RUN"),
    "ablations": ("No ablation of it", "channelscope ablate {network} --layers {layer} --all --out RUN"),
    "circuits": ("No circuit of a feature that {layer} leads to", "channelscope circuit {network} --feature LAYER:CHANNEL --out RUN"),
    "scores": ("No scores", "channelscope axes {network} --out RUN"),
    "hulls": ("No replacements", "channelscope hulls PROFILE --out RUN, with the profile that axes leaves"),
}
"""Kind of evidence → the sentence where it is missing, and the command that makes it."""

COUNTED = {"pruning": ("kept by", "pruning"), "ablations": ("missed in", "ablation"), "circuits": ("part of", "circuit")}
"""Kind of evidence → verb and noun of its count in the answer."""


def channel_summary(channel: str, folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Findings about one channel from some run folders of one network.

    Parameters
    ----------
    channel
        layer:channel, such as layer3.0.conv2:17.
    folders
        Run folders.

    Returns
    -------
    dict[str, DataFrame]
        `explanation`, one row per sentence, the answer first and missing evidence last; `explanation_scores`, one row per score.

    Raises
    ------
    SiteError
        With near matches, for a layer that no run has.
    InputError
        For a channel that the layer does not have.
    MismatchError
        If the runs are of different weights.
    FormatError
        For a folder that is no run.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     frame = tables.table([{"site": "conv1", "channel": channel, "capture": 1.0 - channel} for channel in (0, 1)], "channels")
    ...     _ = tables.write(frame, Path(folder) / "channels.csv")
    ...     _ = tables.write_json({"weights": "0" * 64}, Path(folder) / "run.json")
    ...     ranks = channel_summary("conv1:1", [Path(folder)])["explanation_scores"]
    >>> ranks[["score", "value", "rank", "of"]].values.tolist()
    [['capture', 0.0, 2, 2]]
    """
    runs = [EvidenceFolder.read(Path(path)) for path in folders]
    _check_same_weights(runs)
    layer, number = _channel_name(channel, runs)
    found = [finding for findings in FINDERS for run in runs for finding in findings(run, layer, number)]
    rows = [{"evidence": "answer", "run": "", "sentence": answer(f"{layer}:{number}", found)}]
    rows += [{"evidence": each.kind, "run": each.run, "sentence": each.sentence} for each in found]
    rows += [{"evidence": "missing", "run": "", "sentence": sentence} for sentence in _missing(layer, found, runs[0])]
    about = {name: next((run.facts[name] for run in runs if run.facts.get(name)), "") for name in ("network", "data")}
    facts = about | {"channel": f"{layer}:{number}", "weights": runs[0].facts["weights"], "runs": [str(run.folder) for run in runs]}
    ranks = [row for run in runs for row in _ranks(run, layer, number)]
    scores = pd.DataFrame(ranks, columns=["score", "value", "rank", "of", "above", "run"])
    return {
        "explanation": tables.table(rows, "explanation", CHANNEL_COLUMNS, facts),
        "explanation_scores": tables.table(scores, "explanation_scores", CHANNEL_COLUMNS, facts),
    }


def answer(channel: str, found: Sequence[Finding]) -> str:
    """The answer in a sentence: number of findings of each kind that are reasons to keep the channel.

    Parameters
    ----------
    channel
        layer:channel.
    found
        All findings about it.

    Returns
    -------
    str
        One sentence.

    Examples
    --------
    >>> answer("conv1:3", [Finding("pruning", "a", "", True), Finding("pruning", "b", "", False)])
    'conv1:3: kept by 1 of 2 prunings.'
    """
    parts = []
    for kind, (verb, noun) in COUNTED.items():
        votes = [finding.speaks_for for finding in found if finding.kind == kind and finding.speaks_for is not None]
        if votes:
            parts.append(f"{verb} {sum(votes)} of {counted(len(votes), noun)}")
    return f"{channel}: {', '.join(parts)}." if parts else f"{channel}: no run here prunes, ablates or uses it."


def _missing(layer: str, found: Sequence[Finding], run: EvidenceFolder) -> list[str]:
    """Kinds of evidence that no run has, each with the command that makes it."""
    kinds = {finding.kind for finding in found if finding.kind != "circuits" or finding.speaks_for is not None}
    network = f"{run.facts.get('network', 'NETWORK')} --data {run.facts.get('data', 'DATA')}"
    return [f"{lack}: {made}".format(network=network, layer=layer) for kind, (lack, made) in COMMANDS.items() if kind not in kinds]


def _check_same_weights(runs: Sequence[EvidenceFolder]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.facts["weights"] != first.facts["weights"]:
            raise MismatchError(
                f"the runs are of different networks: {first.folder} has weights {first.facts['weights'][:12]} "
                f"({first.facts.get('network')}), {run.folder} has {run.facts['weights'][:12]} ({run.facts.get('network')}): "
                "ask about runs of one network"
            )


def _channel_name(channel: str, runs: Sequence[EvidenceFolder]) -> tuple[str, int]:
    match = re.fullmatch(r"(.+):(\d+)", channel)
    if not match:
        raise InputError(f"channel: expected layer:channel, such as layer3.0.conv2:17; received '{channel}'")
    layer, number = match[1], int(match[2])
    known: dict[str, int] = {}
    for run in runs:
        known |= {name: max(count, known.get(name, 0)) for name, count in run.layers().items()}
    if layer not in known:
        raise SiteError(no_such("channel", channel, [f"{name}:{number}" for name, count in known.items() if number < count]))
    if number >= known[layer]:
        raise InputError(f"{layer} has channels 0 to {known[layer] - 1} in these runs, received {number}")
    return layer, number
