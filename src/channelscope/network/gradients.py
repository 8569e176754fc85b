"""Gradients of the traced forward pass, compared with the network's own."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from channelscope.errors import TracingError
from channelscope.network.module_state import eval_mode
from channelscope.network.sites import Sites

AGREEMENT = 1e-3
"""Relative difference of two gradients up to which they are the same in single precision."""


def check_gradients(found: Sites, images: Tensor) -> None:
    """Compare the gradients of the traced forward pass with those of the network itself, at the output of every site's layer.

    A recorded pass keeps the backward pass of a `torch.autograd.Function` and the effect of `torch.no_grad()`. A hook that
    changes the gradient of a tensor is no step, so gradients are compared here.

    Parameters
    ----------
    found
        The sites of a network whose output is a tensor.
    images
        One or a few images, batch × channels × height × width.

    Raises
    ------
    TracingError
        If the gradients differ at a site, with the last such site and what to do.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> model, images = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), torch.randn(2, 1, 2, 2)
    >>> check_gradients(sites(model, images), images)
    """
    with eval_mode(found.graph.model), torch.enable_grad():
        own, traced = _own(found, images), _traced(found, images)
    for site in reversed(found.found):
        scale = max(float(own[site.name].norm()), float(traced[site.name].norm()))
        if float((own[site.name] - traced[site.name]).norm()) > AGREEMENT * scale:
            raise TracingError(
                f"at {site.name}: expected the network's own gradients, but tracing changes them: behind it lies a hook on a tensor "
                "(register_hook). Leave out what needs gradients (sensitivity=True), or write the hook as a torch.autograd.Function"
            )


def _own(found: Sites, images: Tensor) -> dict[str, Tensor]:
    """Gradients of the network, by hooks on the layers."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        seen[name] = output
        return output.clone()  # what follows may change it in place

    handles = [found.graph.modules[site.name].register_forward_hook(partial(keep, site.name)) for site in found]
    try:
        output = found.graph.model(images.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return _slopes(output, seen)


def _traced(found: Sites, images: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        seen[name] = value

    after = {site.preactivation: partial(keep, site.name) for site in found}
    return _slopes(found.graph.run(images.detach().clone().requires_grad_(), hooks=after, out_of_place=True), seen)


def _slopes(output: Tensor, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of a fixed mixture of the outputs with respect to each value; zero where none flows."""
    mixture = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    slopes = {name: torch.zeros_like(value) for name, value in seen.items()}
    reached = [name for name, value in seen.items() if value.requires_grad] if output.requires_grad else []
    if reached:
        found = torch.autograd.grad((output * mixture).sum(), [seen[name] for name in reached], allow_unused=True)
        slopes |= {name: slope for name, slope in zip(reached, found, strict=True) if slope is not None}
    return slopes
