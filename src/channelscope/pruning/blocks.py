"""Residual blocks that can be left out whole: a block becomes its shortcut."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from channelscope.errors import MismatchError
from channelscope.network import nest
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import of_step
from channelscope.network.removal.groups import Groups
from channelscope.network.tracing.recording import distance
from channelscope.subset import Subset

EXACT = 1e-3
"""Largest relative difference between the network without blocks and its recorded steps without them; in float32 both round alike."""


@dataclass(frozen=True)
class Block:
    """A branch that is added to its own input and can be left out: the sum becomes the shortcut."""

    name: str
    """path of the module that adds the two"""
    sum_step: str
    """step of the sum"""
    shortcut: str
    """step of the other term, from which the branch starts"""
    steps: tuple[str, ...]
    """the steps that nothing needs without the branch"""
    groups: tuple[int, ...]
    """the groups of channels inside the branch alone"""


def blocks_of(found: Groups) -> list[Block]:
    """The residual blocks of a network that can be left out, in execution order.

    A block is a sum of two values of one shape of which one, the shortcut, leads to the other, the branch; the branch is used
    nowhere else and has channels of its own. Sums in the forward pass of the network itself are left alone: only a module can be
    replaced.

    Parameters
    ----------
    found
        The network's `groups`.

    Returns
    -------
    list of Block
        The blocks.

    Examples
    --------
    >>> from channelscope import zoo
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(zoo.build("resnet20", classes=10, channels=1, image_size=8).eval(), torch.zeros(1, 1, 8, 8))
    >>> [block.name for block in blocks_of(found)][:3], len(blocks_of(found)), len(blocks_of(found)[0].groups)
    (['layer1.0', 'layer1.1', 'layer1.2'], 7, 16)
    """
    graph, owner = found.graph, found.labeled.owner
    if [node.name for node in graph.steps.nodes] != [node.name for node in found.labeled.steps.nodes]:
        return []
    made = []
    for node in graph.steps.nodes:
        if node.op == "output" or of_step(node, graph.modules).arithmetic != "sum" or not owner.get(node.name):
            continue
        for branch, shortcut in _terms(graph, node):
            dead = _unneeded(graph.steps, {node.name: shortcut.name})
            inner = _inner_groups(found, dead)
            if branch.name in dead and inner and _is_replaceable(found, owner[node.name], dead):
                made.append(Block(owner[node.name], node.name, shortcut.name, tuple(dead), inner))
    return made


def _terms(graph: Graph, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Branch and shortcut of a sum: the second leads to the first."""
    terms = [part for part in node.args[:2] if isinstance(part, fx.Node)]
    if len(terms) != 2 or node.kwargs or len({graph.shapes.get(each.name) for each in (*terms, node)}) != 1:
        return
    for branch, shortcut in (terms, terms[::-1]):
        seen, ahead = set(), [branch]
        while ahead:
            step = ahead.pop()
            if step not in seen:
                seen.add(step)
                ahead += step.all_input_nodes
        start = shortcut
        while start.op == "call_module" and of_step(start, graph.modules).identity and len(start.all_input_nodes) == 1:
            start = start.all_input_nodes[0]
        if start in seen and shortcut is not branch:
            yield branch, shortcut


def _unneeded(steps: fx.Graph, replaced: Mapping[str, str]) -> dict[str, None]:
    """Steps that nothing needs where some values are replaced by others, in execution order."""
    by_name = {node.name: node for node in steps.nodes}
    needed: set[str] = set()
    ahead = [node for node in steps.nodes if node.op in ("output", "placeholder")]
    while ahead:
        node = ahead.pop()
        node = by_name[resolved(node.name, replaced)]
        if node.name not in needed:
            needed.add(node.name)
            ahead += node.all_input_nodes
    return {node.name: None for node in steps.nodes if node.name not in needed}


def resolved(name: str, replaced: Mapping[str, str]) -> str:
    """The step that stands in the place of another, if one does.

    Examples
    --------
    >>> resolved("add_2", {"add_2": "add_1", "add_1": "relu"}), resolved("relu", {"add_2": "add_1"})
    ('relu', 'relu')
    """
    while name in replaced:
        name = replaced[name]
    return name


def _inner_groups(found: Groups, dead: Mapping[str, None]) -> tuple[int, ...]:
    """Groups all of whose channels come from layers in the branch."""
    inside = {layer.name for layer in found.layers if layer.node in dead}
    return tuple(index for index, group in enumerate(found.members) if inside.issuperset(group.sites))


def _inside(found: Groups, path: str) -> list[fx.Node]:
    """The steps of a module."""
    steps = [node for node in found.graph.steps.nodes if node.op not in ("output", "placeholder")]
    return [node for node in steps if f"{found.labeled.owner.get(node.name, '')}.".startswith(f"{path}.")]


def _is_replaceable(found: Groups, path: str, dead: Mapping[str, None]) -> bool:
    """Whether a module takes one tensor, returns one, and its steps can be written down as they are."""
    inside = _inside(found, path)
    names = {node.name for node in inside}
    given = {parent for node in inside for parent in node.all_input_nodes if parent.name not in names}
    returned = [node for node in inside if any(user.name not in names for user in node.users)]
    plain = all(not node.meta.get(key) for node in inside for key in ("no_grad", "autocast", "writes"))
    own = all(str(node.target).startswith(f"{path}.") for node in inside if node.op in ("call_module", "get_attr"))
    return plain and own and len(given) == len(returned) == 1 and names.issuperset(dead)


def without_blocks(found: Groups, blocks: Sequence[Block]) -> nn.Module:
    """A copy of the network in which blocks are their shortcuts; the network stays as it is.

    Each module that holds such a block becomes its recorded steps without it; parameters keep their names. The copy is
    compared with the recorded steps on noise.

    Parameters
    ----------
    found
        The network's `groups`.
    blocks
        Some of `blocks_of(found)`.

    Returns
    -------
    nn.Module
        The copy.

    Raises
    ------
    MismatchError
        If the copy computes something else.

    Examples
    --------
    >>> from channelscope import zoo
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(zoo.build("resnet20", classes=10, channels=1, image_size=8).eval(), torch.zeros(1, 1, 8, 8))
    >>> small = without_blocks(found, blocks_of(found)[:2])
    >>> [len(list(block.parameters())) for block in small.layer1]
    [0, 0, 6]
    """
    model = copy.deepcopy(found.graph.body)
    replaced = {block.sum_step: block.shortcut for block in blocks}
    for path in dict.fromkeys(block.name for block in blocks):
        model.set_submodule(path, _rewritten(found, model.get_submodule(path), path, replaced))
    graph = graph_without(found, replaced, model)
    with torch.no_grad(), eval_mode(model):
        difference, where = distance(nest.tensors(model(*found.example)), nest.tensors(graph.run(*found.example, out_of_place=True)))
    if not difference <= EXACT:
        raise MismatchError(
            f"the network without {', '.join(block.name for block in blocks)} is {difference:.2g} away from its steps {where}"
        )
    return model


def _rewritten(found: Groups, module: nn.Module, path: str, replaced: Mapping[str, str]) -> nn.Module:
    """A module as its recorded steps, with some sums replaced."""
    nodes, inside = found.graph.nodes, _inside(found, path)
    names = {node.name for node in inside}
    (given,) = {parent for node in inside for parent in node.all_input_nodes if parent.name not in names}
    (returned,) = [node for node in inside if any(user.name not in names for user in node.users)]
    steps = fx.Graph()
    made = {given.name: steps.placeholder("x")}
    wanted = nodes[resolved(returned.name, replaced)]
    dead = _unneeded(found.graph.steps, replaced)
    for node in inside:
        if node.name not in dead:
            copied = steps.node_copy(node, lambda parent: made[resolved(parent.name, replaced)])
            if node.op in ("call_module", "get_attr"):
                copied.target = str(node.target).removeprefix(f"{path}.")
            made[node.name] = copied
    steps.output(made[wanted.name])
    rewritten = fx.GraphModule(module, steps, type(module).__name__)
    rewritten.train(module.training)
    return rewritten


def graph_without(found: Groups, replaced: Mapping[str, str], model: nn.Module) -> Graph:
    """The recorded steps of the network with some values replaced by others, under their names, on another network's modules.

    Parameters
    ----------
    found
        The original's `groups`.
    replaced
        Step → the step that takes its place.
    model
        Network with the modules that the steps call.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> [node.name for node in graph_without(found, {"_1": "_0"}, found.graph.model).steps.nodes]
    ['input_1', '_0', '_2', '_3', 'output']
    """
    original = found.graph
    dead = _unneeded(original.steps, replaced)
    steps = fx.Graph()
    made: dict[str, fx.Node] = {}
    for node in original.steps.nodes:
        if node.name not in dead:
            made[node.name] = steps.node_copy(node, lambda parent: made[resolved(parent.name, replaced)])
    return Graph(model, steps, original.shapes, original.constants, original.output)


BLOCKS = "_channelscope_blocks"
"""Attribute of a smaller network with the sums that became their shortcuts, by step of the original."""


def left_out(model: nn.Module) -> dict[str, str]:
    """The blocks that `shrink` left out of a network: step of the sum → step of its shortcut; empty where there is none.

    Examples
    --------
    >>> left_out(nn.Flatten())
    {}
    """
    return vars(model).get(BLOCKS, {})


def vanished_blocks(found: Groups, kept: np.ndarray) -> list[Block]:
    """The blocks none of whose own groups are kept.

    Parameters
    ----------
    found
        The network's `groups`.
    kept
        Which groups stay, bool (groups,).

    Examples
    --------
    >>> from channelscope import zoo
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(zoo.build("resnet20", classes=10, channels=1, image_size=8).eval(), torch.zeros(1, 1, 8, 8))
    >>> kept = np.ones(len(found), dtype=bool)
    >>> kept[list(blocks_of(found)[1].groups)] = False
    >>> [block.name for block in vanished_blocks(found, kept)]
    ['layer1.1']
    """
    if all(kept[found.group_of[layer.outputs.numpy()]].any() for layer in found.layers if _own(found, layer.outputs)):
        return []
    return [block for block in blocks_of(found) if not kept[list(block.groups)].any()]


def _own(found: Groups, numbers: Tensor) -> bool:
    """Whether all of some channels can be removed."""
    return bool(len(numbers)) and bool((numbers >= 0).all()) and bool((found.group_of[numbers.numpy()] >= 0).all())


def restricted(kept: Subset, found: Groups) -> Subset:
    """A subset of the sites that a network without some blocks still has.

    Parameters
    ----------
    kept
        Subset of the original.
    found
        The `groups` of the network without the blocks.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> restricted(found.to_subset(np.array([True, False, True, True])), found)["0"].tolist()
    [True, False, True, True]
    """
    marks = {site.name: kept[site.name] for site in found.sites if site.name in kept}
    return Subset(marks, found.sites, kept.input_shape, groups=found)


def widened(kept: np.ndarray, small: Groups, found: Groups, blocks: Iterable[Block]) -> Subset:
    """The subset of the original for the groups that are kept of the network without some blocks.

    Parameters
    ----------
    kept
        Which groups stay, bool (groups of `small`,).
    small
        The `groups` of the network without the blocks.
    found
        The `groups` of the original.
    blocks
        The blocks that are left out.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> widened(np.array([True, False, True, True]), found, found, [])["0"].tolist()
    [True, False, True, True]
    """
    left = small.to_subset(kept)
    stays = np.ones(len(found), dtype=bool)
    for index, group in enumerate(found.members):
        stays[index] = all(bool(left[name][channel]) for name, channel in group.members if name in left)
    for block in blocks:
        stays[list(block.groups)] = False
    return found.to_subset(stays)
