"""PixelNetwork: a network whose input is pixels of 0 to 1, run up to one layer at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from channelscope.discarding.jacobian import FeatureFunction
from channelscope.errors import InputError, SiteError, no_such
from channelscope.network.graph import Graph, trace
from channelscope.types import Float, Tensor

N_SPACED_LAYERS = 4
"""layers looked at unless said otherwise"""


@dataclass(frozen=True)
class LayerOutput:
    """A place in the forward pass."""

    name: str
    """module path (its output), or the name of a step of the traced pass"""
    step: str
    """the step whose value is the feature"""
    depth: int
    """position of the step in execution order"""


class PixelNetwork:
    """A network whose inputs are pixels of 0 to 1: the normalization is part of it, so that networks can be compared."""

    def __init__(self, model: nn.Module, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], device: str = "cpu"):
        """Trace the network on a blank image of that shape (C, H, W); mean and std normalize its pixels."""
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        self.shape = tuple(shape)
        self.graph: Graph = trace(model, torch.zeros(1, *shape, device=device))
        self.places = {node.name: place for place, node in enumerate(self.graph.steps.nodes)}

    def denormalize(self, images: Float[Tensor, "images C H W"]) -> Float[Tensor, "images C H W"]:
        """Normalized images back in pixels of 0 to 1."""
        return images.to(self.mean.device) * self.std + self.mean

    def layer_value(self, layer: LayerOutput) -> FeatureFunction:
        """The network from pixels to a layer."""
        return lambda pixels: self.graph.run((pixels - self.mean) / self.std, outputs=layer.step, out_of_place=True)

    def layer_values(self, pixels: Float[Tensor, "images C H W"], layer_outputs: Sequence[LayerOutput]) -> tuple[Tensor, ...]:
        """The values of several layers in one pass, without gradients."""
        with torch.no_grad():
            return self.graph.run((pixels - self.mean) / self.std, outputs=tuple(layer.step for layer in layer_outputs), out_of_place=True)

    def layers(self, names: Iterable[str] = ()) -> list[LayerOutput]:
        """Layers by module path or step name, in execution order; without names, some evenly spaced ones.

        Raises
        ------
        SiteError
            For a name that is neither, with near matches.
        InputError
            For one named twice.
        """
        names = list(names)
        if not names:
            return self._spaced()
        found = [self._layer(name) for name in names]
        if len({layer.step for layer in found}) < len(found):
            raise InputError(f"expected different layers, received two that are the same place: {', '.join(names)}")
        return sorted(found, key=lambda layer: layer.depth)

    def _layer(self, name: str) -> LayerOutput:
        steps = [node for node in self.graph.steps.nodes if name == node.name or name in _module_outputs(node)]
        if not steps or steps[-1].name not in self.graph.shapes:
            known = {path for node in self.graph.steps.nodes for path in _module_outputs(node)} | set(self.graph.shapes)
            raise SiteError(no_such("layer", name, sorted(known)))
        return LayerOutput(name, steps[-1].name, self.places[steps[-1].name])

    def _spaced(self) -> list[LayerOutput]:
        """Evenly spaced places that everything passes through, from the first maps to the last."""
        nodes = list(self.graph.steps.nodes)
        last = {node.name: max((self.places[user.name] for user in node.users), default=0) for node in nodes}
        reach, narrow = 0, []
        for place, node in enumerate(nodes):
            if reach <= place and node.op not in ("placeholder", "output", "get_attr") and len(self.graph.shapes.get(node.name, ())) == 4:
                narrow.append(node)
            reach = max(reach, last[node.name] if node.op != "get_attr" and node.name in self.graph.shapes else 0)
        if not narrow:
            raise SiteError("no step of the network is passed by everything: name the layers")
        chosen = {round(part * (len(narrow) - 1) / (N_SPACED_LAYERS - 1)) for part in range(N_SPACED_LAYERS)}
        return [LayerOutput(self._name(narrow[place]), narrow[place].name, self.places[narrow[place].name]) for place in sorted(chosen)]

    def _name(self, node: fx.Node) -> str:
        """The longest module path whose output this step is, or the step's own name."""
        for path in sorted(_module_outputs(node), key=len):
            if self._layer(path).step == node.name:
                return path
        return node.name


def _module_outputs(node: fx.Node) -> list[str]:
    """Paths of the modules that a step is part of."""
    return [path for path in (str(part) for part in node.meta.get("nn_module_stack", {})) if path]
