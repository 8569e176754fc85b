"""Circuit: the kernels that are kept, among those a feature depends on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from channelscope.circuits.feature import Feature, LocatedFeature
from channelscope.display import Facts
from channelscope.errors import MismatchError, check_choice
from channelscope.network.channel_graph import KernelMask
from channelscope.subset import Subset


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(Subset):
    """A `Subset` over the kernels a feature depends on: `&`, `|`, `~` and `.fraction` stay among these.

    `~circuit` is what the circuit leaves out, so `silence(model, ~circuit)` runs the circuit and `silence(model, circuit)`
    the network without it; kernels the feature does not depend on are never marked.
    """

    relevant: KernelMask = field(default_factory=dict)
    """layer → bool (outputs, inputs per group): kernels on a path from the images to the feature"""
    feature: Feature | None = None
    """what the circuit computes"""

    def __post_init__(self) -> None:
        """Refuse marks on kernels the feature does not depend on."""
        super().__post_init__()
        if set(self.relevant) != set(self.masks):
            raise MismatchError("a circuit needs marks for exactly the layers its feature depends on")
        object.__setattr__(self, "relevant", MappingProxyType(dict(self.relevant)))
        for layer, marks in self.masks.items():
            stray = int((marks & ~self.relevant[layer]).sum())
            if stray:
                raise MismatchError(f"circuit at {layer}: {stray} marked kernels do not reach the feature")

    @classmethod
    def of_feature(cls, feature: LocatedFeature, marks: KernelMask) -> "Circuit":
        """The circuit of a feature with the marked kernels; marks on kernels that the feature does not depend on are dropped."""
        return cls(
            {layer: marks[layer] & relevant for layer, relevant in feature.relevant.items()},
            relevant=feature.relevant,
            feature=feature.feature,
        )

    @classmethod
    def full(cls, feature: LocatedFeature) -> "Circuit":
        """The circuit of all kernels that the feature depends on."""
        return cls.of_feature(feature, feature.relevant)

    @property
    def total(self) -> int:
        """Number of relevant kernels."""
        return sum(int(marks.sum()) for marks in self.relevant.values())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are rebuilt from the plain dictionary."""
        return Circuit.from_dict, (self.as_dict(),)

    def facts(self) -> Facts:
        """Number of kernels, of the whole circuit and of each layer."""
        places = ((name, f"{int(marks.sum()):,} of {int(self.relevant[name].sum()):,}") for name, marks in self.masks.items())
        return f"Circuit({self.count} of {self.total} kernels of {self.feature} at {len(self)} layers)", places

    def _with(self, marks: Mapping[str, Tensor]) -> "Circuit":
        return Circuit(
            {layer: kernels & self.relevant[layer] for layer, kernels in marks.items()}, relevant=self.relevant, feature=self.feature
        )

    def _merge(self, other: Subset, rule: Callable[[Tensor, Tensor], Tensor]) -> "Circuit":
        merged = super()._merge(other, rule)
        if isinstance(other, Circuit) and not Subset(self.relevant) == Subset(other.relevant):
            raise MismatchError(
                f"expected circuits that depend on the same kernels, received circuits of {self.feature} and {other.feature}: "
                "unite their marks as plain subsets, Subset(one.marks) | Subset(other.marks)"
            )
        return self._with(merged.masks)

    def iou(self, other: "Circuit") -> dict[str, float]:
        """Intersection over union per layer, and of all kernels under ''; nan where neither has a kernel.

        The two may be circuits of different features.
        """
        mine, theirs = Subset(self.masks), Subset(other.masks)
        both, either = mine & theirs, mine | theirs
        shares = {"": both.count / either.count if either.count else float("nan")}
        for layer in self:
            union = int(either[layer].sum())
            shares[layer] = int(both[layer].sum()) / union if union else float("nan")
        return shares

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {
            "feature": self.feature.as_dict() if self.feature else None,
            "kernels": self.count,
            "relevant_kernels": self.total,
            "circuit": Subset(self.masks).as_dict()["marks"],
            "relevant": {layer: _rows(marks) for layer, marks in self.relevant.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Circuit":
        """Inverse of `as_dict`."""
        marks = Subset.from_dict({"marks": data["circuit"], "sites": [], "input_shape": []}).masks
        relevant = {layer: _marks(rows, tuple(marks[layer].shape)) for layer, rows in data["relevant"].items()}
        return cls(marks, relevant=relevant, feature=Feature.from_dict(data["feature"]) if data["feature"] else None)


def _rows(marks: Tensor) -> dict[str, Any]:
    """Marks as row and column indices if they are the outer product of both, otherwise as flat indices."""
    rows, columns = marks.any(1), marks.any(0)
    if torch.equal(marks, rows[:, None] & columns):
        return {"outputs": rows.nonzero().flatten().tolist(), "inputs": columns.nonzero().flatten().tolist()}
    return {"marked": marks.flatten().nonzero().flatten().tolist()}


def _marks(data: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    marks = torch.zeros(shape, dtype=torch.bool)
    if "marked" in data:
        marks.view(-1)[torch.tensor(data["marked"], dtype=torch.long)] = True
    else:
        marks[torch.tensor(data["outputs"])[:, None], torch.tensor(data["inputs"])] = True
    return marks


def remove_dead_ends(circuit: Circuit, feature: LocatedFeature, rule: str = "backward") -> Circuit:
    """The circuit without kernels that lead nowhere.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    feature
        The feature that the circuit computes.
    rule
        `backward` drops kernels from which the feature cannot be reached: exact, outputs are unchanged to the bit.
        `full` also drops kernels that no image reaches, as published: not exact, because act(bias) is lost.
        `none` returns the circuit as it is.

    Returns
    -------
    Circuit
        A subset of `circuit`.

    Raises
    ------
    InputError
        For another rule.

    Examples
    --------
    Without the second layer nothing reaches the output.

    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> first_layer = Circuit.of_feature(feature, {"conv": feature.relevant["conv"], "fc": feature.relevant["fc"] & False})
    >>> first_layer, remove_dead_ends(first_layer, feature)
    (Circuit(25 of 30 kernels of logit:1 at 2 layers), Circuit(0 of 30 kernels of logit:1 at 2 layers))

    References
    ----------
    Hamblin, Konkle, Alvarez 2022.
    """
    check_choice("rule for dead ends", rule, ("backward", "full", "none"))
    if rule == "none":
        return circuit
    kernel_graph = feature.channel_graph
    marks = {layer: circuit.masks.get(layer, torch.zeros_like(every)) for layer, every in kernel_graph.full_mask().items()}
    alive = (
        kernel_graph.leading_to(marks, feature.feature_nodes)
        if rule == "backward"
        else kernel_graph.on_paths_to(marks, feature.feature_nodes)
    )
    return Circuit.of_feature(feature, alive)


def union(circuits: "list[Circuit]") -> Circuit:
    """The circuit of the kernels that are in any of the circuits of one feature.

    Parameters
    ----------
    circuits
        One or more circuits of one feature.

    Returns
    -------
    Circuit
        Of the first circuit's feature.

    Raises
    ------
    MismatchError
        For circuits of features that depend on different kernels.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> full = Circuit.full(feature)
    >>> union([full & ~full, full])
    Circuit(30 of 30 kernels of logit:1 at 2 layers)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (unions of sub-feature circuits).
    """
    return reduce(lambda one, other: one._with((one | other).masks), circuits)
