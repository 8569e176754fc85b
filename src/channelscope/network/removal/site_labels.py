"""Site labels: the channels of sites as the labels of a network number them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, fx

from channelscope.network.graph import Graph
from channelscope.network.labeling.labeled_graph import LabeledGraph, Layer
from channelscope.network.labeling.labels import FIXED, FREE, channels_in, compact, numbers_in, tensors
from channelscope.network.labeling.trial import single, try_out
from channelscope.network.sites import Sites
from channelscope.network.tracing.recorder import Recording
from channelscope.network.tracing.recording import record


class SiteLabels:
    """The labels of a network, and which of their channel numbers are those of its sites.

    Layers that are called several times stay whole, as do layers that share a parameter with another place.

    Parameters
    ----------
    found
        The sites of the network.
    image
        One image, all inputs of the network.

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

    def __init__(self, found: Sites, image: tuple[Tensor, ...]):
        self.found = found
        self.labeled, self.steps = labels_of(found.graph, image)
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
            elif step is not None and step.name in labeled.reads and not labeled.entry(step).inner:
                numbers = labeled.reads[step.name]
                found[name] = Layer(name, node.name, numbers[:0], numbers, 0, 0)
        return found

    def _hold_shared(self) -> None:
        """Keep whole the layers that share a parameter with another place."""
        graph = self.found.graph
        places: dict[int, list[str]] = defaultdict(list)
        for name, module in graph.model.named_modules():
            for part, parameter in module.named_parameters(recurse=False):
                places[id(parameter)].append(f"{name}.{part}".lstrip("."))
        known = dict(graph.model.named_parameters(remove_duplicate=False))
        for node in graph.steps.nodes:
            if node.op == "get_attr" and str(node.target) in known:
                places[id(known[str(node.target)])].append(f"the step {node.name}")
        counts = {site.name: site.channels for site in self.found}
        for layer in self.layers.values():
            own = self._numbers(layer.name, counts[layer.name]) if layer.name in counts else ()
            for parameter in graph.modules[layer.name].parameters(recurse=False):
                if len(places[id(parameter)]) > 1:
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
            numbers = numbers_in([labeled.labels[parent] for parent in node.all_input_nodes if tensors(labeled.labels[parent])])
            numbers = labeled.union.roots(numbers).unique()
            if labeled.removable(numbers) and amount % len(numbers) == 0:
                found.append(Layer(f"{node.name} ", node.name, torch.full((1,), FIXED), numbers, amount // len(numbers), 1))
        return found


def labels_of(graph: Graph, image: tuple[Tensor, ...]) -> tuple[LabeledGraph, dict[str, fx.Node]]:
    """The labels of a traced network, and the step of the labeled graph that has the value of each of its steps.

    The traced steps are labeled as they are where nothing more could be known; where modules of their own kind are one step, or
    numbers come from attributes, the pass is recorded once more, with these modules entered.

    Parameters
    ----------
    graph
        The traced network.
    image
        One image, all inputs of the network.

    Examples
    --------
    >>> from channelscope.network.graph import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 4, 1)).eval()
    >>> image = (torch.zeros(1, 3, 5, 5),)
    >>> labeled, steps = labels_of(trace(net, image), image)
    >>> labeled.labels[steps["_1"]][0, :, 0, 0].tolist()
    [0, 1]
    """
    again = graph.numbers or _entered(graph)
    recording = record(graph.model, image, whole=single) if again else _run_once(graph, image)
    steps = _matched(graph, recording)
    if steps is None:
        recording = _run_once(graph, image)
        steps = graph.nodes
    return LabeledGraph(recording, graph.model), steps


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
