"""Relevance maps of other methods, from captum and zennit (an extra), for comparison."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from channelscope.data.torchvision_cpu import load_torchvision
from channelscope.errors import InputError, SiteError
from channelscope.network.module_state import out_of_place
from channelscope.network.operations import of_function
from channelscope.types import Float, Int, Tensor

IN_PLACE = (Tensor.add_, Tensor.__iadd__)
"""functions that add to their first argument in place"""

STEPS = 16
"""number of points on the path of integrated gradients"""

Attribution = Callable[[Float[Tensor, "images C H W"], Int[Tensor, "images"]], Float[Tensor, "images H W"]]
"""normalized images and a class for each → relevance of each pixel for the class"""


def require_extras() -> None:
    """Refuse if captum or zennit (the extra `attribution`) is not installed.

    Raises
    ------
    InputError
        With the command that installs them.

    Examples
    --------
    >>> require_extras()

    References
    ----------
    pyproject.toml, extra `attribution`.
    """
    missing = [name for name in ("captum", "zennit") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"comparisons need {' and '.join(missing)}: pip install 'channelscope[attribution]'")
    load_torchvision()  # zennit imports it


def attributions(model: nn.Module, layer: str) -> dict[str, Attribution]:
    """The methods gradient, integrated gradients, Grad-CAM and LRP for a network, by name.

    Parameters
    ----------
    model
        Network in evaluation mode; in-place activations are switched off during a call and restored.
    layer
        Module at which Grad-CAM is taken.

    Returns
    -------
    dict[str, Attribution]
        Functions from normalized images and a class for each to maps.

    Raises
    ------
    SiteError
        If the layer is no module.
    InputError
        Without captum or zennit.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> methods = attributions(model, "0")
    >>> list(methods), methods["gradcam"](torch.ones(2, 3, 8, 8), torch.tensor([0, 3])).shape
    (['gradient', 'integrated_gradients', 'gradcam', 'lrp'], torch.Size([2, 8, 8]))

    References
    ----------
    Simonyan et al. 2014; Sundararajan et al. 2017; Selvaraju et al. 2017; Montavon et al. 2019 (epsilon-plus-flat).
    """
    require_extras()
    if layer not in dict(model.named_modules()):
        raise SiteError(f"Grad-CAM needs a module, and '{layer}' is a step of the pass: name a module")
    methods = {
        "gradient": lambda images, target: gradient(model, images, target),
        "integrated_gradients": lambda images, target: integrated_gradients(model, images, target),
        "gradcam": lambda images, target: gradcam(model, layer, images, target),
        "lrp": lambda images, target: lrp(model, images, target),
    }
    return {name: _out_of_place(model, method) for name, method in methods.items()}


def gradient(model: nn.Module, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Largest absolute gradient of the class's logit over the colors of each pixel.

    Parameters
    ----------
    model
        Network in evaluation mode.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> weight = model[1].weight.data.copy_(torch.tensor([[2.0, -3.0]]))
    >>> gradient(model, torch.ones(1, 1, 1, 2), torch.tensor([0])).tolist()
    [[[2.0, 3.0]]]

    References
    ----------
    Simonyan et al. 2014, by captum's Saliency.
    """
    from captum.attr import Saliency

    return Saliency(model).attribute(images.clone().requires_grad_(), target=target, abs=True).amax(1).detach()


def integrated_gradients(model: nn.Module, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Absolute integrated gradients from the mean color, summed over the colors of each pixel.

    Parameters
    ----------
    model
        Network in evaluation mode.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    For a linear network they are |weight · pixel|.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> weight = model[1].weight.data.copy_(torch.tensor([[2.0, -3.0]]))
    >>> integrated_gradients(model, torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0])).round(decimals=3).tolist()
    [[[2.0, 6.0]]]

    References
    ----------
    Sundararajan et al. 2017, by captum's IntegratedGradients.
    """
    from captum.attr import IntegratedGradients

    start = images.clone().requires_grad_()
    found = IntegratedGradients(model).attribute(start, target=target, n_steps=STEPS, internal_batch_size=len(images))
    assert isinstance(found, Tensor)
    return found.abs().sum(1).detach()


def gradcam(model: nn.Module, layer: str, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Grad-CAM at a module, interpolated to the size of the image.

    Parameters
    ----------
    model
        Network in evaluation mode.
    layer
        Module whose output is a map.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> weight = model[0].weight.data.fill_(1.0)
    >>> gradcam(model, "0", torch.tensor([[[[4.0, -4.0]]]]), torch.tensor([0])).tolist()  # gradient ½ · map, above zero
    [[[2.0, 0.0]]]

    References
    ----------
    Selvaraju et al. 2017, by captum's LayerGradCam.
    """
    from captum.attr import LayerGradCam

    found = LayerGradCam(model, model.get_submodule(layer)).attribute(images, target=target, relu_attributions=True)
    assert isinstance(found, Tensor)
    return F.interpolate(found, images.shape[2:], mode="bilinear", align_corners=False)[:, 0].detach()


def lrp(model: nn.Module, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Layer-wise relevance propagation, epsilon-plus-flat, batch normalizations merged into their convolutions.

    The relevance of a sum is divided among its two terms in proportion to them, so that residual blocks conserve it.

    Parameters
    ----------
    model
        Network in evaluation mode.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> weight = model[1].weight.data.copy_(torch.tensor([[2.0, 3.0]]))
    >>> relevance = lrp(model, torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([0]))
    >>> round(float(relevance.sum()), 3)  # all of the output's relevance of 1
    1.0

    References
    ----------
    Montavon et al. 2019, by zennit's EpsilonPlusFlat.
    """
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonPlusFlat

    with Gradient(_Summed(model), EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm()])) as attributor:
        logits, relevance = attributor(images.clone().requires_grad_(), lambda out: F.one_hot(target, out.shape[1]).to(out))
    del logits
    return relevance.sum(1).detach()


class _Share(torch.autograd.Function):
    """a + b, whose backward pass divides the relevance in the ratio a : b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        total = a + b
        least = torch.finfo(total.dtype).eps
        whole = relevance[0] / (total + torch.where(total < 0, -least, least))  # finite where a + b is 0
        return a * whole, b * whole


class _Sharing(TorchFunctionMode):
    """In this context, sums of two values of one shape divide their relevance."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if _adds(func) and not kwargs and len(args) == 2 and all(isinstance(each, Tensor) and each.requires_grad for each in args):
            a, b = args
            if a.shape == b.shape:
                return a.copy_(_Share.apply(a.clone(), b)) if func in IN_PLACE else _Share.apply(a, b)
        return func(*args, **(kwargs or {}))


def _adds(function: Callable) -> bool:
    entry = of_function(function.__name__.strip("_"))
    return entry is not None and entry.arithmetic == "sum"


class _Summed(nn.Module):
    """A network whose sums divide their relevance."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with _Sharing():
            return self.model(images)


def _out_of_place(model: nn.Module, method: Attribution) -> Attribution:
    """The method with in-place activations switched off during the call."""

    def run(images: Tensor, target: Tensor) -> Tensor:
        with out_of_place(model), torch.enable_grad():
            return method(images, target)

    return run
