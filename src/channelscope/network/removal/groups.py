"""Groups: channels that can only be removed together, and what cannot be removed, with the reason.

`SiteLabels` says which labels of the network are the channels of its sites.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from channelscope.display import Facts, Shown
from channelscope.errors import FAILURES, InputError, MismatchError, TracingError, check_choice, no_lack_of_memory
from channelscope.network.graph import Graph, Hook, asks_form, trace
from channelscope.network.module_state import eval_mode
from channelscope.network.nest import tensors
from channelscope.network.removal.labeled_graph import Heads, LabeledGraph, Layer
from channelscope.network.removal.labels import FIXED, FREE, channels_in, compact, numbers_in
from channelscope.network.removal.trial import noise_like, single, try_out
from channelscope.network.sites import Sites, sites_of
from channelscope.network.tracing.recorder import Recording
from channelscope.network.tracing.recording import record
from channelscope.site import Site
from channelscope.subset import Subset


class SiteLabels:
    """The labels of a network, and which of their channel numbers are those of its sites.

    Layers that are called several times stay whole, as do layers that share a parameter with another place.

    Parameters
    ----------
    found
        The sites of the network.
    image
        One image, all inputs of the network.
    heads
        What attention can be narrowed by.

    Attributes
    ----------
    labeled
        The labeled graph.
    first
        Site → number of its channel 0.
    layers
        Every convolution, linear layer and per-channel layer that is a module.
    waking
        Step → channel numbers of its value, where a removed channel would get a value again behind its sites, as from the shift
        of a norm behind a sum; it is silenced there too.
    products
        Steps outside of these layers whose multiply-adds become fewer, each as a layer.
    """

    def __init__(self, found: Sites, image: tuple[Tensor, ...], heads: Heads = "whole"):
        self.found = found
        self.labeled, self.steps = labels_of(found.graph, image, heads)
        self.first = {site.name: self._first(site.name, site.channels) for site in found}
        self.layers = self._layers()
        self._hold_shared()
        self._hold_unknown()
        self.labeled.settle()
        cut_points = {}
        for site in found:
            node = self.steps.get(site.activation)
            numbers = torch.arange(site.channels) + self.first[site.name]
            if node is None:
                self.labeled.hold(numbers, f"the step {site.activation}, where it is silenced, is not followed")
            else:
                cut_points[node] = numbers, site.channel_axis + 1
        waking = try_out(self.labeled, cut_points, self.steps.values())
        self.waking = {name: self._channels(node) for name, node in self.steps.items() if node in waking}
        self.products = self._products()
        self.labeled.forget_values()

    def _first(self, name: str, count: int) -> int:
        """Number of a site's first channel; new numbers where the labels do not know it."""
        start, known = self.labeled.sites.get(name, (0, -1))
        return start if known == count else int(self.labeled.union.add(count)[0])

    def _hold_unknown(self) -> None:
        """Keep what is used several times, and sites that the labels do not know."""
        for name, uses in self.uses.items():
            for use in uses if len(uses) > 1 else ():
                self.labeled.hold(torch.cat([use.inputs, use.outputs]), f"the weights of {name} are used in several places")
        for site in self.found:
            if self.labeled.sites.get(site.name) != (self.first[site.name], site.channels):
                self.hold(self._numbers(site.name, site.channels), f"the channels of {site.name} cannot be told apart")

    def _channels(self, node: fx.Node) -> Tensor:
        """Channel numbers of a step's value, shortened along axes on which they repeat."""
        short = compact(self.labeled.labels[node])
        return torch.where(channels_in(short), short, FREE)

    def _numbers(self, name: str, count: int) -> range:
        return range(self.first[name], self.first[name] + count)

    def _layers(self) -> dict[str, Layer]:
        graph, labeled = self.found.graph, self.labeled
        self.uses: dict[str, list[Layer]] = defaultdict(list)
        for layer in labeled.layers:
            self.uses[layer.name].append(layer)
        found: dict[str, Layer] = {}
        for node in graph.steps.nodes:
            if node.op != "call_module":
                continue
            name = str(node.target)
            step = self.steps.get(node.name)
            if name in self.uses:
                every = self.uses[name]
                found[name] = replace(every[0], node=node.name, positions=sum(use.positions for use in every))
            elif step is not None and step.name in labeled.reads:
                numbers = labeled.reads[step.name]
                found[name] = Layer(name, node.name, numbers[:0], numbers, 0, 0)
        return found

    def _hold_shared(self) -> None:
        """Keep whole the layers that share a parameter with another place."""
        graph = self.found.graph
        places: dict[int, list[str]] = defaultdict(list)
        for name, module in graph.body.named_modules():
            for part, parameter in module.named_parameters(recurse=False):
                places[id(parameter)].append(f"{name}.{part}".lstrip("."))
        known = dict(graph.body.named_parameters(remove_duplicate=False))
        for node in graph.steps.nodes:
            if node.op == "get_attr" and str(node.target) in known and not all(map(asks_form, node.users)):
                places[id(known[str(node.target)])].append(f"the step {node.name}")
        counts = {site.name: site.channels for site in self.found}
        for layer in self.layers.values():
            own = self._numbers(layer.name, counts[layer.name]) if layer.name in counts else ()
            for part, parameter in graph.modules[layer.name].named_parameters(recurse=False):
                own_bias = part == "bias" and graph.reads_bias(layer.name)
                if len(places[id(parameter)]) > 1 + own_bias:
                    why = f"{' and '.join(places[id(parameter)])} are one parameter"
                    self.hold([*layer.inputs.tolist(), *layer.outputs.tolist(), *own], why)

    def hold(self, numbers: Iterable[int], reason: str) -> None:
        """Keep these channels, and all that go with them."""
        self.labeled.union.hold(numbers, reason)

    def sets(self) -> list[Tensor]:
        """Sets of channel numbers of which one has to stay: parts of values, and what a layer reads."""
        numbers = [each for layer in self.labeled.layers for each in (layer.inputs, layer.outputs)]
        numbers = [each.unique() for each in numbers if len(each) and bool(channels_in(each).all())]
        return numbers + [torch.tensor(part) for part in self.labeled.parts]

    def _products(self) -> list[Layer]:
        """Steps such as attention products: their multiply-adds are shared out evenly among the groups of channels that they read."""
        labeled, found = self.labeled, []
        names = set(self.layers)
        nodes = {layer.node for layer in labeled.layers if layer.name in names}
        for node in labeled.steps.nodes:
            amount = labeled.macs.get(node.name, 0) if node.name not in nodes else 0
            if not amount:
                continue
            if node.name in labeled.readers:
                found += [replace(layer, name=f"{layer.name} ") for layer in labeled.readers[node.name]]
                continue
            read = [numbers_in(labeled.labels[parent]) for parent in node.all_input_nodes if tensors(labeled.labels[parent])]
            lost = [numbers for numbers in read if labeled.removable(numbers)]
            numbers = labeled.union.roots(torch.cat(lost)).unique() if lost else torch.empty(0)
            if len(numbers) and amount % len(numbers) == 0:
                found.append(Layer(f"{node.name} ", node.name, torch.full((1,), FIXED), numbers, amount // len(numbers), 1))
        return found


def labels_of(graph: Graph, image: tuple[Tensor, ...], heads: Heads = "whole") -> tuple[LabeledGraph, dict[str, fx.Node]]:
    """The labels of a traced network, and the step of the labeled graph that has the value of each of its steps.

    The traced steps are labeled as they are where nothing more could be known; where modules of their own kind are one step, or
    numbers come from attributes, the pass is recorded once more, with these modules entered.

    Parameters
    ----------
    graph
        The traced network.
    image
        One image, all inputs of the network.
    heads
        What attention can be narrowed by.

    Examples
    --------
    >>> from channelscope.network.graph import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 4, 1)).eval()
    >>> image = (torch.zeros(1, 3, 5, 5),)
    >>> labeled, steps = labels_of(trace(net, image), image)
    >>> labeled.labels[steps["_1"]][0, :, 0, 0].tolist()
    [0, 1]
    """
    recording, steps = None, None
    if graph.numbers or _entered(graph):
        try:
            recording = record(graph.body, image, whole=single)
        except (TracingError, *FAILURES) as error:  # the code of a module that is one step otherwise
            no_lack_of_memory(error)
        else:
            steps = _matched(graph, recording)
    if recording is None or steps is None:
        recording, steps = _run_once(graph, image), graph.nodes
    return LabeledGraph(recording, graph.body, heads), steps


def _entered(graph: Graph) -> bool:
    """Whether some module is one step of the traced network and not of a labeled one, or the other way round."""
    called = {str(node.target) for node in graph.steps.nodes if node.op == "call_module"}
    inside = {path for node in graph.steps.nodes for path in node.meta["nn_module_stack"] if path} - called
    modules = graph.modules
    return any(not single(modules[path]) for path in called) or any(single(modules[path]) for path in inside if path in modules)


def _run_once(graph: Graph, image: tuple[Tensor, ...]) -> Recording:
    """The traced steps as a recording of one image."""
    nodes = [node for node in graph.steps.nodes if node.op != "output"]
    names = tuple(node.name for node in nodes)
    with torch.no_grad():
        values = graph.run(*image, outputs=names, out_of_place=True)
    owner = {}
    for node in nodes:
        stack = list(node.meta["nn_module_stack"])
        owner[node.name] = "".join(stack[-2:-1] if node.op == "call_module" else stack[-1:])
    return Recording(graph.steps, dict(zip(names, values, strict=True)), owner, dict(graph.constants), graph.output)


def _matched(graph: Graph, recording: Recording) -> dict[str, fx.Node] | None:
    """Step of the traced network → step of the recording with the same value; None where the two go different ways."""
    called = [{str(node.target) for node in steps.nodes if node.op == "call_module"} for steps in (graph.steps, recording.steps)]
    ours = _places([node for node in graph.steps.nodes if node.name in graph.shapes], called[0] - called[1], called[1] - called[0])
    theirs = [node for node in recording.steps.nodes if isinstance(recording.values.get(node.name), Tensor)]
    others = _places(theirs, called[0] - called[1], called[1] - called[0])
    if [place for place, _ in ours] != [place for place, _ in others]:
        return None
    return {node.name: other for (_, node), (_, other) in zip(ours, others, strict=True)}


def _places(nodes: list[fx.Node], *entered: set[str]) -> list[tuple[str, fx.Node]]:
    """What each step is, and the step; all steps of a call of some modules are one, with its last step."""
    modules = set.union(*entered)
    found: list[tuple[str, fx.Node]] = []
    for node in nodes:
        within = next((path for path in node.meta["nn_module_stack"] if path in modules), None)
        place = within if within is not None else f"{node.op} {node.target}"
        if within is not None and found and found[-1][0] == place:
            found[-1] = place, node
        else:
            found.append((place, node))
    return found


@dataclass(frozen=True, repr=False)
class Group(Shown):
    """Channels tied by residual sums, gates, depthwise and grouped convolutions: removed together or not at all."""

    members: tuple[tuple[str, int], ...]
    """(site name, channel) of each member, in execution order"""

    def facts(self) -> Facts:
        """The members."""
        return f"Group({len(self.members)} channels)", [(name, f"channel {channel}") for name, channel in self.members]

    @property
    def sites(self) -> tuple[str, ...]:
        """The member sites, once each, in execution order."""
        return tuple(dict.fromkeys(name for name, _ in self.members))


@dataclass(frozen=True, eq=False, repr=False)
class Groups(Shown):
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

    def facts(self) -> Facts:
        """How many groups there are, how large they are, and what cannot be removed."""
        shared = sum(len(group.members) > 1 for group in self.members)
        channels = sum(site.channels for site in self.sites)
        heading = f"Groups({len(self):,} groups of {channels:,} channels at {len(self.sites)} sites, {shared:,} of several channels)"
        return heading, self.unprunable.items()

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
        whole = np.ones(len(self.members) + 1, dtype=bool)
        for site in self.sites:
            silent = removed[site.name].cpu().numpy() if site.name in removed else np.zeros(site.channels, dtype=bool)
            whole[self.group_of[self._range(site)][~silent]] = False
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


def groups(model: nn.Module, example: Tensor | tuple[Tensor, ...], heads: Heads = "whole") -> Groups:
    """The groups of `model`, traced on `example`; the network is neither changed nor needs gradients.

    What cannot be removed exactly, so that the smaller network equals the silenced one, is kept whole: channels that reach a
    step that looks at all channels at once, share a parameter with another layer, or in a trial compute something else when
    they are removed than when they are silent.

    Parameters
    ----------
    model
        The network.
    example
        A batch of at least one image, or all inputs of the network.
    heads
        What attention written as layers is narrowed by: "whole" heads, or "widths", the same places of the queries and keys, and of
        the values, in every head.

    Raises
    ------
    TracingError
        As `sites` does.
    SiteError
        As `sites` does.
    InputError
        For another word for `heads`, or a network whose parameters have no shapes yet, or whose weights hooks compute before each pass.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 1)).eval()
    >>> [group.members for group in groups(net, torch.ones(1, 1, 1, 1)).members]
    [(('0', 0),), (('0', 1),)]
    """
    check_choice("choice of heads", heads, get_args(Heads))
    _refuse_lazy(model)
    image = noise_like(example)
    graph = trace(model, example)
    _refuse_computed(graph.body)
    found = sites_of(graph)
    with eval_mode(graph.model), torch.no_grad():
        labels = SiteLabels(found, image, heads)
    return _to_groups(labels, image)


def _refuse_lazy(model: nn.Module) -> None:
    """Refuse a network some of whose parameters have no shape yet; it stays as it is."""
    for name, part in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(part, UninitializedParameter | UninitializedBuffer):
            raise InputError(
                f"expected a network whose parameters have shapes, received {name} without one: call the network on an image once"
            )


def _refuse_computed(model: nn.Module) -> None:
    """Refuse weights that a hook makes of others, where the module was not opened: cut, it would make the old weight."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            made = name in ("weight", "bias") or {f"{name}_orig", f"{name}_g"} & set(module._parameters)
            if made and isinstance(value, Tensor) and module._forward_pre_hooks:
                raise InputError(
                    f"{path}.{name}: expected a parameter or a parametrization, received a tensor that a hook computes before each pass: "
                    "make it a parameter with remove_weight_norm or remove_spectral_norm of torch.nn.utils, or with nn.utils.prune.remove"
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
