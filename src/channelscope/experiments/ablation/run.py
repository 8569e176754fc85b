"""Ablation of channels one by one: the damage, and the part of it that peers recover (H4)."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from channelscope.data.batches import batch_count, labeled_batches, on_device_of
from channelscope.errors import DataError, NumericError, at
from channelscope.experiments.ablation.analysis import analyze
from channelscope.experiments.ablation.damage import DAMAGE_QUANTITIES, Damage, image_damage
from channelscope.experiments.ablation.ledger import AblationStore, ablation_key
from channelscope.experiments.ablation.plan import AblationPlan, Replacement
from channelscope.experiments.ablation.tables import ablation_tables
from channelscope.experiments.hulls import HullOptions
from channelscope.network.module_state import eval_mode
from channelscope.network.partial_forward import PartialForward, partial_forwards
from channelscope.network.sites import Sites
from channelscope.profiling.store import trace_profiled
from channelscope.progress import progress_bar
from channelscope.scores.layer_statistics import ScoreOptions
from channelscope.stats.profile import Profile
from channelscope.types import Float, Int, Tensor

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
        per channel: damage of silence, recovered part, and every score. `repaid`: one row per layer, replacement and quantity,
        the recovered part as ratio of sums. `ablation_correlations`, `ablation_matched`, `ablation_partial`: damage and recovered part
        against the scores. `readers`: layers that read each site. `said`: remarks, such as too few images.

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
    stand_ins = plan.stand_ins(profile, rule, convention)
    with AblationStore(unfinished, _facts(profile, stand_ins, plan), plan.groups) as store:
        _ablate_batches(found, stand_ins, batches, store, progress)
        damage = store.total()
    tables = ablation_tables(found, profile, stand_ins, damage, **options)
    return tables | analyze(tables["ablated_channels"], stand_ins, damage, plan)


def _ablate_batches(found: Sites, stand_ins: Plans, batches: Iterable, store: AblationStore, progress: bool) -> None:
    """Measure all ablations on all batches that the store does not have yet."""
    device = next(found.graph.model.parameters()).device
    total, ablations = batch_count(batches), sum(len(each) for each in stand_ins.values())
    with eval_mode(found.graph.model), torch.no_grad(), progress_bar("ablations", total and total * ablations, progress) as step:
        for number, (images, labels, index) in enumerate(labeled_batches(batches)):
            mark = ablation_key(images, labels)
            known = store.known(number, mark)
            step(sum(len(stand_ins[name]) for name in known))
            remaining = [found[name] for name in stand_ins if name not in known]
            if not remaining:
                continue
            images, labels = on_device_of(images, found.graph.model), labels.to(device)
            before = _check_labels(found.graph.run(images, out_of_place=True), labels)
            for stop in partial_forwards(found.graph, remaining, images):
                every = stand_ins[stop.site.name]
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


def _facts(profile: Profile, stand_ins: Plans, plan: AblationPlan) -> dict[str, Any]:
    """What an unfinished run must agree in to be continued."""
    weights = hashlib.sha256()
    for each in (one for every in stand_ins.values() for one in every):
        weights.update(f"{each.name}/{each.channel}/{each.members}/{each.intercept!r}/".encode() + each.weights.numpy().tobytes())
    return {"network": profile.weights_hash, "plan": {**asdict(plan), "draws": None}, "stand-ins": weights.hexdigest()}
