"""Groups: channels that can only be removed together, and what cannot be removed, with the reason."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from channelscope.errors import ChannelscopeError, InputError, MismatchError
from channelscope.network.edits import zero_channels
from channelscope.network.graph import Graph, Hook, trace
from channelscope.network.labeling.labeled_graph import LabeledGraph
from channelscope.network.module_state import eval_mode
from channelscope.network.removal.channels import ChannelDependencies, LayerChannels
from channelscope.network.removal.labeled_groups import LabeledDependencies, generic, waking_steps
from channelscope.network.removal.outputs import FAILURES
from channelscope.network.removal.trial import hold_shared, hold_what_differs, refuse_lazy
from channelscope.network.sites import sites_of
from channelscope.site import Site
from channelscope.subset import Subset


@dataclass(frozen=True)
class Group:
    """Channels tied by residual sums, gates, depthwise and grouped convolutions: removed together or not at all."""

    members: tuple[tuple[str, int], ...]
    """(site name, channel) of each member, in execution order"""

    @property
    def sites(self) -> tuple[str, ...]:
        """The member sites, once each, in execution order."""
        return tuple(dict.fromkeys(name for name, _ in self.members))


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of a network that can be removed, and everything needed to cost and remove them."""

    members: tuple[Group, ...]
    """the groups in execution order of their first member"""
    unprunable: Mapping[str, str]
    """site name → why some or all of its channels cannot be removed"""
    layers: tuple[LayerChannels, ...]
    """every weighted layer and which channels it reads and writes"""
    group_of: np.ndarray
    """int64 (all channels,): channel number → group, −1 where the channel is kept whole"""
    first_id: Mapping[str, int]
    """site name → number of its channel 0"""
    sites: tuple[Site, ...]
    """the sites in execution order"""
    graph: Graph
    """the traced network"""
    example: tuple[Tensor, ...]
    """one image (all inputs of the network) to run it on"""
    labeled: LabeledGraph | None = None
    """labels whose channel numbers these are, where they remove more than the steps alone tell"""
    products: tuple[LayerChannels, ...] = ()
    """steps outside of layers whose multiply-adds become fewer, shared out among channels"""
    parts: tuple[tuple[int, ...], ...] = ()
    """sets of groups of which one has to stay"""
    waking: Mapping[str, Tensor] = field(default_factory=dict)
    """step → channel numbers of its value, where a removed channel would get a value again, as from the shift of a norm behind a sum"""

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.members)

    def to_subset(self, kept_groups: np.ndarray) -> Subset:
        """The channels kept when these groups (bool, one each) and all that cannot be removed are kept."""
        alive = np.append(kept_groups, True)[self.group_of]
        marks = {site.name: torch.from_numpy(alive[self._range(site)].copy()) for site in self.sites}
        return Subset(marks, self.sites, tuple(self.example[0].shape[1:]), groups=self)

    def silent_steps(self, removed: Subset) -> dict[str, Hook]:
        """What keeps removed groups silent behind their sites: step → a function that sets their part of its value to zero.

        Parameters
        ----------
        removed
            The channels that are silent; groups of which some are not are left as they are.
        """
        if not self.waking:
            return {}
        silent = np.zeros(len(self.group_of), dtype=bool)
        for site in self.sites:
            if site.name in removed:
                silent[self._range(site)] = removed[site.name].cpu().numpy()
        whole = np.ones(len(self.members) + 1, dtype=bool)
        for site in self.sites:
            whole[self.group_of[self._range(site)][~silent[self._range(site)]]] = False
        whole[-1] = False
        marks = torch.from_numpy(whole[self.group_of])
        lost = {step: torch.where(labels >= 0, marks[labels.clamp(min=0)], False) for step, labels in self.waking.items()}
        return {step: _zero(part) for step, part in lost.items() if bool(part.any())}

    def kept(self, subset: Subset) -> np.ndarray:
        """Which groups a subset keeps: bool, one each.

        Raises
        ------
        MismatchError
            If it is a subset of other sites.
        InputError
            If it splits a group, or removes what cannot be.
        """
        for site in self.sites:
            if site.name in subset and subset[site.name].shape != (site.channels,):
                raise MismatchError(f"the subset has {len(subset[site.name])} channels at {site.name}, the network {site.channels}")
        strange = [name for name in subset if name not in self.first_id]
        if strange:
            raise MismatchError(f"the subset is of another network: this one has no site {', '.join(strange)}")
        alive = np.ones(len(self.group_of), dtype=bool)
        for site in self.sites:
            if site.name in subset:
                alive[self._range(site)] = subset[site.name].cpu().numpy()
        for site in self.sites:
            here = self._range(site)
            lost = np.flatnonzero(~alive[here] & (self.group_of[here] < 0))
            if len(lost):
                raise InputError(f"channel {lost[0]} of {site.name} cannot be removed: {self.unprunable[site.name]}")
        members, living = (np.zeros(len(self.members), dtype=np.int64) for _ in range(2))
        inside = np.zeros(len(self.group_of), dtype=bool)
        for site in self.sites:
            inside[self._range(site)] = self.group_of[self._range(site)] >= 0
        np.add.at(members, self.group_of[inside], 1)
        np.add.at(living, self.group_of[inside], alive[inside])
        split = np.flatnonzero((living > 0) & (living < members))
        if len(split):
            tied = ", ".join(f"{name}[{channel}]" for name, channel in self.members[split[0]].members[:6])
            raise InputError(f"channels that live or die together are split: {tied}; keep or remove all of them (cut() does)")
        return living > 0

    def _range(self, site: Site) -> slice:
        return slice(self.first_id[site.name], self.first_id[site.name] + site.channels)


def _zero(lost: Tensor) -> Hook:
    return lambda value: value.masked_fill(lost.to(value.device), 0)


def groups(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Groups:
    """The groups of `model`, traced on `example`; the network is neither changed nor needs gradients.

    What cannot be removed exactly, so that the smaller network equals the silenced one, is kept whole: channels that are
    still not zero at some consumer after silencing, reach a step that looks at all channels at once, share a parameter with
    another layer, or in a trial compute something else when they are removed than when they are silent.

    Raises
    ------
    TracingError
        As `sites` does.
    SiteError
        As `sites` does.
    InputError
        For a network whose parameters have no shapes yet.
    """
    refuse_lazy(model)
    inputs = example if isinstance(example, tuple) else (example,)
    source = torch.Generator().manual_seed(0)
    image = tuple(
        torch.randn(1, *part.shape[1:], generator=source).to(part) if part.is_floating_point() and part.dim() > 1 else part[:1]
        for part in inputs
    )
    found = sites_of(trace(model, example))
    with eval_mode(model), torch.no_grad():
        coupling = ChannelDependencies(found, image)
        hold_shared(coupling)
        _check_by_silencing(coupling, image)
        hold_what_differs(coupling, image)
    found = _to_groups(coupling, image)
    return _with_labels(found, coupling, image) if found.unprunable else found


def _with_labels(found: Groups, coupling: ChannelDependencies, image: tuple[Tensor, ...]) -> Groups:
    """The groups by labels where they remove more channels, else those that are known."""
    try:
        labeled = LabeledDependencies(coupling, image)
        if labeled.missing:
            return found
        hold_shared(labeled)
        labeled.settle()
        exact = tuple(part.double() if part.is_floating_point() else part for part in image)
        with torch.no_grad():
            labeled.waking = waking_steps(labeled, exact)
            _check_by_silencing(labeled, exact)
        labeled.settle()
    except (ChannelscopeError, *FAILURES):  # a network that cannot be labeled is cut as its steps alone tell
        return found
    better = _to_groups(labeled, image)
    return better if sum(len(group.members) for group in better.members) > sum(len(group.members) for group in found.members) else found


def _check_by_silencing(coupling: ChannelDependencies | LabeledDependencies, image: tuple[Tensor, ...]) -> None:
    """Silence one half of the groups, then the other: whatever a consumer still sees is not removed by removal."""
    weighted = [layer for layer in coupling.layers.values() if layer.taps]
    seen = tuple(coupling.graph.nodes[layer.node].all_input_nodes[0].name for layer in weighted)
    labeled = isinstance(coupling, LabeledDependencies)
    graph = generic(coupling.graph) if labeled else coupling.graph
    for silent in coupling.halves():
        after: dict[str, Hook] = {}
        for site in coupling.found:
            start = coupling.offsets[site.name]
            after[site.activation] = zero_channels(silent[start : start + site.channels], site.channel_axis)
        if labeled:
            after |= {step: _zero(torch.where(part >= 0, silent[part.clamp(min=0)], False)) for step, part in coupling.waking.items()}
        values = graph.run(*image, hooks=after, outputs=seen, out_of_place=True)
        for layer, value in zip(weighted, values, strict=True):
            axis = value.dim() - 1 if layer.linear else 1
            there = torch.where(layer.inputs >= 0, silent[layer.inputs.clamp(min=0)], False)
            rest = value.movedim(axis, 0).flatten(1).abs().amax(1).cpu()
            loud = there & ~(rest == 0)
            coupling.hold(layer.inputs[loud], f"it is not zero at the input of {layer.name} even when silenced")


def _to_groups(coupling: ChannelDependencies | LabeledDependencies, image: tuple[Tensor, ...]) -> Groups:
    members: dict[int, list[tuple[str, int]]] = defaultdict(list)
    whole: dict[str, str] = {}
    for site in coupling.found:
        start = coupling.offsets[site.name]
        reasons = [coupling.reason(start + channel) for channel in range(site.channels)]
        held = [reason for reason in reasons if reason]
        if held:
            whole[site.name] = f"{len(held)} of {site.channels} channels: {held[0]}"
        for channel, reason in enumerate(reasons):
            if not reason:
                members[coupling.root(start + channel)].append((site.name, channel))
    places = {root: index for index, root in enumerate(members)}
    owner = np.array([places.get(coupling.root(number), -1) for number in range(len(coupling.parent))], dtype=np.int64)
    found = tuple(Group(tuple(group)) for group in members.values())
    first = {site.name: coupling.offsets[site.name] for site in coupling.found}
    known = found, whole, tuple(coupling.layers.values()), owner, first, coupling.found.found, coupling.graph, image
    if not isinstance(coupling, LabeledDependencies):
        return Groups(*known)
    owners = [owner[numbers.numpy()] for numbers in coupling.sets()]
    parts = {tuple(np.unique(part).tolist()) for part in owners if len(part) and bool((part >= 0).all())}
    return Groups(*known, coupling.labeled, tuple(coupling.products), tuple(sorted(parts)), coupling.waking)
