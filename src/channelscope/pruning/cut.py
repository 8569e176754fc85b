"""From a ranking to the channels kept, at the same cost for every score, and the smaller dense network that has only these."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Literal, Protocol

import numpy as np
from torch import Tensor, nn

from channelscope.errors import BudgetError, InputError, MismatchError, check_choice
from channelscope.network.cost import MacCounter
from channelscope.network.edits import known_groups
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.comparison import check_same, kept_ids
from channelscope.network.removal.groups import Groups, groups
from channelscope.network.removal.narrowing import narrow_pair
from channelscope.network.tracing.recording import unwrapped
from channelscope.pruning.blocks import BLOCKS, Block, restricted, vanished_blocks, without_blocks
from channelscope.pruning.calibration import rechunked
from channelscope.ranking import Ranking
from channelscope.subset import Subset

Allocation = Literal["global", "uniform"] | Ranking

Normalize = Literal["mean", "none", "zscore"]

Reduce = Literal["mean", "sum", "max"]


def cut(
    ranking: Ranking,
    model: nn.Module | Groups,
    *,
    macs: float = 0.5,
    allocation: Allocation = "global",
    normalize: Normalize | None = None,
    reduce: Reduce = "mean",
    cap: float = 0.95,
    closest: bool = False,
) -> Subset:
    """The channels to keep so that the network costs at most a fraction `macs` of its multiply-adds.

    Multiply-adds count as executed: those of attention products and of modules that cannot be followed too, which stay. Groups are
    removed in the order of their scores until the budget holds; then the next-ranked removed groups that still fit come back. What
    is kept is within one cheapest removed group of the budget, from below. Groups whose channels are all silent (nan) go first; inf
    is the extreme it is. The protocol of comparison is in docs/how-to/pruning.md.

    Parameters
    ----------
    ranking
        One number per channel.
    model
        The network, or its `groups` when several scores are cut.
    macs
        Fraction of the network's multiply-adds to keep, above 0 and at most 1.
    allocation
        global: one threshold over scores normalized within their layers; uniform: the same fraction of every layer; another
        ranking: as many channels in each layer as that one keeps globally, chosen by this one; with a budget of time or widths in
        multiples too.
    normalize
        By the layer's mean absolute value (mean), by its mean and deviation (zscore), or not at all (none); None is mean, and none
        for a ranking that is comparable between layers.
    reduce
        A group's score from its members'.
    cap
        Largest fraction of a site's channels that may go; a layer is never emptied.
    closest
        Where the budget cannot be met, take the smallest that can.

    Returns
    -------
    Subset
        The channels that are kept.

    Raises
    ------
    BudgetError
        If the budget cannot be met, naming the smallest that can and the layers that hold it.
    MismatchError
        If the ranking is of another network.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> ranking = Ranking("by hand", "", "high", {"0": np.array([3.0, 1.0, 4.0, 2.0])}, found.sites, (3, 8, 8))
    >>> cut(ranking, found, macs=0.5)["0"].tolist()
    [True, False, True, False]
    """
    found = model if isinstance(model, Groups) else groups(model, zero_batch(model, ranking.input_shape))
    if not 0 < macs <= 1:
        raise InputError(f"macs: expected a fraction of the multiply-adds above 0 and at most 1, received {macs}")
    if not 0 <= cap <= 1:
        raise InputError(f"cap: expected a fraction from 0 to 1, received {cap}")
    scores = allocated_scores(ranking, found, allocation, normalize=normalize, reduce=reduce)
    return found.to_subset(remove_to_budget(scores, found, MacCounter(found), macs, cap=cap, closest=closest))


def allocated_scores(
    ranking: Ranking, found: Groups, allocation: Allocation = "global", *, normalize: Normalize | None = None, reduce: Reduce = "mean"
) -> np.ndarray:
    """One number per group, on which one threshold removes channels as the allocation says: float64 (groups,), larger is kept.

    Parameters
    ----------
    ranking
        One number per channel.
    found
        The network's `groups`.
    allocation
        As in `cut`. Of another ranking, the groups of each kind have the scores, the smallest for the one that this ranking removes
        first, so that one threshold keeps as many as the other ranking alone would keep.
    normalize, reduce
        As in `cut`, for both rankings.

    Raises
    ------
    InputError
        For another allocation.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> ranking = Ranking("by hand", "", "low", {"0": np.array([3.0, 1.0, 4.0, 2.0])}, found.sites, (3, 8, 8))
    >>> allocated_scores(ranking, found, "uniform").tolist()
    [0.375, 0.875, 0.125, 0.625]
    >>> other = Ranking("other", "", "high", {"0": np.array([5.0, 6.0, 9.0, 8.0])}, found.sites, (3, 8, 8))
    >>> allocated_scores(ranking, found, other, normalize="none").tolist()
    [6.0, 9.0, 5.0, 8.0]
    """
    scores = group_importance(ranking, found, normalize=normalize, reduce=reduce)
    if isinstance(allocation, Ranking):
        return _in_order_of(scores, group_importance(allocation, found, normalize=normalize, reduce=reduce), found)
    check_choice("allocation", allocation, ("global", "uniform"))
    return _rank_within_layers(scores, found) if allocation == "uniform" else scores


def refuse_out_of_reach(found: Groups, macs: float, *, cap: float = 0.95) -> None:
    """Nothing, for a budget that some ranking can meet; raises before a ranking is computed for one that none can.

    Parameters
    ----------
    found
        The network's `groups`.
    macs
        Fraction of the network's multiply-adds to keep.
    cap
        Largest fraction of a site's channels that may go.

    Raises
    ------
    BudgetError
        If even with as many channels removed as the cap allows more would be left, naming the layers that hold it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> refuse_out_of_reach(found, 0.5)
    >>> refuse_out_of_reach(found, 0.2)
    Traceback (most recent call last):
        ...
    channelscope.errors.BudgetError: macs: 0.2 of 2,304 multiply-adds cannot be met; the smallest budget is 0.500 ...
    """
    counter = MacCounter(found)
    full = counter.total
    limits = _most_removed(found, cap)
    for family in groups_by_layers(found):
        counts = Counter(name for name, _ in found.members[family[0]].members)
        for group in family[: min(limits[name] // count for name, count in counts.items())]:
            counter.remove(int(group))
    if counter.total > macs * full:
        remove_to_budget(np.zeros(len(found)), found, MacCounter(found), macs, cap=cap)


def _most_removed(found: Groups, cap: float) -> dict[str, int]:
    """Channels of each site that may go: a fraction `cap` of them, and never the last."""
    return {site.name: min(int(cap * site.channels), site.channels - 1) for site in found.sites}


def group_importance(ranking: Ranking, found: Groups, *, normalize: Normalize | None = None, reduce: Reduce = "mean") -> np.ndarray:
    """One number per group, larger is kept: its members' scores, normalized within their layers, then reduced.

    Members without a value (nan) are left out of the reduction.

    Parameters
    ----------
    ranking
        One number per channel.
    found
        The network's `groups`.
    normalize, reduce
        As in `cut`.

    Returns
    -------
    np.ndarray
        float64 (groups,); nan where no member has a value.

    Raises
    ------
    MismatchError
        If the ranking is of another network.
    InputError
        For an unknown way to normalize or to reduce.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> ranking = Ranking("by hand", "", "low", {"0": np.array([3.0, 1.0, 4.0, np.nan])}, found.sites, (3, 8, 8))
    >>> group_importance(ranking, found, normalize="none").tolist()
    [-3.0, -1.0, -4.0, nan]
    """
    how: Normalize = normalize or ("none" if ranking.comparable_across_layers else "mean")
    values = np.full(len(found.group_of), np.nan)
    names = {site.name for site in ranking.sites}
    missing = [site.name for site in found.sites if site.name not in names]
    if missing:
        raise MismatchError(f"ranking '{ranking.name}' is of another network, or of only some sites: it has no values for {missing[0]}")
    for site in found.sites:
        scores = ranking.importance(site.name)
        if len(scores) != site.channels:
            raise MismatchError(f"ranking '{ranking.name}' has {len(scores)} channels at {site.name}, the network {site.channels}")
        start = found.first_id[site.name]
        values[start : start + site.channels] = _normalized(scores, how)
    inside = (found.group_of >= 0) & ~np.isnan(values)
    owner, values = found.group_of[inside], values[inside]
    members = np.bincount(owner, minlength=len(found))
    if reduce == "max":
        result = np.full(len(found), -np.inf)
        np.maximum.at(result, owner, values)
    elif reduce in ("mean", "sum"):
        result = np.zeros(len(found))
        np.add.at(result, owner, values)
        if reduce == "mean":
            result = result / np.maximum(members, 1)
    else:
        raise InputError(f"reduce: expected 'mean', 'sum' or 'max', received {reduce!r}")
    return np.where(members > 0, result, np.nan)


def _normalized(values: np.ndarray, how: Normalize) -> np.ndarray:
    if how == "none":
        return values
    finite = values[np.isfinite(values)]
    if how == "mean":
        scale = np.abs(finite).mean() if len(finite) else 1.0
        return values / scale if scale > 0 else values
    if how == "zscore":
        spread = 0.0 if len(finite) and finite.max() == finite.min() else finite.std() if len(finite) else 1.0
        return (values - finite.mean()) / spread if spread > 0 else np.where(np.isfinite(values), 0.0, values)
    raise InputError(f"normalize: expected 'mean', 'none' or 'zscore', received {how!r}")


def groups_by_layers(found: Groups) -> list[np.ndarray]:
    """Groups that differ only in which channels they hold, not in which layers: the numbers of the groups of each kind.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> [family.tolist() for family in groups_by_layers(groups(model, zero_batch(model, (3, 8, 8))))]
    [[0, 1, 2, 3]]
    """
    table = defaultdict(list)
    for index, group in enumerate(found.members):
        table[tuple(name for name, _ in group.members)].append(index)
    return [np.array(family) for family in table.values()]


def _removal_order(scores: np.ndarray) -> np.ndarray:
    """Order of removal: silent groups, then from the lowest score; ties in channel order."""
    return np.lexsort((np.arange(len(scores)), np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf), ~np.isnan(scores)))


def _rank_within_layers(scores: np.ndarray, found: Groups) -> np.ndarray:
    """Rank of each group within its family, from 0 to 1: a threshold on these takes the same fraction of every family."""
    result = np.empty(len(scores))
    for family in groups_by_layers(found):
        result[family[_removal_order(scores[family])]] = (np.arange(len(family)) + 0.5) / len(family)
    return result


def _in_order_of(scores: np.ndarray, values: np.ndarray, found: Groups) -> np.ndarray:
    """The values of the groups of each family, handed to them in the order in which these scores remove them."""
    result = np.empty(len(scores))
    for family in groups_by_layers(found):
        result[family[_removal_order(scores[family])]] = values[family[_removal_order(values[family])]]
    return result


class Spending(Protocol):
    """What a network costs while groups are removed and put back: `MacCounter`, or a `TimeCounter` of measured times."""

    @property
    def total(self) -> float:
        """Cost of what is left."""
        ...

    @property
    def names(self) -> list[str]:
        """The layers, or the steps, that cost something."""
        ...

    def remove(self, group: int) -> float:
        """Take a group out; what it saves."""
        ...

    def add(self, group: int) -> float:
        """Put a group back; what it adds."""
        ...

    def shares(self) -> dict[str, float]:
        """What each layer costs of the total as it is now; largest first."""
        ...


def remove_to_budget(
    scores: np.ndarray, found: Groups, counter: Spending, fraction: float, *, cap: float = 0.95, closest: bool = False, multiple: int = 1
) -> np.ndarray:
    """Which groups stay when they are removed in the order of their scores until a fraction of the cost is left.

    Parameters
    ----------
    scores
        One number per group, larger is kept, as `group_importance` gives them.
    found
        The network's `groups`.
    counter
        The cost of the whole network; on return that of what is kept.
    fraction
        Of the cost, to keep.
    cap
        Largest fraction of a site's channels that may go.
    closest
        Where the budget cannot be met, take the smallest that can.
    multiple
        Channels of a layer are kept in multiples of this, as far as they go in groups of one kind: so many go at a time, those with the
        smallest mean score first.

    Returns
    -------
    np.ndarray
        bool (groups,).

    Raises
    ------
    BudgetError
        If the budget cannot be met, naming the smallest that can and the layers that hold it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> scores = np.arange(8.0)
    >>> [int(remove_to_budget(scores, found, MacCounter(found), 0.6, multiple=each).sum()) for each in (1, 2, 4)]
    [4, 4, 4]
    >>> [int(remove_to_budget(scores, found, MacCounter(found), 0.7, multiple=each).sum()) for each in (1, 2, 4)]
    [5, 4, 4]
    """
    full = counter.total
    removable: dict[str | int, int] = {**_most_removed(found, cap)}
    sizes: list[Counter[str | int]] = [Counter(name for name, _ in group.members) for group in found.members]
    for index, part in enumerate(found.parts):
        removable[index] = len(part) - 1
        for group in part:
            sizes[group][index] = 1
    bundles, family_of = _bundles(scores, found, multiple)
    kept = np.ones(len(found), dtype=bool)
    removed: list[int] = []
    for bundle in _removal_order(np.array([_mean_score(scores[each]) for each in bundles])).tolist():
        if counter.total <= fraction * full:
            break
        size: Counter[str | int] = sum((sizes[group] for group in bundles[bundle]), Counter())
        if all(removable[name] >= count for name, count in size.items()):
            removable = {name: left - size[name] for name, left in removable.items()}
            for group in bundles[bundle]:
                counter.remove(group)
                kept[group] = False
            removed.append(bundle)
    if counter.total > fraction * full and not closest:
        name, unit = ("macs", f"{full:,} multiply-adds") if isinstance(counter, MacCounter) else ("latency", f"{1000 * full:.3g} ms")
        raise BudgetError(
            f"{name}: {fraction:g} of {unit} cannot be met; the smallest budget is {_rounded_up(counter.total / full)} "
            f"(closest=True takes it): of what is then left, {_holders(counter, found)}; at most {cap:g} of each site's "
            f"channels may go, and {_list_names(found.unprunable)} kept whole"
        )
    closed: set[int] = set()  # kinds of groups of which one had to stay out: their widths would no longer be multiples
    for bundle in reversed(removed):
        if family_of[bundle] in closed:
            continue
        if sum(counter.add(group) for group in bundles[bundle]) and counter.total > fraction * full:
            for group in bundles[bundle]:
                counter.remove(group)
            closed |= {family_of[bundle]} if multiple > 1 else set()
        else:
            kept[bundles[bundle]] = True
    return kept


def _bundles(scores: np.ndarray, found: Groups, multiple: int) -> tuple[list[list[int]], list[int]]:
    """Groups that are removed at once, so that widths are multiples; and the family of each bundle."""
    if multiple == 1:
        return [[group] for group in range(len(found))], [0] * len(found)
    channels = {site.name: site.channels for site in found.sites}
    bundles: list[list[int]] = []
    family_of: list[int] = []
    for number, family in enumerate(groups_by_layers(found)):
        first = found.members[family[0]].members
        width, step = channels[first[0][0]], sum(name == first[0][0] for name, _ in first)
        bundle: list[int] = []
        for group in family[_removal_order(scores[family])].tolist():
            bundle.append(group)
            width -= step
            if width % multiple == 0:
                bundles.append(bundle)
                family_of.append(number)
                bundle = []
    return bundles, family_of


def _mean_score(scores: np.ndarray) -> float:
    """Mean of the defined scores of groups that go together; nan if none is."""
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if len(defined) else np.nan


def _rounded_up(fraction: float) -> str:
    return f"{np.ceil(fraction * 1000) / 1000:.3f}"


def _holders(counter: Spending, found: Groups, most: int = 3) -> str:
    """The layers, or the modules that are followed as one step, that hold most of the cost."""
    steps = {str(node.target) for node in found.graph.steps.nodes if node.op == "call_module"} - set(counter.names)
    held: Counter[str] = Counter()
    for name, share in counter.shares().items():
        held[next((step for step in steps if name == step or name.startswith(f"{step}.")), name)] += share  # type: ignore[assignment]
    return ", ".join(f"{name} holds {share:.0%}" for name, share in held.most_common(most))


def _list_names(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more sites are" if len(names) > 3 else f"{', '.join(names) or 'no site'} is"


CUTS = "_channelscope_cuts"
"""Attribute of a smaller network that holds the subsets it was cut to."""


def shrink(model: nn.Module | Groups, kept: Subset, calibration: Iterable | None = None, *, blocks: bool = False) -> nn.Module:
    """A new, smaller network that has only the kept channels; `model` is not changed.

    Weights keep their type, device and requires_grad, modules their training mode. Before it is returned, every tensor of its
    (nested) output is compared with that of the silenced network, in float64, on noise and on calibration images if there are any.

    Parameters
    ----------
    model
        The network, or its `groups`. A subset that `cut` made of a network's groups carries them, so that the network is not traced
        again.
    kept
        The channels to keep, as `cut` gives them.
    calibration
        Batches of (images, …); images of the first batch are compared on too, labels are not used.
    blocks
        Whether a residual block of whose own channels none is kept becomes its shortcut. The branch, which is a constant without them,
        is left out: the result is compared with the silenced network without that constant.

    Returns
    -------
    nn.Module
        The smaller network.

    Raises
    ------
    InputError
        If a group is split, a channel cannot be removed or a layer would have none, with the reason, or without the shape of its images.
    MismatchError
        If the subset is of another network, or the smaller network computes something else.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> small = shrink(found, found.to_subset([True, False, True, True]))
    >>> small[0].out_channels, small[2].in_channels, model[0].out_channels
    (3, 3, 4)
    """
    if isinstance(calibration, Groups):
        raise InputError(
            "shrink: expected batches of images after the subset, received groups: they take the network's place, shrink(found, kept)"
        )
    found = model if isinstance(model, Groups) else _groups_of(unwrapped(model), kept)
    original = found.graph.model
    keep = kept_ids(found, kept)
    vanished = vanished_blocks(found, found.kept(kept)) if blocks else []
    if vanished:
        return shrink_blocks(found, kept, vanished, groups(without_blocks(found, vanished), found.example), calibration)
    for layer in found.layers:
        if not bool(keep[layer.outputs].any()):
            raise InputError(
                f"shrink: the subset removes all {len(layer.outputs)} channels of {layer.name}: keep at least one{_block_hint(found, kept)}"
            )
    first = list(islice(calibration or (), 1))
    images = rechunked(first, found)[0] if first else None
    small, exact = _narrowed(original, found, keep, checked=False)
    try:
        check_same(exact or small, kept, found, images)
    except MismatchError:  # its own code may count channels where its steps do not
        small, exact = _narrowed(original, found, keep, checked=True)
        check_same(exact or small, kept, found, images)
    vars(small)[CUTS] = (*cuts(original), replace(kept, groups=None))
    return small


def shrink_blocks(found: Groups, kept: Subset, vanished: Sequence[Block], inner: Groups, calibration: Iterable | None = None) -> nn.Module:
    """What `shrink` makes where residual blocks become their shortcuts, from groups of the network without them that are known.

    Parameters
    ----------
    found
        The network's `groups`.
    kept
        The channels to keep, none of them inside the blocks.
    vanished
        The blocks: `vanished_blocks(found, found.kept(kept))`.
    inner
        The `groups` of the network without them.
    calibration
        As for `shrink`.

    Examples
    --------
    >>> from channelscope import zoo
    >>> from channelscope.pruning.blocks import blocks_of
    >>> found = groups(zoo.build("resnet20", classes=10, channels=1, image_size=8).eval(), zero_batch(nn.Linear(1, 1), (1, 8, 8)))
    >>> first = blocks_of(found)[:1]
    >>> kept = found.to_subset(~np.isin(np.arange(len(found)), first[0].groups))
    >>> small = shrink_blocks(found, kept, first, groups(without_blocks(found, first), found.example))
    >>> len(list(small.layer1[0].parameters()))
    0
    """
    small = shrink(inner, restricted(kept, inner), calibration)
    vars(small)[CUTS] = (*cuts(found.graph.model), replace(kept, groups=None))
    vars(small)[BLOCKS] = {block.sum_step: block.shortcut for block in vanished}
    return small


def _block_hint(found: Groups, kept: Subset) -> str:
    """What leaves out the residual blocks that lost all of their channels, if there are any."""
    names = [block.name for block in vanished_blocks(found, found.kept(kept))]
    return f"; with blocks=True the residual block {names[0]} becomes its shortcut" if names else ""


def _groups_of(model: nn.Module, kept: Subset) -> Groups:
    """The groups that the subset was made of, or else those of the network traced on a blank image."""
    found = known_groups(model, kept)
    if found is not None:
        return found
    if not kept.input_shape:
        raise InputError("shrink: the subset needs the input shape, as cut() and Subset.everything() give it")
    example = zero_batch(model, kept.input_shape)
    found = groups(model, example)
    try:
        found.kept(kept)
    except InputError:  # whole heads are split: the subset may be of groups of their widths
        widths = groups(model, example, heads="widths")
        with suppress(InputError):
            widths.kept(kept)
            return widths
    return found


def cuts(model: nn.Module) -> tuple[Subset, ...]:
    """The subsets that `shrink` cut a network to, one for each time, the first one of the original; empty for an original.

    Parameters
    ----------
    model
        Any network.

    Returns
    -------
    tuple of Subset
        The channels that were kept each time.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> small = shrink(found, found.to_subset([True, False, True, True]))
    >>> len(cuts(model)), [each["0"].tolist() for each in cuts(small)]
    (0, [[True, False, True, True]])
    """
    return vars(model).get(CUTS, ())


def _narrowed(model: nn.Module, found: Groups, keep: Tensor, checked: bool) -> tuple[nn.Module, nn.Module | None]:
    """A copy with cut parameters in the modes of the original, and the same before rounding where parameters had to be computed."""
    small, exact = narrow_pair(found.labeled, ~keep[:-1], checked)
    for name, value in vars(model).items():
        vars(small).setdefault(name, value)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in small.named_modules():
        module.training = modes.get(name, model.training)
    return small, exact
