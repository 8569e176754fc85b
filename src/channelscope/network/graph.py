"""Graph: a network's forward pass as a list of steps that can be watched, changed and entered midway.

`PartialForward` finishes one pass many times with changed maps of a site; `ActivationCache` goes through a pass step by step.

The pass is recorded on one example (network/tracing/recording.py): Python control flow is that of the example. The result is
compared with the network on another image and another batch size, so that a graph that would be wrong is refused.
"""

import inspect
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from channelscope.errors import FAILURES, InputError, TracingError, UserCode, first_line, no_lack_of_memory, no_such
from channelscope.network import nest
from channelscope.network.module_state import eval_mode, out_of_place, restored_state
from channelscope.network.operations import execute, of_module
from channelscope.network.operations.opened import in_layers
from channelscope.network.tracing.recorder import FORM, OWN, Recording
from channelscope.network.tracing.recording import follow_images, literal, one_step, other_image, record, same, unwrapped
from channelscope.site import Site

Hook = Callable[[Tensor], Tensor | None]
"""What happens at a point: gets the tensor, returns its replacement, or None to leave it as it is."""


def asks_form(node: fx.Node) -> bool:
    """Whether a step asks a tensor for its shape, type or device alone.

    Examples
    --------
    >>> steps = fx.Graph()
    >>> image = steps.placeholder("x")
    >>> asks_form(steps.call_method("size", (image, 0))), asks_form(steps.call_function(getattr, (image, "T")))
    (True, False)
    """
    return node.target in FORM if node.op == "call_method" else node.target is getattr and node.args[1] in FORM


class Graph:
    """The traced forward pass of `model`; shares its parameters, copies nothing.

    Steps are named by their torch.fx node; `shapes` has each step's output shape for the example batch, `numbers` counts
    attributes of modules whose values stand in the steps as they were. `body` has the modules that the steps call: the network
    itself, or, where that has multi-head attention, one that shares its parameters and has the attention's projections as layers.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: fx.Graph,
        shapes: Mapping[str, tuple[int, ...]],
        constants: Mapping[str, Tensor],
        output: Any = None,
        body: nn.Module | None = None,
    ):
        self.model = model
        self.body = model if body is None else body
        self.steps = steps
        self.shapes = shapes
        self.constants = constants
        self.output = output
        self.nodes: dict[str, fx.Node] = {node.name: node for node in steps.nodes}
        self.inputs = [node.name for node in steps.nodes if node.op == "placeholder"]
        self.modules = dict(self.body.named_modules())
        self.signature = inspect.signature(model.forward)
        self.options: dict[str, Any] = {}
        self.numbers = 0
        self.running: fx.Node | None = None
        self._plans: dict[tuple, list[tuple[fx.Node, tuple[str, ...]]]] = {}

    @cached_property
    def of_images(self) -> frozenset[fx.Node]:
        """Steps whose value depends on the inputs, and not on their shape alone; the others, such as position biases, have no images."""
        found: set[fx.Node] = set()
        for node in self.steps.nodes:
            if node.op == "placeholder" or (not asks_form(node) and any(parent in found for parent in node.all_input_nodes)):
                found.add(node)
        return frozenset(found)

    def reads_bias(self, layer: str) -> bool:
        """Whether a step outside of a layer reads its bias, as where a function adds another bias to the layer's products."""
        steps = self.steps.find_nodes(op="get_attr", target=f"{layer}.bias")
        return any(not asks_form(user) for node in steps for user in node.users)

    def arguments(self, args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The inputs of the graph in the arguments of a call of the network.

        Raises
        ------
        InputError
            If an option of the call is another than the one the network was traced with.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name in self.options and not nest.holds_tensor(value) and value != self.options[name]:
                raise InputError(f"the network was traced with {name}={self.options[name]!r}, received {name}={value!r}: trace it so")
        return nest.tensors(dict(bound.arguments))

    def run(
        self,
        *inputs: Tensor,
        hooks: Mapping[str, Hook] | None = None,
        known: Mapping[str, Any] | None = None,
        outputs: str | tuple[str, ...] = "output",
        out_of_place: bool = False,
    ) -> Any:
        """Value of step `want` (or a tuple of values), running only what it needs.

        `after` calls a function on a step's value as soon as it exists; `given` supplies steps already computed, so
        that a run can start midway; `pure` turns in-place operations into ordinary ones, so that values wanted or
        given are never overwritten.
        """
        hooks, known = hooks or {}, known or {}
        wanted = (outputs,) if isinstance(outputs, str) else outputs
        unknown = [name for name in (*hooks, *known, *wanted) if name not in self.nodes]
        if unknown:
            raise InputError(no_such("step", unknown[0], self.nodes))
        values: dict[str, Any] = dict(known)
        values.update(zip(self.inputs, nest.tensors(inputs), strict=False))
        for node, finished in self._plan(tuple(known), wanted):
            value = values[node.name] if node.op == "placeholder" and node.name in values else self.step(node, values, out_of_place)
            if node.name in hooks:
                changed = hooks[node.name](value)
                value = value if changed is None else changed
            values[node.name] = value
            for name in finished:
                del values[name]
        return values[wanted[0]] if isinstance(outputs, str) else tuple(values[name] for name in wanted)

    def _plan(self, given: tuple[str, ...], wanted: tuple[str, ...]) -> list[tuple[fx.Node, tuple[str, ...]]]:
        """Steps to run in order, each with the values nobody needs afterwards."""
        key = (given, wanted)
        if key not in self._plans:
            needed, stack = set(), [self.nodes[name] for name in wanted if name not in given]
            while stack:
                node = stack.pop()
                if node.name not in needed:
                    needed.add(node.name)
                    stack += [parent for parent in node.all_input_nodes if parent.name not in given]
            order = [node for node in self.steps.nodes if node.name in needed]
            last = {parent.name: node.name for node in order for parent in node.all_input_nodes}
            keep = set(wanted) | set(given)
            self._plans[key] = [
                (node, tuple(name for name, user in last.items() if user == node.name and name not in keep)) for node in order
            ]
        return self._plans[key]

    def step(self, node: fx.Node, values: Mapping[str, Any], out_of_place: bool = False) -> Any:
        """Value of one step, given the values of the steps that it reads.

        Raises
        ------
        InputError
            For an input of the network, which has no step that makes it.
        """
        if node.op == "placeholder":
            raise InputError(f"the network needs an input named {node.target}, and none was given")
        return self.carry_out(node, _given(node.args, values), _given(node.kwargs, values), out_of_place)

    def carry_out(self, node: fx.Node, args: tuple, kwargs: Mapping[str, Any], out_of_place: bool = False) -> Any:
        """Value of one step on given arguments, in the mode in which it was recorded.

        Parameters
        ----------
        node
            A step; no placeholder.
        args, kwargs
            Its arguments, with values in the place of steps.
        out_of_place
            Whether modules that write over their input leave it as it is.
        """
        self.running = node
        if node.op == "output":
            return nest.closed(self.output, args[0])
        if node.op == "get_attr" and node.target in self.constants:
            return self.constants[str(node.target)]
        if node.meta.get("writes"):
            args = (args[0].clone(), *args[1:])
        if not node.meta.get("no_grad") and not node.meta.get("autocast"):
            return self._called(node, args, kwargs, out_of_place)
        with ExitStack() as stack:
            for kind, on, numbers in node.meta.get("autocast", ()):
                stack.enter_context(torch.autocast(kind, dtype=numbers, enabled=on))
            if node.meta.get("no_grad"):
                stack.enter_context(torch.no_grad())
            return self._called(node, args, kwargs, out_of_place)

    def _called(self, node: fx.Node, args: tuple, kwargs: Mapping[str, Any], pure: bool) -> Any:
        if node.op != "call_module":
            return execute(self.body, node.op, node.target, args, kwargs)
        module = self.modules[str(node.target)]
        with out_of_place(module) if pure else nullcontext():
            return module(*args, **kwargs)

    def of_copy(self, model: nn.Module) -> "Graph":
        """The same steps on a copy of the network, with constants in its precision.

        Parameters
        ----------
        model
            A copy of its body.
        """
        kinds = [part.dtype for part in model.parameters() if part.is_floating_point()]
        double = bool(kinds) and all(kind == torch.float64 for kind in kinds)
        constants = {name: part.double() if double and part.is_floating_point() else part for name, part in self.constants.items()}
        return Graph(model, self.steps, self.shapes, constants, self.output)


def _given(arguments: Any, values: Mapping[str, Any]) -> Any:
    """Arguments of a step with values in the place of nodes; most are flat."""
    if isinstance(arguments, tuple):
        return tuple([values[part.name] if type(part) is fx.Node else _given(part, values) if _deep(part) else part for part in arguments])
    if not arguments and isinstance(arguments, Mapping):
        return {}
    return map_arg(arguments, lambda parent: values[parent.name])


def _deep(part: Any) -> bool:
    return isinstance(part, tuple | list | dict | slice)


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Graph:
    """The graph of a network, recorded in one forward pass and compared with the network on another image.

    Parameters
    ----------
    model
        The network; a wrapper such as DataParallel is taken off, with a warning.
    example
        A batch of at least one image, or a tuple of all inputs.

    Raises
    ------
    InputError
        If the network cannot run on the example.
    TracingError
        If Python depends on values that change from image to image or on the batch size, if the output is random, or if the
        network is scripted or has lazy layers; the message names the line.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten()), torch.zeros(1, 3, 5, 5))
    >>> graph.shapes["_2"], graph.run(torch.zeros(7, 3, 5, 5)).shape
    ((2, 100), torch.Size([7, 100]))
    """
    model = unwrapped(model)
    if "forward" in vars(model):
        raise TracingError(
            "the network's forward pass is replaced for the moment, by an edit such as silence(…) or by hand: trace it outside"
        )
    inputs = example if isinstance(example, tuple) else (example,)
    other = tuple(other_image(part) for part in inputs)
    sizes = ", ".join("×".join(map(str, each.shape[1:])) for each in inputs)
    with UserCode(InputError, f"the network cannot run on images of shape {sizes}"):
        expected = _answer(model, other)
    body = in_layers(model)
    recording = _recorded(body, _repeated(inputs, 2))
    graph = _graph(model, body, recording, inputs)
    received = _replayed(graph, other)
    if isinstance(received, Exception) or not same(expected, received) or _takes_first_images(graph):
        try:
            follow_images(graph.steps, literal(_recorded(body, _repeated(inputs, 5))), 2, 5)
            graph = _graph(model, body, recording, inputs)
            received = _replayed(graph, other)
        except TracingError as error:
            received = received if isinstance(received, Exception) else error
    if isinstance(received, Exception):
        raise TracingError(
            f"the traced network fails on another batch size{_difference(graph, other)}: {first_line(received)}"
        ) from received
    drawn = [node for node in graph.steps.nodes if node.meta.get("random")]
    if drawn and not same(expected, _answer(model, other, seed=1)):
        raise TracingError(
            f"the network's output is random, though it is in evaluation mode,{_at(drawn[0])}: "
            "give F.dropout training=self.training, or take the noise out"
        )
    if not same(expected, received):
        raise TracingError(
            f"the traced network computes something else on another batch{_difference(graph, other)}: "
            "its forward pass depends on the batch size, or on what no step shows"
        )
    return graph


def _repeated(inputs: tuple[Tensor, ...], images: int) -> tuple[Tensor, ...]:
    """So many images, the first one and its mirror image in turn; inputs without an axis of images as they are."""
    return tuple(
        torch.cat([part[:1].flip(-1) if index % 2 else part[:1] for index in range(images)]) if part.dim() > 1 else part for part in inputs
    )


def _replayed(graph: Graph, inputs: tuple[Tensor, ...]) -> Any:
    """The output of the steps, or the error that they end with."""
    try:
        with restored_state(graph.body), torch.no_grad():
            return graph.run(*inputs, out_of_place=True)
    except FAILURES as error:
        no_lack_of_memory(error)
        return error


def _graph(model: nn.Module, body: nn.Module, recording: Recording, inputs: tuple[Tensor, ...]) -> Graph:
    """The recorded steps with numbers in the place of steps that compute them from attributes."""
    shapes = {name: tuple(value.shape) for name, value in recording.values.items() if isinstance(value, Tensor)}
    count = len(recording.steps.nodes)
    graph = Graph(model, literal(recording), shapes, recording.constants, recording.output, body)
    graph.numbers = count - len(graph.steps.nodes)
    graph.options = _options(graph.signature, inputs)
    return graph


def _takes_first_images(graph: Graph) -> bool:
    """Whether a step takes so many of the first or last images of two, and would take as many of more."""
    for node in graph.steps.nodes:
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and graph.shapes.get(node.args[0].name, (0,))[:1] == (2,):
            index = node.args[1][0] if isinstance(node.args[1], tuple) and node.args[1] else node.args[1]
            bounds = (index.stop, index.start) if isinstance(index, slice) else ()
            if any(type(bound) is int and abs(bound) > 1 for bound in bounds):
                return True
    return False


def _answer(model: nn.Module, inputs: tuple[Tensor, ...], seed: int | None = None) -> Any:
    """The network's own output; what it keeps for its next call is forgotten."""
    with restored_state(model), torch.no_grad():
        if seed is not None:
            torch.manual_seed(seed)
        return model(*(part.clone() for part in inputs))


def _recorded(model: nn.Module, inputs: tuple[Tensor, ...]) -> Recording:
    try:
        return record(model, inputs, whole=_whole)
    except (*FAILURES, TracingError) as error:
        no_lack_of_memory(error)
        raise TracingError(f"the forward pass cannot be followed at {_user_line(error)}: {first_line(error)}") from error


def _whole(module: nn.Module) -> bool:
    """Whether a module is recorded as one step: a layer of torch.nn, or a type that the table of operations has as a whole."""
    entry = of_module(module)
    registered = entry is not None and type(module) in entry.modules and not type(module).__module__.startswith("torch.")
    return (entry is not None and entry.whole) or registered or one_step(module)


def _options(signature: inspect.Signature, inputs: tuple) -> dict[str, Any]:
    """What the forward pass was called with besides tensors."""
    bound = signature.bind(*inputs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if not nest.holds_tensor(value)}


def _difference(graph: Graph, inputs: tuple[Tensor, ...]) -> str:
    """Where a recording on other inputs first goes another way."""
    try:
        steps = literal(record(graph.body, inputs, whole=_whole))
    except (*FAILURES, TracingError) as error:
        no_lack_of_memory(error)
        return ""
    for ours, theirs in zip(graph.steps.nodes, steps.nodes, strict=False):
        if (str(ours.target), str(ours.args), str(ours.kwargs)) != (str(theirs.target), str(theirs.args), str(theirs.kwargs)):
            return _at(ours)
    last = graph.running
    return _at(last) if last is not None and last.op != "output" else ""


def _at(node: fx.Node) -> str:
    """Where a step was made: the line, or the step itself where the line is PyTorch's own."""
    return f" at {node.meta['place'] or node.name}"


def _user_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*OWN, str(Path(__file__).parent)))]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.name})"


def memory_format(model: nn.Module, image: Tensor) -> torch.memory_format:
    """Channels last where the network gives the same so, on a CPU; otherwise the usual order.

    Convolutions and poolings are as fast or faster in that order, in float32 too (benchmarks/training.py), and the channels of a position
    lie together. A network that uses `view` across channels and positions cannot run so, and one that reads memory as it lies computes
    something else; two images show it. On other devices float32 convolutions may be slower in that order.

    Examples
    --------
    >>> memory_format(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), torch.zeros(1, 1, 2, 2))
    torch.channels_last
    """
    if image.dim() != 4 or image.device.type != "cpu":
        return torch.contiguous_format
    try:
        with eval_mode(model), torch.no_grad():
            orders = torch.contiguous_format, torch.channels_last
            usual, last = (model(image[:2].contiguous(memory_format=order)) for order in orders)
    except FAILURES as error:  # a view of rows and columns as one axis; another error comes again in the usual order
        no_lack_of_memory(error)
        return torch.contiguous_format
    return torch.channels_last if same(usual, last) else torch.contiguous_format


class PartialForward:
    """One batch at one site's cut point; `finish` runs the rest of the network, and nothing before."""

    def __init__(self, graph: Graph, site: Site, values: Mapping[str, Any]):
        self.graph, self.site, self.values = graph, site, values

    @property
    def maps(self) -> Tensor:
        """The site's maps as they are (images, …); not to be written into."""
        return self.values[self.site.activation]

    def finish(self, maps: Tensor) -> Tensor:
        """Logits of the batch with other maps at the cut point."""
        return self.graph.run(known={**self.values, self.site.activation: maps}, out_of_place=True)


def partial_forwards(graph: Graph, sites: Iterable[Site], images: Tensor) -> Iterator[PartialForward]:
    """One batch at the cut point of each site in turn; in execution order every step is computed once for all of them.

    Only what the rest of the network needs is kept from one stop to the next. In a network with parallel branches the
    steps that lead into a branch may be computed again.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.sites import sites
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 3, 1), torch.nn.Flatten())
    >>> images = torch.rand(4, 1, 2, 2)
    >>> found = sites(net, images)
    >>> [part.site.name for part in partial_forwards(found.graph, found.found, images)]
    ['0']
    """
    values: dict[str, Any] = {}
    for site in sites:
        wanted = live_nodes(graph, site.activation)
        values = dict(zip(wanted, graph.run(images, known=values, outputs=wanted, out_of_place=True), strict=True))
        yield PartialForward(graph, site, values)


def live_nodes(graph: Graph, step: str) -> tuple[str, ...]:
    """The steps whose values are all that is needed to go on from `step`: itself, and what enters beside it later on.

    A residual shortcut around `step` is one; parameters read in the pass are not, for they are there anyway.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.graph import trace
    >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU()), torch.zeros(1, 1, 2, 2))
    >>> live_nodes(graph, "_0")
    ('_0',)
    """
    later = {graph.nodes[step]}
    beside: dict[fx.Node, None] = {graph.nodes[step]: None}
    for node in graph.steps.nodes:
        parents = node.all_input_nodes
        if any(parent in later for parent in parents):
            later.add(node)
            beside |= {parent: None for parent in parents if parent not in later and parent.op != "get_attr"}
    return tuple(node.name for node in beside)


class ActivationCache:
    """All images at one place of a network's pass: what is behind is forgotten, nothing is computed twice.

    A layer changed before its step is reached acts as changed on everything after it.
    """

    def __init__(self, graph: Graph, batches: list[tuple[Tensor, ...]]):
        self.graph = graph
        self.images = sum(len(batch[0]) for batch in batches)
        self.order = [node.name for node in graph.steps.nodes]
        self.place = {name: place for place, name in enumerate(self.order)}
        self.last = {node.name: max((self.place[user.name] for user in node.users), default=-1) for node in graph.steps.nodes}
        self.now: list[dict[str, Any]] = [dict(zip(graph.inputs, batch, strict=False)) for batch in batches]
        self.reached = -1
        self.held: set[str] = set()

    def __call__(self, step: str) -> list[Any]:
        """Values of a step, one a batch, going forward as far as needed."""
        ahead = self.order[self.reached + 1 : self.place[step] + 1]
        for values in self.now:
            for name in ahead:
                node = self.graph.nodes[name]
                if name not in values and node.op != "output":
                    given = {parent.name: values[parent.name] for parent in node.all_input_nodes}
                    values[name] = self.graph.run(known=given, outputs=name, out_of_place=True)
                self._forget(values, self.place[name])
        self.reached = max(self.reached, self.place[step])
        return [values[step] for values in self.now]

    def pin(self, step: str) -> None:
        """Remember a step's values beyond their last use, until `release`."""
        self.held.add(step)

    def unpin(self, step: str) -> None:
        """Forget a held step as soon as nothing else needs it."""
        self.held.discard(step)
        for values in self.now:
            self._forget(values, self.reached)

    def _forget(self, values: dict[str, Any], place: int) -> None:
        for name in [name for name in values if self.last[name] <= place and name not in self.held and self.place[name] != place]:
            del values[name]
