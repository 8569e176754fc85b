"""Operation: what the library knows of one kind of step, and the table of all kinds.

A spelling (a module type, a function, a method) leads to one entry. What has no entry is opaque.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from channelscope.errors import InputError

if TYPE_CHECKING:
    from channelscope.network.operations.step import Step

Window = tuple[tuple[int, int, int, int], ...]
"""Size, stride, padding before and dilation of a window along each spatial axis."""


@dataclass(frozen=True)
class Layout:
    """How the inputs of a layer are laid out for a re-fit of its weights by least squares."""

    unfit: Callable[[nn.Module], str]
    """module → why its inputs cannot be laid out; empty when they can"""
    products: Callable[[nn.Module, Tensor, Tensor], Tensor]
    """(module, inputs, outputs) → Σ over images and positions of output × patch, float64 (rows, taps)"""
    pooled: Callable[[nn.Module, Tensor, tuple[int, ...]], Tensor]
    """(module, inputs, output size) → patches averaged over the positions of each image, (images, groups, taps)"""


@dataclass(frozen=True)
class Geometry:
    """How the kernels of a layer move over its input."""

    kernel: tuple[int, ...] = ()
    """spatial size of a kernel; empty for a linear layer"""
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    """positions added before and after, along each spatial axis"""
    mode: str = "constant"
    """padding mode of torch.nn.functional.pad"""
    groups: int = 1


def _nothing(step: "Step") -> int:
    return 0


@dataclass(frozen=True)
class Operation:
    """One kind of step: its spellings, and what the rest of the library asks about it.

    Parameters
    ----------
    name
        Name of the entry.
    labels
        The labels of the step's value; unites and holds channels on the way.
    modules
        Module types that are this kind; subclasses are too, unless they have an entry of their own.
    functions
        Names of the functions and methods that are this kind, without a trailing underscore.
    arguments
        Names of the arguments in order, so that positions, keywords and attributes of modules are one.
    macs
        Multiply-adds of the step on its recorded values.
    adjust
        Sets a module's own numbers (in_channels, num_features, …) after its parameters have been cut, given which of the
        channels noted for it are kept (None where none are); returns another module where the class cannot be narrower.
    weighted
        Whether the step has outputs of its own: a new channel for each row of its weight.
    inner
        Whether the step has channels inside that are not seen in its value; what goes of its parameters is then silenced.
    traces
        Whether the labels rule also follows elements of parameters, so that weights computed by such steps can be cut.
    moves
        Whether the step only moves elements, so that it can be carried out on labels.
    pointwise
        Whether every element of the value depends on the same element of the input alone.
    local
        Whether every position of a map depends on the same position alone.
    window
        The window of a step that looks at several positions; None where it has none.
    geometry
        How a layer's kernels move over its input, for the contribution of one kernel.
    layout
        Input layout for a re-fit.
    """

    name: str
    labels: Callable[["Step"], Any]
    modules: tuple[type[nn.Module], ...] = ()
    functions: frozenset[str] = field(default_factory=frozenset)
    arguments: tuple[str, ...] = ("input",)
    macs: Callable[["Step"], int] = _nothing
    adjust: Callable[[nn.Module, Tensor | None], nn.Module | None] | None = None
    weighted: bool = False
    inner: bool = False
    pointwise: bool = False
    traces: bool = False
    moves: bool = False
    local: bool = False
    window: Callable[["Step"], Window | None] | None = None
    geometry: Callable[[nn.Module], Geometry] | None = None
    layout: Layout | None = None


TABLE: dict[str, Operation] = {}
"""Entry name → entry."""
_BY_FUNCTION: dict[str, str] = {}
_BY_MODULE: dict[type[nn.Module], str] = {}


def names(text: str) -> frozenset[str]:
    """The words of a text, as the spellings of an entry."""
    return frozenset(text.split())


def register(entry: Operation) -> Operation:
    """The entry, now in the table; of two entries for one spelling the later is asked.

    Parameters
    ----------
    entry
        A new kind of step, usually for a module of one's own. Its `labels` function is given the step.

    Examples
    --------
    A module that multiplies each channel with a number of its own:

    >>> class Scale(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.factor = nn.Parameter(torch.ones(channels, 1, 1))
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> def labels(step):
    ...     step.follow("factor", 0, step.channels("input", axis=1))
    ...     return step.labels("input")
    >>> register(Operation("scale", labels, modules=(Scale,))).name
    'scale'
    >>> unregister("scale")
    """
    TABLE.pop(entry.name, None)
    TABLE[entry.name] = entry
    _spell_out()
    return entry


def _spell_out() -> None:
    _BY_FUNCTION.clear()
    _BY_MODULE.clear()
    for entry in TABLE.values():
        _BY_FUNCTION.update(dict.fromkeys(entry.functions, entry.name))
        _BY_MODULE.update(dict.fromkeys(entry.modules, entry.name))


def unregister(name: str) -> None:
    """Take an entry and its spellings out of the table.

    Raises
    ------
    InputError
        If no entry is called so; names near ones.
    """
    if name not in TABLE:
        raise InputError(f"no operation is called '{name}'; near matches: {', '.join(get_close_matches(name, TABLE)) or 'none'}")
    del TABLE[name]
    _spell_out()


def spell(name: str, modules: Iterable[type[nn.Module]] = (), functions: Iterable[str] = ()) -> Operation:
    """An entry with more spellings, for a module or function that behaves like one that is known.

    Raises
    ------
    InputError
        If no entry is called so; names near ones.
    """
    if name not in TABLE:
        raise InputError(f"no operation is called '{name}'; near matches: {', '.join(get_close_matches(name, TABLE)) or 'none'}")
    entry = TABLE[name]
    return register(replace(entry, modules=(*entry.modules, *modules), functions=entry.functions | set(functions)))


def spelling(node: fx.Node) -> str:
    """The name of the function or method that a step calls, without underscores at its ends."""
    name = (node.target if isinstance(node.target, str) else node.target.__name__).split(".")[0]
    if name.startswith("__"):
        return name.strip("_")
    return name.rstrip("_")


def of_module(module: nn.Module) -> Operation | None:
    """The entry of a module; None where it has none."""
    for kind in type(module).__mro__:
        if kind in _BY_MODULE:
            return TABLE[_BY_MODULE[kind]]
    return None


def of_function(name: str) -> Operation | None:
    """The entry of a function or method, by its name without underscores at its ends; None where it has none."""
    return TABLE.get(_BY_FUNCTION.get(name, ""))


def of_step(node: fx.Node, modules: Mapping[str, nn.Module]) -> Operation:
    """The entry of a step; the opaque one where the table has none."""
    found = of_module(modules[str(node.target)]) if node.op == "call_module" else of_function(spelling(node))
    return found or TABLE["opaque"]
