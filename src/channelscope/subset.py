"""Subset: some channels, or some kernels, of a network as one boolean each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from channelscope.display import Facts, Shown
from channelscope.errors import MismatchError, ShapeError, SiteError, no_such
from channelscope.site import Site


@dataclass(frozen=True, eq=False, repr=False)
class Subset(Shown):
    """One boolean per channel (of every site) or per kernel (one per layer, output and input).

    `a & b`, `a | b` and `~a` act element by element on subsets of the same network. Whether True means kept, removed or silent
    depends on the function that takes the subset. A subset of channels has its sites and the input shape, so that
    `silence(model, subset)` needs nothing else; a subset of kernels, a circuit, has masks alone.

    Examples
    --------
    >>> first = Subset({"conv": torch.tensor([True, False, False])})
    >>> last = Subset({"conv": torch.tensor([False, False, True])})
    >>> (first | last)["conv"].tolist(), (~first).fraction
    ([True, False, True], 0.6666666666666666)
    >>> first
    Subset(1 of 3 channels at 1 layers)
    """

    masks: Mapping[str, Tensor]
    """site or layer name → bool (channels,) or bool (outputs, inputs per group)"""
    sites: tuple[Site, ...] = ()
    """the sites of the marks in execution order; empty for kernels"""
    input_shape: tuple[int, ...] = ()
    """shape of one input image (C, H, W); empty for kernels"""
    groups: Any = field(default=None, repr=False, kw_only=True)
    """the network's `Groups` where the subset was made of them, so that silencing and shrinking need not trace the network again;
    neither compared nor saved nor copied"""

    def __post_init__(self) -> None:
        """Refuse marks that are not booleans, or do not match the sites."""
        dims = {marks.dim() for marks in self.masks.values()}
        if any(marks.dtype != torch.bool for marks in self.masks.values()) or len(dims) > 1 or not dims <= {1, 2}:
            raise ShapeError("a subset needs bool (channels,) for every site, or bool (outputs, inputs) for every layer, not a mixture")
        if self.sites and set(self.masks) != {site.name for site in self.sites}:
            missing = {site.name for site in self.sites} ^ set(self.masks)
            raise ShapeError(f"a subset needs marks for exactly its sites; they differ in {', '.join(sorted(missing))}")
        for site in self.sites:
            if tuple(self.masks[site.name].shape) != (site.channels,):
                received = tuple(self.masks[site.name].shape)
                raise ShapeError(f"subset at {site.name}: expected {site.channels} channels, received shape {received}")
        object.__setattr__(self, "masks", MappingProxyType(dict(self.masks)))

    @classmethod
    def everything(cls, sites: tuple[Site, ...], input_shape: tuple[int, ...]) -> "Subset":
        """Every channel of the given sites; `~Subset.everything(…)` is the empty subset."""
        return cls({site.name: torch.ones(site.channels, dtype=torch.bool) for site in sites}, tuple(sites), tuple(input_shape))

    @property
    def unit(self) -> Literal["channels", "kernels"]:
        """Whether the booleans stand for channels or kernels."""
        return "kernels" if any(marks.dim() == 2 for marks in self.masks.values()) else "channels"

    @property
    def count(self) -> int:
        """Number of marked channels or kernels."""
        return sum(int(marks.sum()) for marks in self.masks.values())

    @property
    def total(self) -> int:
        """Number of channels or kernels, marked or not."""
        return sum(marks.numel() for marks in self.masks.values())

    @property
    def fraction(self) -> float:
        """Marked over total; nan for a subset without channels."""
        return self.count / self.total if self.total else float("nan")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles of plain marks, which are made anew."""
        values = {each.name: vars(self)[each.name] for each in fields(self) if each.name != "groups"}
        return _made, (type(self), {name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in values.items()})

    def __getitem__(self, name: str) -> Tensor:
        """Marks of one site or layer.

        Raises
        ------
        SiteError
            For a name that has none, with the nearest names.
        """
        if name not in self.masks:
            raise SiteError(no_such("site" if self.sites else "layer", name, self.masks))
        return self.masks[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the sites or layers."""
        return iter(self.masks)

    def __len__(self) -> int:
        """Number of sites or layers."""
        return len(self.masks)

    def __contains__(self, name: object) -> bool:
        """Whether there are marks for the site or layer."""
        return name in self.masks

    def __invert__(self) -> "Subset":
        """The complement."""
        return self._with({name: ~marks for name, marks in self.masks.items()})

    def __and__(self, other: "Subset") -> "Subset":
        """Marked in both."""
        return self._merge(other, torch.logical_and)

    def __or__(self, other: "Subset") -> "Subset":
        """Marked in either."""
        return self._merge(other, torch.logical_or)

    def __eq__(self, other: object) -> bool:
        """The same marks on the same sites."""
        if not isinstance(other, Subset):
            return NotImplemented
        same = set(self.masks) == set(other.masks) and (self.sites, self.input_shape) == (other.sites, other.input_shape)
        return same and all(torch.equal(marks.cpu(), other.masks[name].cpu()) for name, marks in self.masks.items())

    __hash__ = None  # type: ignore[assignment]

    def plot(self, layers: list[str] | None = None, title: str | None = None) -> Any:
        """Axes with the fraction of each layer's channels, or kernels, that is marked; see `channelscope.plot`."""
        from channelscope.drawing import plot

        return plot(self, layers=layers, title=title)

    def facts(self) -> Facts:
        """Counts, not tensors."""
        places = ((name, f"{int(marks.sum()):,} of {marks.numel():,}") for name, marks in self.masks.items())
        return f"Subset({self.count:,} of {self.total:,} {self.unit} at {len(self)} {'sites' if self.sites else 'layers'})", places

    def __repr__(self) -> str:
        """The counts of all sites or layers together."""
        return self.facts()[0]

    def _with(self, marks: Mapping[str, Tensor]) -> "Subset":
        return Subset(marks, self.sites, self.input_shape, groups=self.groups)

    def _merge(self, other: "Subset", rule: Callable[[Tensor, Tensor], Tensor]) -> "Subset":
        shapes = [{name: tuple(marks.shape) for name, marks in subset.masks.items()} for subset in (self, other)]
        if shapes[0] != shapes[1]:
            differ = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
            raise MismatchError(f"the two subsets are not of the same network: they differ in the shape of {', '.join(differ)}")
        return self._with({name: rule(marks, other.masks[name].to(marks.device)) for name, marks in self.masks.items()})

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON: each place's shape and the flat indices of its marks."""
        marks = {
            name: {"shape": list(marks.shape), "marked": marks.flatten().nonzero().flatten().tolist()} for name, marks in self.masks.items()
        }
        return {"marks": marks, "sites": [site.as_dict() for site in self.sites], "input_shape": list(self.input_shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Subset":
        """Inverse of `as_dict`."""
        marks = {}
        for name, entry in data["marks"].items():
            flat = torch.zeros(tuple(entry["shape"]), dtype=torch.bool).flatten()
            flat[torch.tensor(entry["marked"], dtype=torch.long)] = True
            marks[name] = flat.view(tuple(entry["shape"]))
        return cls(marks, tuple(Site.from_dict(site) for site in data["sites"]), tuple(data["input_shape"]))


def _made(kind: type[Subset], values: Mapping[str, Any]) -> Subset:
    return kind(**values)
