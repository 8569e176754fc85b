"""Groups: channels that can only be removed together, and what cannot be removed, with the reason."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from channelscope.errors import InputError, MismatchError
from channelscope.network.graph import Graph, Hook, trace
from channelscope.network.labeling.labeled_graph import LabeledGraph, Layer
from channelscope.network.labeling.trial import noise_like
from channelscope.network.module_state import eval_mode
from channelscope.network.removal.site_labels import SiteLabels
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
    layers: tuple[Layer, ...]
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
    labeled: LabeledGraph
    """the labels whose channel numbers these are"""
    products: tuple[Layer, ...] = ()
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
    _refuse_lazy(model)
    image = noise_like(example)
    graph = trace(model, example)
    found = sites_of(graph)
    with eval_mode(graph.model), torch.no_grad():
        labels = SiteLabels(found, image)
    return _to_groups(labels, image)


def _refuse_lazy(model: nn.Module) -> None:
    """Refuse a network some of whose parameters have no shape yet; it stays as it is."""
    for name, part in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(part, UninitializedParameter | UninitializedBuffer):
            raise InputError(
                f"expected a network whose parameters have shapes, received {name} without one: call the network on an image once"
            )


def _to_groups(labels: SiteLabels, image: tuple[Tensor, ...]) -> Groups:
    union = labels.labeled.union
    roots = union.roots(torch.arange(len(union.parent))).tolist()
    members: dict[int, list[tuple[str, int]]] = defaultdict(list)
    whole: dict[str, str] = {}
    for site in labels.found:
        here = roots[labels.first[site.name] : labels.first[site.name] + site.channels]
        held = [union.held[root] for root in here if root in union.held]
        if held:
            whole[site.name] = f"{len(held)} of {site.channels} channels: {held[0]}"
        for channel, root in enumerate(here):
            if root not in union.held:
                members[root].append((site.name, channel))
    places = {root: index for index, root in enumerate(members)}
    owner = np.array([places.get(root, -1) for root in roots], dtype=np.int64)
    owners = [owner[numbers.numpy()] for numbers in labels.sets()]
    parts = {tuple(np.unique(part).tolist()) for part in owners if len(part) and bool((part >= 0).all())}
    return Groups(
        tuple(Group(tuple(group)) for group in members.values()),
        whole,
        tuple(labels.layers.values()),
        owner,
        labels.first,
        labels.found.found,
        labels.found.graph,
        image,
        labels.labeled,
        tuple(labels.products),
        tuple(sorted(parts)),
        labels.waking,
    )
