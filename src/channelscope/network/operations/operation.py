"""Operation: what the library knows of one kind of step, and the table of all kinds.

A spelling (a module type, a function, a method) leads to one entry. What has no entry is opaque.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, fx, nn

from channelscope.errors import InputError, no_such

if TYPE_CHECKING:
    from channelscope.network.operations.step import Call, Step

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
class WeightedLayer:
    """How the weight of a layer joins its input channels to its output channels, and how its kernels move over the input.

    Parameters
    ----------
    in_channels, out_channels
        Numbers of channels of the values that it takes and gives.
    groups
        Groups of channels that do not see each other.
    out_axis
        Axis of the weight along which outputs lie: 0, or 1 for a transposed convolution. Inputs lie along the other.
    tokens
        Whether the channels are the last axis of its values, as for a linear layer, and not the axis behind the batch.
    kernel
        Spatial size of a kernel; empty for a linear layer.
    stride, dilation
        Steps between positions, and between the taps of a kernel, along each spatial axis.
    pads
        Positions added before and after, along each spatial axis.
    mode
        Padding mode of torch.nn.functional.pad.

    Examples
    --------
    >>> layer = of_module(nn.Conv2d(4, 6, 3, padding=1, groups=2)).layer(nn.Conv2d(4, 6, 3, padding=1, groups=2))
    >>> layer.out_channels, layer.groups, layer.kernel, layer.transposed
    (6, 2, (3, 3), False)
    """

    in_channels: int
    out_channels: int
    groups: int = 1
    out_axis: int = 0
    tokens: bool = False
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    mode: str = "constant"

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, whose weight has the inputs first."""
        return self.out_axis == 1

    @property
    def depthwise(self) -> bool:
        """Whether every channel has kernels of its own."""
        return self.groups > 1 and self.groups == self.in_channels

    def channel_axis(self, dims: int) -> int:
        """Axis of the channels in values of so many axes."""
        return dims - 1 if self.tokens else 1

    def split(self, weight: Tensor) -> Tensor:
        """A tensor shaped like the weight, as (groups, outputs of a group, inputs of a group, taps).

        Examples
        --------
        >>> import torch
        >>> layer = WeightedLayer(in_channels=4, out_channels=6, groups=2)
        >>> layer.split(torch.zeros(6, 2, 3, 3)).shape
        torch.Size([2, 3, 2, 9])
        """
        blocks = weight.reshape(*weight.shape[:2], -1).unflatten(0, (self.groups, -1))
        return blocks.transpose(1, 2) if self.transposed else blocks


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
        channels noted for it are kept (None where none are).
    weighted
        Whether the step has outputs of its own: a new channel for each row of its weight.
    traces
        Whether the labels rule also follows elements of parameters, so that weights computed by such steps can be cut.
    moves
        Whether the step only moves elements, so that it can be carried out on labels.
    pointwise
        Whether every element of the value depends on the same element of the input alone.
    local
        Whether every position of a map depends on the same position alone.
    window
        The window of a step that looks at several positions; None where it has none, or none that is the same at every position.
    layer
        How the weight of a module joins input to output channels; None for steps that are no layer.
    layout
        Input layout for a re-fit.
    keeps
        How the value keeps the channels of the step's one input: `apart`, each depends on one channel alone, as in activations,
        pooling and reshaping; `together`, each depends on several, as in a softmax; empty where it does not, or has several inputs.
    arithmetic
        `sum` or `product` for the addition and the multiplication of two tensors.
    joins
        Whether the step puts tensors one behind the other along an axis.
    normalizes
        Whether the step is a normalization.
    identity
        Whether the step does nothing in evaluation mode and can be left out.
    copies
        Whether the value is its input's, in other memory or as another type of number.
    whole
        Whether modules derived from its types are one step also where they have a forward pass of their own.
    scale_shift
        Factor and shift that a normalization with running statistics applies to each channel in evaluation mode, (channels,)
        float64 each; None where a module keeps no statistics.
    reduces
        Axes of the input, counted from 0, over which the step takes a mean, a sum or the like; given its call and the number of axes.
    adds_zeros
        Whether a padding adds zeros alone, and not other numbers or copies.
    flattens
        Whether the step joins the channels with all positions behind them to one axis, however many they are.
    """

    name: str
    labels: Callable[["Step"], Any]
    modules: tuple[type[nn.Module], ...] = ()
    functions: frozenset[str] = field(default_factory=frozenset)
    arguments: tuple[str, ...] = ("input",)
    macs: Callable[["Step"], int] = _nothing
    adjust: Callable[[nn.Module, Tensor | None], None] | None = None
    weighted: bool = False
    pointwise: bool = False
    traces: bool = False
    moves: bool = False
    local: bool = False
    window: Callable[["Call"], Window | None] | None = None
    layer: Callable[[nn.Module], WeightedLayer] | None = None
    layout: Layout | None = None
    keeps: Literal["", "apart", "together"] = ""
    arithmetic: Literal["", "sum", "product"] = ""
    joins: bool = False
    normalizes: bool = False
    identity: bool = False
    copies: bool = False
    whole: bool = False
    scale_shift: Callable[[nn.Module], tuple[Tensor, Tensor] | None] | None = None
    reduces: Callable[["Call", int], tuple[int, ...]] | None = None
    adds_zeros: Callable[["Call"], bool] | None = None
    flattens: Callable[["Call"], bool] | None = None


TABLE: dict[str, Operation] = {}
"""Entry name → entry."""
_BY_FUNCTION: dict[str, str] = {}
_BY_MODULE: dict[type[nn.Module], str] = {}


def names(text: str) -> frozenset[str]:
    """The words of a text, as the spellings of an entry.

    Examples
    --------
    >>> sorted(names("relu gelu relu"))
    ['gelu', 'relu']
    """
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

    Examples
    --------
    >>> entry = register(Operation("twice", lambda step: step.labels(), functions=names("twice")))
    >>> of_function("twice").name
    'twice'
    >>> unregister("twice")
    >>> of_function("twice") is None
    True
    """
    if name not in TABLE:
        raise InputError(no_such("operation", name, TABLE))
    del TABLE[name]
    _spell_out()


def spell(name: str, modules: Iterable[type[nn.Module]] = (), functions: Iterable[str] = ()) -> Operation:
    """An entry with more spellings, for a module or function that behaves like one that is known.

    Raises
    ------
    InputError
        If no entry is called so; names near ones.

    Examples
    --------
    >>> before = TABLE["elementwise"]
    >>> spell("elementwise", functions=["my_activation"]).name, of_function("my_activation").name
    ('elementwise', 'elementwise')
    >>> register(before) is before, of_function("my_activation")
    (True, None)
    """
    if name not in TABLE:
        raise InputError(no_such("operation", name, TABLE))
    entry = TABLE[name]
    return register(replace(entry, modules=(*entry.modules, *modules), functions=entry.functions | set(functions)))


def spelling(node: fx.Node) -> str:
    """The name of the function or method that a step calls, without underscores at its ends.

    Examples
    --------
    >>> import torch
    >>> graph = fx.Graph()
    >>> spelling(graph.call_function(torch.add)), spelling(graph.call_method("relu_"))
    ('add', 'relu')
    """
    name = (node.target if isinstance(node.target, str) else node.target.__name__).split(".")[0]
    if name.startswith("__"):
        return name.strip("_")
    return name.rstrip("_")


def of_module(module: nn.Module) -> Operation | None:
    """The entry of a module; None where it has none.

    Examples
    --------
    >>> of_module(nn.ReLU()).name, of_module(nn.Sequential())
    ('elementwise', None)
    """
    for kind in type(module).__mro__:
        if kind in _BY_MODULE:
            return TABLE[_BY_MODULE[kind]]
    return None


def of_function(name: str) -> Operation | None:
    """The entry of a function or method, by its name without underscores at its ends; None where it has none.

    Examples
    --------
    >>> of_function("matmul").name, of_function("nothing_such")
    ('product', None)
    """
    return TABLE.get(_BY_FUNCTION.get(name, ""))


def of_step(node: fx.Node, modules: Mapping[str, nn.Module]) -> Operation:
    """The entry of a step; the opaque one where the table has none, and for inputs, parameters and the output.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> of_step(graph.call_method("relu"), {}).name, of_step(graph.call_method("nothing_such"), {}).name
    ('elementwise', 'opaque')
    """
    found = None
    if node.op == "call_module":
        found = of_module(modules[str(node.target)])
    elif node.op in ("call_function", "call_method"):
        found = of_function(spelling(node))
    return found or TABLE["opaque"]


def layer_of(module: nn.Module) -> WeightedLayer | None:
    """How the weight of a module joins input to output channels; None for a module that is no convolution or linear layer.

    Examples
    --------
    >>> layer_of(nn.Linear(3, 2)).tokens, layer_of(nn.ReLU())
    (True, None)
    """
    entry = of_module(module)
    return None if entry is None or entry.layer is None else entry.layer(module)


def inherits_forward(module: nn.Module) -> bool:
    """Whether a module has an entry and runs the forward pass of the type that the entry is for, not one of its own.

    Examples
    --------
    >>> class Padded(nn.Conv2d):
    ...     def forward(self, input):
    ...         return super().forward(nn.functional.pad(input, (1, 1)))
    >>> inherits_forward(nn.Conv2d(1, 1, 1)), inherits_forward(Padded(1, 1, 1))
    (True, False)
    """
    kind = type_with_entry(module)
    return kind is not None and type(module).forward is kind.forward


def type_with_entry(module: nn.Module) -> type[nn.Module] | None:
    """The type of a module, or the nearest one it inherits from, that has an entry; None where none has.

    Examples
    --------
    >>> type_with_entry(type("Named", (nn.Linear,), {})(2, 2)).__name__, type_with_entry(nn.Module())
    ('Linear', None)
    """
    return next((kind for kind in type(module).__mro__ if kind in _BY_MODULE), None)


def has_separate_kernels(module: nn.Module) -> bool:
    """Whether a module's kernels can be told apart: a linear layer or a two-dimensional convolution as its entry describes it.

    Examples
    --------
    >>> has_separate_kernels(nn.Conv2d(1, 1, 1)), has_separate_kernels(nn.Conv1d(1, 1, 1))
    (True, False)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022: a kernel is a 2-D slice W[o,i] of a convolution, or one weight of a linear layer.
    """
    layer = layer_of(module)
    return layer is not None and not layer.transposed and len(layer.kernel) in (0, 2) and inherits_forward(module)


def keep_channels(module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Cut the parameters and buffers of a layer, or of a step that has one number a channel, to some channels, in place.

    Parameters
    ----------
    module
        A module with an entry in the table.
    inputs, outputs
        Which channels stay, bool (channels,) each; where a layer has groups, `outputs` says which groups.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Conv2d(3, 4, 1)
    >>> keep_channels(layer, torch.tensor([True, False, True]), torch.tensor([True, True, True, False]))
    >>> layer
    Conv2d(2, 3, kernel_size=(1, 1), stride=(1, 1))
    """
    entry, layer = of_module(module), layer_of(module)
    axes = {} if layer is None else {"weight": layer.out_axis if layer.groups == 1 else 0}
    for held in (module._parameters, module._buffers):
        for name, old in held.items():
            axis = axes.get(name, 0)
            if old is not None and old.dim() and old.shape[axis] == len(outputs):
                held[name] = _kept(old, axis, outputs)
    if layer is not None and layer.groups == 1:
        module._parameters["weight"] = _kept(module._parameters["weight"], 1 - layer.out_axis, inputs)
    if entry is not None and entry.adjust is not None:
        entry.adjust(module, outputs)


def _kept(old: Any, axis: int, marks: Tensor) -> Any:
    new = old.detach().index_select(axis, marks.nonzero().flatten().to(old.device)).contiguous()
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
