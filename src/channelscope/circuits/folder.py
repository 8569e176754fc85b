"""A circuit on disk: tensors in safetensors, everything else in JSON; read back without the network's code."""

import inspect
import json
import math
import operator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.nn import functional as F

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.extraction import StandaloneCircuit, torch_nn_class
from channelscope.errors import FormatError, InputError
from channelscope.network.operations import of_function
from channelscope.storage import atomic_file

FORMAT = 1

RECIPE, TENSORS = "circuit.json", "circuit.safetensors"

NAMESPACES = {"operator": operator, "math": math, "torch": torch, "torch.nn.functional": F}

SIZES = {"size", "numel"}
"""Tensor methods that a recipe may call besides functions and methods with an entry in the table of operations."""

PROPERTIES = {"shape", "device", "dtype", "ndim"}


def save_circuit(folder: Path, circuit: Circuit, small: StandaloneCircuit, about: dict[str, Any] | None = None) -> None:
    """Write the circuit and its stand-alone module into a folder, as circuit.json and circuit.safetensors.

    Parameters
    ----------
    folder
        An existing folder.
    circuit
        Kernels that are kept.
    small
        The module of `extract_module`.
    about
        Further facts for the reader, such as the hash of the network's weights; plain JSON values.

    Raises
    ------
    InputError
        If a step cannot be written as JSON.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope.circuits import extract_module, locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_circuit(Path(folder), Circuit.full(feature), extract_module(Circuit.full(feature), feature))
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['circuit.json', 'circuit.safetensors']

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (extraction); the file format is this library's.
    """
    recipe = {
        "format": FORMAT,
        "about": about or {},
        "circuit": circuit.as_dict(),
        **recipe_of(small),
        "channels": small.channels,
        "axis": small.axis,
    }
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in small.state_dict().items()}
    with atomic_file(folder / RECIPE) as half, atomic_file(folder / TENSORS) as half_tensors:
        half.write_text(json.dumps(recipe, ensure_ascii=False) + "\n", encoding="utf-8")
        save_file(tensors, half_tensors)


def recipe_of(small: StandaloneCircuit) -> dict[str, Any]:
    """The steps and modules of a circuit's module, as plain JSON values.

    Parameters
    ----------
    small
        The module of `extract_module`.

    Raises
    ------
    InputError
        If a step cannot be written as JSON.

    Examples
    --------
    >>> from channelscope.circuits import extract_module, locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> recipe = recipe_of(extract_module(Circuit.full(feature), feature))
    >>> sorted(recipe["modules"]), recipe["steps"][0]["op"]
    (['act', 'conv', 'fc', 'flatten', 'pool'], 'placeholder')

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (extraction); the file format is this library's.
    """
    calls = [str(node.target) for node in small.body.graph.nodes if node.op == "call_module"]
    return {"modules": {name: _module(name, small.body) for name in calls}, "steps": [_step(node) for node in small.body.graph.nodes]}


def load_circuit(folder: str | Path) -> tuple[Circuit, StandaloneCircuit, dict[str, Any]]:
    """The circuit, its stand-alone module and the further facts of a folder; the network's code is not needed.

    Parameters
    ----------
    folder
        What `save_circuit` wrote.

    Returns
    -------
    tuple[Circuit, StandaloneCircuit, dict[str, Any]]
        The module in evaluation mode, without gradients.

    Raises
    ------
    FormatError
        If the files are missing, damaged, of another format, or call anything but tensor functions.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope.circuits import extract_module, locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_circuit(Path(folder), Circuit.full(feature), extract_module(Circuit.full(feature), feature), {"network": "toy"})
    ...     circuit, module, about = load_circuit(folder)
    >>> circuit, about, torch.allclose(module(toy.batches[0][0]), toy.model(toy.batches[0][0])[:, 1], atol=1e-4)
    (Circuit(30 of 30 kernels of logit:1 at 2 layers), {'network': 'toy'}, True)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (extraction); the file format is this library's.
    """
    folder = Path(folder)
    recipe = _json(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(f"{folder}: expected a circuit ({RECIPE} and {TENSORS}): {error}") from error
    try:
        small = _rebuilt(recipe, tensors)
        return Circuit.from_dict(recipe["circuit"]), small, recipe["about"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"{folder}: {RECIPE} and {TENSORS} do not fit together: {error}") from error


def load_mask(folder: Path) -> Circuit:
    """The kernels of a circuit on disk, without its module.

    Parameters
    ----------
    folder
        What `save_circuit` wrote.

    Returns
    -------
    Circuit
        Kernels that are kept.

    Raises
    ------
    FormatError
        If the file is missing, damaged or of another format.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope.circuits import extract_module, locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_circuit(Path(folder), Circuit.full(feature), extract_module(Circuit.full(feature), feature))
    ...     load_mask(Path(folder))
    Circuit(5 of 5 kernels of conv:2 at 1 layers)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (extraction); the file format is this library's.
    """
    try:
        return Circuit.from_dict(_json(folder)["circuit"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise FormatError(f"{folder / RECIPE} is damaged: {error}") from error


def _json(folder: Path) -> dict[str, Any]:
    try:
        recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder}: expected a circuit ({RECIPE} and {TENSORS}): {error}") from error
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise FormatError(f"{folder}: expected format {FORMAT}, found {recipe.get('format') if isinstance(recipe, dict) else 'none'}")
    return recipe


def _rebuilt(recipe: dict[str, Any], tensors: dict[str, Tensor]) -> StandaloneCircuit:
    steps = fx.Graph()
    parts: dict[str, Any] = {name: _build_module(name, data) for name, data in recipe["modules"].items()}
    known: dict[str, fx.Node] = {}
    for step in recipe["steps"]:
        args, kwargs = _decoded(step["args"], known), _decoded(step["kwargs"], known)
        if step["op"] == "get_attr":
            parts[step["target"]] = tensors["body." + step["target"]]
        target = _function(step["target"]) if step["op"] == "call_function" else step["target"]
        if step["op"] == "call_method" and not _allowed(step["target"]):
            raise FormatError(f"the recipe calls the method {step['target']}, which no circuit needs")
        if target is getattr and args[1] not in PROPERTIES:
            raise FormatError(f"the recipe reads the attribute {args[1]}, which no circuit needs")
        known[step["name"]] = steps.create_node(step["op"], target, tuple(args), kwargs, step["name"])
    small = StandaloneCircuit(fx.GraphModule(parts, steps, "Circuit"), recipe["channels"], tensors["weights"].tolist(), recipe["axis"])
    small.load_state_dict(tensors)
    return small.eval().requires_grad_(False)


UNSTORED = "which a recipe cannot hold: the circuit can be used where it was found, but not stored"
"""end of refusals to write"""


def _step(node: fx.Node) -> dict[str, Any]:
    target = node.target
    if node.op == "call_function":
        target = _named(target)
    elif node.op == "call_method" and not _allowed(str(target)):
        raise InputError(f"the circuit calls the tensor method {target}, {UNSTORED}")
    return {"name": node.name, "op": node.op, "target": target, "args": _encoded(node.args), "kwargs": _encoded(node.kwargs)}


def _allowed(name: str) -> bool:
    """Whether a recipe may call a function or tensor method of this name; anything else is refused, on writing and on reading."""
    return of_function(name.rstrip("_")) is not None or name in SIZES


def _named(function: Any) -> str:
    if function is getattr:
        return "getattr"
    for space, module in NAMESPACES.items():
        name = function.__name__
        if vars(module).get(name) is function and _allowed(name):
            return f"{space}.{name}"
    raise InputError(f"the circuit calls {function}, {UNSTORED}")


def _function(name: str) -> Any:
    space, _, last = name.rpartition(".")
    if name == "getattr":
        return getattr
    if space not in NAMESPACES or not _allowed(last):
        raise FormatError(f"the recipe calls {name}, which no circuit needs")
    return vars(NAMESPACES[space])[last]


def _encoded(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"step": value.name}
    if isinstance(value, tuple | list):
        return [_encoded(part) for part in value]
    if isinstance(value, dict):
        return {"map": {key: _encoded(part) for key, part in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encoded(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"the circuit passes {value!r} to a step, {UNSTORED}")


def _decoded(value: Any, known: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(part, known) for part in value)
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "step":
        return known[inside]
    if kind == "map":
        return {key: _decoded(part, known) for key, part in inside.items()}
    if kind == "slice":
        return slice(*(_decoded(part, known) for part in inside))
    if kind == "dtype" and isinstance(vars(torch).get(inside), torch.dtype):
        return vars(torch)[inside]
    if kind == "ellipsis":
        return Ellipsis
    raise FormatError(f"the recipe holds a value of kind {kind}, which is not known")


def _module(name: str, body: nn.Module) -> dict[str, Any]:
    """Class and constructor arguments of one module of torch.nn."""
    module = body.get_submodule(name)
    kind = torch_nn_class(module)
    if kind is None:
        raise InputError(f"{name} is a {type(module).__name__}, {UNSTORED}")
    options: dict[str, Any] = {}
    for option in inspect.signature(kind).parameters:
        if option == "bias":
            options[option] = module.bias is not None
        elif option in vars(module) and isinstance(vars(module)[option], bool | int | float | str | tuple | list | None):
            options[option] = vars(module)[option]
    return {"class": kind.__name__, "options": options}


def _build_module(name: str, data: dict[str, Any]) -> nn.Module:
    kind = vars(nn).get(data["class"])
    if not inspect.isclass(kind) or not issubclass(kind, nn.Module):
        raise FormatError(f"the recipe's {name} is a {data['class']}, which torch.nn does not have")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in data["options"].items()}
    return kind(**options)
