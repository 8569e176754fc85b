"""Recorder: turns what a running network calls into steps."""

import inspect
import operator
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from channelscope.errors import TracingError
from channelscope.network import nest
from channelscope.network.module_state import random_state, version
from channelscope.network.operations import FunctionalCall, FunctionalLayers
from channelscope.network.tracing.spelling import Aliases, Float, Int, Origin, Spelling, plain

FORM = {"shape", "dtype", "device", "size", "numel", "nelement"}
"""Properties and methods that do not depend on the values of a tensor."""

BLANK = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "new_full"}
"""Functions that take from a tensor its form alone."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One forward pass."""

    steps: fx.Graph
    """placeholders, get_attr, call_module, call_function, call_method and output nodes in execution order"""
    values: dict[str, Any]
    """node name → value on the example"""
    owner: dict[str, str]
    """node name → path of the module whose forward pass made the step; empty for the network itself"""
    constants: dict[str, Tensor]
    """target of a get_attr node → tensor that is neither input nor parameter, buffer or attribute of a module"""
    output: Any
    """the network's output with None in the place of tensors; `nest.closed` puts others in"""


class Recorder:
    """Makes the steps while the network runs."""

    def __init__(self, model: nn.Module, whole: Callable[[nn.Module], bool]):
        self.model, self.whole = model, whole
        self.steps = fx.Graph()
        self.values: dict[str, Any] = {}
        self.owner: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.known = Aliases(self._made, self.values)
        self.pixels: set[fx.Node] = set()
        self.forms: dict[Any, fx.Node | Origin] = {}
        self.inside = 0
        self.outer = autocasts()
        self.stack: list[dict[str, Any]] = [{}]
        self.paths: dict[int, str] = {}
        for path, module in model.named_modules():
            self.paths.setdefault(id(module), path)
        self.named = {id(value): name for name, value in _held(model)}
        self.layers = FunctionalLayers(model)

    def inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments with each tensor copied and known as an input."""
        bound = inspect.signature(self.model.forward).bind(*args, **kwargs)
        kinds = {name: parameter.kind for name, parameter in inspect.signature(self.model.forward).parameters.items()}
        for name, value in bound.arguments.items():
            open_ended = kinds[name] is inspect.Parameter.VAR_KEYWORD
            bound.arguments[name] = {key: self._input(key, part) for key, part in value.items()} if open_ended else self._input(name, value)
        return bound.args, bound.kwargs

    def _input(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            copied = value.detach().clone()
            node = self.steps.placeholder(name)
            self._noted(node, copied, "")
            self.pixels.add(node)
            self.known.know(copied, node)
            return copied
        parts = nest.opened(value)
        if not nest.holds_tensor(parts):
            return value
        pairs = parts.items() if isinstance(parts, dict) else enumerate(parts)
        made = [(key, self._input(f"{name}_{key}", part)) for key, part in pairs]
        return nest.closed(value, dict(made) if isinstance(parts, dict) else [part for _, part in made])

    def finished(self, output: Any) -> Recording:
        """The recording, once the network has returned, without functions whose value nothing reads."""
        self.inside += 1
        parts = nest.opened(output)
        node = self.steps.output(self.argument(parts))
        self._noted(node, plain(parts), "")
        for name in self.known.clear_unused(self.steps):
            del self.values[name], self.owner[name]
        for node in reversed(self.steps.nodes):
            if not node.users and node.op in ("call_function", "call_method") and not node.meta.get("changes"):
                self.steps.erase_node(node)
                del self.values[node.name], self.owner[node.name]
        self.inside -= 1
        return Recording(self.steps, self.values, self.owner, self.constants, nest.replaced(plain(output), lambda _: None))

    def scope(self) -> str:
        """Path of the module whose forward pass runs now."""
        return next(reversed(self.stack[-1]), "")

    def number(self, origin: Origin) -> fx.Node:
        """A new step for a number; one that reads a tensor's form stands right behind the tensor, which then need not be kept."""
        args = self.argument(origin.args)
        read = origin.args[0] if origin.args and isinstance(origin.args[0], fx.Node) else None
        if read is not None and read.op == "placeholder":
            read = [node for node in self.steps.nodes if node.op == "placeholder"][-1]
        with nullcontext() if read is None else self.steps.inserting_after(read):
            node = self.steps.create_node(origin.op, origin.target, args, {})
        self._noted(node, plain(origin.value), origin.owner)
        return node

    # Steps

    def module(self, path: str, module: nn.Module, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """A module that is one step."""
        self.stack.append({**self.stack[-1], path: type(module)})
        try:
            return self.step(Spelling("call_module", path, args, kwargs), lambda: call(module, *plain(args), **plain(kwargs)))
        finally:
            self.stack.pop()

    def layer(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> FunctionalCall | None:
        """The layer that a call of a function carries out on the layer's own weight.

        None where there is no such layer, inside of its own forward pass, and where the layer has hooks, which the function leaves out.
        """
        found = self.layers.called(function, args, kwargs)
        if found is None or found.path in self.stack[-1] or not self.whole(found.layer):
            return None
        return None if found.layer._forward_hooks or found.layer._forward_pre_hooks else found

    def step(self, call: Spelling, run: Callable[[], Any], written: list[Tensor] | None = None) -> Any:
        """Run a call and record it; `written` are tensors that it may change in place."""
        self.inside += 1
        try:
            return self._step(call, run, written or [])
        finally:
            self.inside -= 1

    def _step(self, call: Spelling, run: Callable[[], Any], written: list[Tensor]) -> Any:
        args, kwargs = self.argument(call.args), self.argument(call.kwargs)
        given = nest.tensors((call.args, call.kwargs))
        if call.writes or (call.op == "call_module" and vars(self.model.get_submodule(call.target)).get("inplace")):
            written = [*written, *given[:1]]
        for each in written:
            self.node(each)
            self.known.about_to_change(each)
        before = [(each, version(each)) for each in {id(each): each for each in (*given, *written)}.values()]
        random = random_state()
        out = run()
        changed = [each for each, number in before if version(each) != number]
        if not nest.holds_tensor(out):
            self._refuse_values(call, out, args, kwargs)
            return out
        returned = {id(each): each for each in nest.tensors(out)}
        node = self._noted(self.steps.create_node(call.op, call.target, args, kwargs), out, self._maker(call))
        node.meta["writes"], node.meta["changes"] = call.writes, bool(changed)
        node.meta["random"] = not torch.equal(random, random_state())
        for each in changed:
            if id(each) in returned:
                self.known.changed(each, node)
            elif id(each) not in self.named and not any(self.known.share(each, other) for other in returned.values()):
                raise TracingError("a step changes a tensor that it does not return")
        return self._spread(out, node, given, {id(each) for each in changed})

    def _maker(self, call: Spelling) -> str:
        levels = list(self.stack[-1])
        return "".join(levels[-2:-1]) if call.op == "call_module" else "".join(levels[-1:])

    def _made(self, op: str, target: Any, args: tuple, kwargs: dict[str, Any], value: Tensor) -> fx.Node:
        return self._noted(self.steps.create_node(op, target, args, kwargs), value.detach().clone(), self.scope())

    def _noted(self, node: fx.Node, value: Any, owner: str) -> fx.Node:
        """Write down what is known about a new node."""
        self.values[node.name], self.owner[node.name] = value, owner
        node.meta["nn_module_stack"] = self.stack[-1]
        node.meta["place"] = place()
        node.meta["no_grad"] = not torch.is_grad_enabled()
        node.meta["autocast"] = [mode for mode in autocasts() if mode not in self.outer]
        if any(parent in self.pixels for parent in node.all_input_nodes) and not _of_form(node):
            self.pixels.add(node)
        return node

    def _spread(self, out: Any, node: fx.Node, given: list[Tensor], changed: set[int]) -> Any:
        """Make the step's tensors known; an input that is returned as it is gets an alias, so that the step is seen."""
        if isinstance(out, Tensor):
            if id(out) in changed:
                return out
            if any(out is each for each in given):
                out = out.view_as(out)
            self.known.know(out, node, given)
            return out
        if isinstance(out, tuple | list | dict):
            pairs = out.items() if isinstance(out, dict) else enumerate(out)
            made = [(key, self._item(part, node, key, given, changed)) for key, part in pairs]
            return nest.closed(out, dict(made) if isinstance(out, dict) else [part for _, part in made])
        return out

    def _item(self, part: Any, node: fx.Node, key: Any, given: list[Tensor], changed: set[int]) -> Any:
        if not nest.holds_tensor(part):
            return part
        item = self._noted(self.steps.call_function(operator.getitem, (node, key)), part, self.owner[node.name])
        return self._spread(part, item, given, changed)

    def _refuse_values(self, call: Spelling, out: Any, args: Any, kwargs: Any) -> None:
        """Refuse to hand values of pixels to Python."""
        parents: list[fx.Node] = []
        map_arg((args, kwargs), parents.append)
        if out is not None and not isinstance(out, str) and any(parent in self.pixels for parent in parents):
            raise TracingError("the pass depends in Python on the values of a tensor, which change from image to image")

    # Arguments

    def argument(self, value: Any) -> Any:
        """A value as an argument of a step: nodes in the place of tensors and followed numbers."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, Int | Float):
            return value.origin.step()
        if isinstance(value, Origin):
            return value.step()
        if isinstance(value, torch.dtype | torch.device) and value in self.forms:
            return self._form(value)
        if isinstance(value, slice):
            return slice(self.argument(value.start), self.argument(value.stop), self.argument(value.step))
        if isinstance(value, tuple | list):
            parts = [self.argument(part) for part in value]
            if hasattr(type(value), "_fields"):
                return type(value)(*parts)
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, dict):
            return {key: self.argument(part) for key, part in value.items()}
        return value

    def _form(self, value: Any) -> fx.Node:
        """The step that reads a type of numbers or a device from a tensor."""
        known = self.forms[value]
        if isinstance(known, Origin):
            known = self.forms[value] = known.step()
        return known

    def node(self, tensor: Tensor) -> fx.Node:
        """The step with a tensor's present value."""
        try:
            found = self.known.step(tensor)
        except ValueError as error:
            raise TracingError(str(error)) from error
        if found is None:
            name = self.named.get(id(tensor))
            if name is None:
                name = f"_tensor_constant{len(self.constants)}"
                self.constants[name] = tensor
            found = self._noted(self.steps.get_attr(name), tensor, self.scope())
            self.known.know(tensor, found)
        return found


def place() -> str:
    """File, line and function of the network's code that runs now; empty where all of it is PyTorch's.

    Examples
    --------
    >>> exec(compile("def forward():\\n    return place()", "net.py", "exec"))
    >>> forward()
    'net.py:2 (forward)'
    """
    frame = sys._getframe(1)
    while frame is not None and _foreign(frame.f_code.co_filename):
        frame = None if frame.f_code.co_name == "record" else frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})" if frame is not None else ""


OWN = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
"""Where code lies that is not the network's."""


def _foreign(filename: str) -> bool:
    return filename.startswith(OWN)


def autocasts() -> list[tuple[str, bool, torch.dtype]]:
    """Mixed precision as it is now: kind of device, whether on, and in which type of numbers.

    Examples
    --------
    >>> [(kind, active) for kind, active, _ in autocasts()]
    [('cpu', False), ('cuda', False)]
    """
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def _of_form(node: fx.Node) -> bool:
    """Whether a step takes from its tensors only shape, type of numbers and device."""
    if node.target is getattr:
        return node.args[1] in FORM
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return name in BLANK or (node.op == "call_method" and name in FORM)


def _held(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that the modules hold as attributes, then buffers and parameters, with their paths."""
    held = [
        (f"{path}.{key}" if path else key, value)
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    return held + list(model.named_buffers()) + list(model.named_parameters())
