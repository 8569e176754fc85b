"""Ablation of channels one by one: the damage, and the part of it that peers recover (H4); an interrupted run goes on."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from channelscope.data.batches import batch_count, labeled_batches, on_device_of
from channelscope.errors import DataError, MismatchError, NumericError, at
from channelscope.experiments.ablation_plan import DAMAGE_QUANTITIES, AblationPlan, Damage, Replacement, image_damage
from channelscope.experiments.ablation_tables import ablation_tables, analyze
from channelscope.experiments.hulls import HullOptions
from channelscope.network.graph import PartialForward, partial_forwards
from channelscope.network.module_state import eval_mode
from channelscope.network.sites import Sites
from channelscope.profiling.collect import trace_profiled
from channelscope.progress import progress_bar
from channelscope.scores.score import ScoreOptions
from channelscope.stats.profile import Profile
from channelscope.storage import ResumableStore
from channelscope.types import Float, Int, Tensor

TABLES = """
CREATE TABLE IF NOT EXISTS measured (batch INTEGER, site TEXT, digest TEXT NOT NULL, damage BLOB NOT NULL, PRIMARY KEY (batch, site));
"""


class AblationStore(ResumableStore):
    """Damage by batch and site, in one SQLite file, or in memory without a path; a file of another run is refused.

    Parameters
    ----------
    path
        The file; None to keep everything in memory.
    facts
        What the run must agree in with the file.
    groups
        Number of image groups.

    Raises
    ------
    FormatError
        If the file is damaged or no such file.
    MismatchError
        If it is of another run.

    Examples
    --------
    >>> damage = Damage.of(torch.ones(1, 4, 2).double(), torch.tensor([0, 1]), groups=2)
    >>> with AblationStore(None, {}, groups=2) as store:
    ...     store.write(0, "batch", "conv", damage)
    ...     store.known(0, "batch"), store.total()["conv"].mean.tolist()
    ({'conv'}, [[1.0, 1.0, 1.0, 1.0]])
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], groups: int):
        super().__init__(path, facts, TABLES, "ablations")
        self.groups = groups

    def known(self, batch: int, digest: str) -> set[str]:
        """Sites whose ablations are done for a batch.

        Parameters
        ----------
        batch
            Number of the batch.
        digest
            Its `ablation_key`.

        Returns
        -------
        set[str]
            Names of sites.

        Raises
        ------
        MismatchError
            If that batch held other images.
        """
        rows = self.select("SELECT site, digest FROM measured WHERE batch = ?", batch)
        if any(old != digest for _, old in rows):
            raise MismatchError(
                f"batch {batch} holds other images than when {self.path} was written: resume with the same images and batch size"
            )
        return {site for site, _ in rows}

    def write(self, batch: int, digest: str, site: str, damage: Damage) -> None:
        """Add one site's ablations for one batch, all or nothing.

        Parameters
        ----------
        batch
            Number of the batch.
        digest
            Its `ablation_key`.
        site
            Name of the site.
        damage
            Damage of the site's ablations over the batch.
        """
        images = damage.images.expand(len(damage.sums), self.groups)[..., None]
        blob = torch.cat([images, damage.sums, damage.squares], 2).contiguous().numpy().tobytes()
        self.insert("measured", batch, site, digest, blob)

    def total(self) -> dict[str, Damage]:
        """Site → damage over all batches, added in their order."""
        found: dict[str, Damage] = {}
        for site, blob in self.select("SELECT site, damage FROM measured ORDER BY batch"):
            values = torch.from_numpy(np.frombuffer(blob).copy()).view(-1, self.groups, 1 + 2 * len(DAMAGE_QUANTITIES))
            sums, squares = values[..., 1:].chunk(2, 2)
            damage = Damage(values[0, :, 0], sums, squares)
            found[site] = found[site] + damage if site in found else damage
        return found

    def __enter__(self) -> "AblationStore":
        """The store itself."""
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        """Close the file, and delete it if the run has ended without an error."""
        self.close(finished=kind is None)


def ablation_key(images: Tensor, labels: Tensor) -> str:
    """Fingerprint of a batch.

    Parameters
    ----------
    images, labels
        The batch.

    Returns
    -------
    str
        Sixteen hexadecimal digits.

    Examples
    --------
    >>> one, other = (ablation_key(torch.full((2, 1, 4, 4), value), torch.tensor([0, 1])) for value in (0.0, 1.0))
    >>> len(one), one == other
    (16, False)
    """
    return hashlib.sha256(images.cpu().contiguous().numpy().tobytes() + labels.cpu().numpy().tobytes()).hexdigest()[:16]


Plans = Mapping[str, list[Replacement]]


def ablate(
    model: nn.Module,
    profile: Profile,
    batches: Iterable,
    plan: AblationPlan | None = None,
    rule: HullOptions | None = None,
    unfinished: Path | None = None,
    progress: bool = True,
    **options,
) -> dict[str, pd.DataFrame]:
    """Damage of each drawn channel when it is silenced and when peers replace it, on held-out images; the model stays as it was.

    A channel is changed at its activation, the tensor its consumers read. Each site's inputs are computed once per batch for all
    its ablations. Replacements are linear predictions from the profile's moments at the activation.

    Parameters
    ----------
    model
        The profiled network.
    profile
        Its statistics.
    batches
        (images, labels) or (images, labels, index) of images used neither for training nor for the profile.
    plan
        Channels, controls and kind of silence; by default `AblationPlan()`.
    rule
        How hulls grow; by default `HullOptions()`.
    unfinished
        File in which an interrupted run is kept; a run that finds one continues it, and deletes it at the end.
    progress
        Whether to draw a progress bar on a terminal.
    **options
        Options of the scores: target, shrinkage, ….

    Returns
    -------
    dict[str, DataFrame]
        `ablations`: one row per channel and intervention, damage with standard errors over images. `ablated_channels`: one row
        per channel: damage of silence, recovered part, and every score. `recovered`: one row per layer, replacement and quantity,
        the recovered part as ratio of sums. `ablation_correlations`, `ablation_matched`, `ablation_partial`: damage and recovered part
        against the scores. `consumers`: layers that read each site. `notes`: remarks, such as too few images.

    Raises
    ------
    MismatchError
        If the profile is of another network, or `unfinished` of another run.
    SiteError
        For a site that does not exist.
    DataError
        Without images, or for labels outside the classes.
    SampleError
        With fewer images than groups.
    NumericError
        If an ablation makes the output infinite.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.exact_copy()  # channel 3 is twice channel 0, which the head reads
    >>> tables = ablate(toy.model, collect(toy.model, toy.batches), toy.batches, AblationPlan(all=True, draws=20), progress=False)
    >>> rows = tables["ablations"].query("channel == 0").set_index("intervention")
    >>> bool(rows.loss["silence"] > 1), abs(round(float(rows.loss["hull"]), 2)), rows.members["hull"]
    (True, 0.0, '3')

    References
    ----------
    Safaai et al. 2026.
    """
    plan, rule = plan or AblationPlan(), rule or HullOptions()
    convention = ScoreOptions.of(options)
    found = trace_profiled(model, profile)
    replacements = plan.replacements(profile, rule, convention)
    with AblationStore(unfinished, _facts(profile, replacements, plan), plan.groups) as store:
        _ablate_batches(found, replacements, batches, store, progress)
        damage = store.total()
    tables = ablation_tables(found, profile, replacements, damage, **options)
    return tables | analyze(tables["ablated_channels"], replacements, damage, plan)


def _ablate_batches(found: Sites, replacements: Plans, batches: Iterable, store: AblationStore, progress: bool) -> None:
    """Measure all ablations on all batches that the store does not have yet."""
    device = next(found.graph.model.parameters()).device
    total, ablations = batch_count(batches), sum(len(each) for each in replacements.values())
    with eval_mode(found.graph.model), torch.no_grad(), progress_bar("ablations", total and total * ablations, progress) as step:
        for number, (images, labels, index) in enumerate(labeled_batches(batches)):
            mark = ablation_key(images, labels)
            known = store.known(number, mark)
            step(sum(len(replacements[name]) for name in known))
            remaining = [found[name] for name in replacements if name not in known]
            if not remaining:
                continue
            images, labels = on_device_of(images, found.graph.model), labels.to(device)
            before = _check_labels(found.graph.run(images, out_of_place=True), labels)
            for stop in partial_forwards(found.graph, remaining, images):
                every = replacements[stop.site.name]
                damage = torch.stack([_measure_damage(stop, each, before, labels) for each in every])
                store.write(number, mark, stop.site.name, Damage.of(damage, index.to(device) % store.groups, store.groups))
                step(len(every))


def _measure_damage(stop: PartialForward, each: Replacement, before: Tensor, labels: Tensor) -> Float[Tensor, "quantities images"]:
    """Damage of one ablation to each image of a batch; nothing is run where the ablation changes nothing."""
    changed = each.standing_in(stop.maps, stop.site.channel_axis)
    if changed is None:
        return before.new_zeros(len(DAMAGE_QUANTITIES), len(labels), dtype=torch.float64)
    damage = image_damage(before, stop.finish(changed), labels)
    if not bool(damage.isfinite().all()):
        with at(stop.site.name):
            raise NumericError(f"the output is not finite with {each.name} in the place of channel {each.channel}")
    return damage


def _check_labels(logits: Tensor, labels: Int[Tensor, "images"]) -> Float[Tensor, "images classes"]:
    """The logits, after a check of the labels against the number of classes."""
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise DataError(f"damage needs labels from 0 to {logits.shape[1] - 1}, received {int(labels.min())} … {int(labels.max())}")
    return logits


def _facts(profile: Profile, replacements: Plans, plan: AblationPlan) -> dict[str, Any]:
    """What an unfinished run must agree in to be continued."""
    weights = hashlib.sha256()
    for each in (one for every in replacements.values() for one in every):
        weights.update(f"{each.name}/{each.channel}/{each.members}/{each.intercept!r}/".encode() + each.weights.numpy().tobytes())
    return {"network": profile.weights_hash, "plan": {**asdict(plan), "draws": None}, "stand-ins": weights.hexdigest()}
