"""Ablate channels one by one: the damage, and the part of it that peers recover (H4)."""

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
    """Silence each drawn channel at its cut point, then let its hull stand in, on held-out images; the model is left as it was.

    Everything before a site is computed once per batch for all lesions of the site, and nothing twice on the way from one
    site to the next. Stand-ins are linear predictions from the profile's cut-point moments.

    Parameters
    ----------
    batches
        (images, labels) or (images, labels, index) of images that were neither trained nor profiled on.
    plan
        Which channels, which controls, how silenced.
    rule
        How hulls grow.
    unfinished
        File in which an interrupted run is kept; a run that finds one goes on from there, and deletes it at the end.
    progress
        Draw a bar with the time left on a terminal.
    options
        The scores' convention: target, shrinkage, ….

    Returns
    -------
    dict[str, pd.DataFrame]
        `ablations`: one row per channel and intervention, damage with standard errors over images; `channels`: one row per
        channel: damage of silence, repaid, and every score; `repaid`: one row per layer, stand-in and quantity, as ratio
        of sums; `correlations`, `matched`, `partial`: damage and repaid against the scores. `readers`: which layers see
        each lesion; `said`: what a reader must be told, such as too few images.

    Raises
    ------
    MismatchError
        If the profile is of another network or `unfinished` of another run.
    SiteError
        For a site that does not exist.
    SampleError
        With fewer images than groups.
    """
    plan, rule = plan or AblationPlan(), rule or HullOptions()
    convention = ScoreOptions.of(options)
    found = trace_profiled(model, profile)
    stand_ins = plan.stand_ins(profile, rule, convention)
    with AblationStore(unfinished, _facts(profile, stand_ins, plan), plan.groups) as ledger:
        _ablate_layer(found, stand_ins, batches, ledger, progress)
        damage = ledger.total()
    tables = ablation_tables(found, profile, stand_ins, damage, **options)
    return tables | analyze(tables["channels"], stand_ins, damage, plan)


def _ablate_layer(found: Sites, stand_ins: Plans, batches: Iterable, ledger: AblationStore, progress: bool) -> None:
    """Every lesion on every batch that the ledger does not have yet."""
    device = next(found.graph.model.parameters()).device
    total, lesions = batch_count(batches), sum(len(each) for each in stand_ins.values())
    with eval_mode(found.graph.model), torch.no_grad(), progress_bar("ablations", total and total * lesions, progress) as step:
        for number, (images, labels, index) in enumerate(labeled_batches(batches)):
            mark = ablation_key(images, labels)
            known = ledger.known(number, mark)
            step(sum(len(stand_ins[name]) for name in known))
            left = [found[name] for name in stand_ins if name not in known]
            if not left:
                continue
            images, labels = on_device_of(images, found.graph.model), labels.to(device)
            before = _check_plan(found.graph.run(images, out_of_place=True), labels)
            for stop in partial_forwards(found.graph, left, images):
                every = stand_ins[stop.site.name]
                harms = torch.stack([_measure_damage(stop, each, before, labels) for each in every])
                ledger.write(number, mark, stop.site.name, Damage.of(harms, index.to(device) % ledger.groups, ledger.groups))
                step(len(every))


def _measure_damage(stop: PartialForward, each: Replacement, before: Tensor, labels: Tensor) -> Float[Tensor, "quantities images"]:
    """What one lesion does to each image of a batch; nothing is run where it changes nothing."""
    changed = each.standing_in(stop.maps, stop.site.channel_axis)
    if changed is None:
        return before.new_zeros(len(DAMAGE_QUANTITIES), len(labels), dtype=torch.float64)
    harms = image_damage(before, stop.finish(changed), labels)
    if not bool(harms.isfinite().all()):
        with at(stop.site.name):
            raise NumericError(f"the output is not finite with {each.name} in the place of channel {each.channel}")
    return harms


def _check_plan(logits: Tensor, labels: Int[Tensor, "images"]) -> Float[Tensor, "images classes"]:
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise DataError(f"damage needs labels from 0 to {logits.shape[1] - 1}, received {int(labels.min())} … {int(labels.max())}")
    return logits


def _facts(profile: Profile, stand_ins: Plans, plan: AblationPlan) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    weights = hashlib.sha256()
    for each in (one for every in stand_ins.values() for one in every):
        weights.update(f"{each.name}/{each.channel}/{each.members}/{each.intercept!r}/".encode() + each.weights.numpy().tobytes())
    return {"network": profile.weights_hash, "plan": {**asdict(plan), "draws": None}, "stand-ins": weights.hexdigest()}
