"""channelscope: what the channels of a vision network know, what they share, and which it could do without.

The verbs and nouns below and every room (`channelscope.scores`, `channelscope.circuits`, …) are attributes, imported when first used.
"""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelscope import (
        benchmark,
        circuits,
        data,
        discarding,
        experiments,
        formulas,
        network,
        profiling,
        pruning,
        report,
        scores,
        stats,
        tables,
        zoo,
    )
    from channelscope.drawing import plot
    from channelscope.errors import ChannelscopeError
    from channelscope.evaluation import evaluate
    from channelscope.network.edits import silence
    from channelscope.network.removal.groups import Group, groups
    from channelscope.network.sites import sites
    from channelscope.profiling.collect import collect, load, save
    from channelscope.pruning.cut import cut, shrink
    from channelscope.pruning.folder import export, load_pruned, save_pruned
    from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeon, optimal_brain_surgeons
    from channelscope.pruning.prune import prune
    from channelscope.pruning.repair import repair
    from channelscope.ranking import Ranking
    from channelscope.site import Site
    from channelscope.stats.moments import Moments
    from channelscope.stats.profile import Profile
    from channelscope.subset import Subset

__version__ = "0.1.0"

_ROOMS = (
    "benchmark", "circuits", "data", "discarding", "experiments", "formulas", "network", "profiling", "pruning",
    "report", "scores", "stats", "tables", "zoo",
)  # fmt: skip
_HOMES = {
    "drawing": ("plot",),
    "errors": ("ChannelscopeError",),
    "evaluation": ("evaluate",),
    "network.edits": ("silence",),
    "network.removal.groups": ("Group", "groups"),
    "network.sites": ("sites",),
    "profiling.collect": ("collect", "load", "save"),
    "pruning.cut": ("cut", "shrink"),
    "pruning.folder": ("export", "load_pruned", "save_pruned"),
    "pruning.optimal_brain_surgeon": ("optimal_brain_surgeon", "optimal_brain_surgeons"),
    "pruning.prune": ("prune",),
    "pruning.repair": ("repair",),
    "ranking": ("Ranking",),
    "site": ("Site",),
    "stats.moments": ("Moments",),
    "stats.profile": ("Profile",),
    "subset": ("Subset",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ChannelscopeError",
    "Group",
    "Moments",
    "Profile",
    "Ranking",
    "Site",
    "Subset",
    "benchmark",
    "circuits",
    "collect",
    "cut",
    "data",
    "discarding",
    "evaluate",
    "experiments",
    "export",
    "formulas",
    "groups",
    "load",
    "load_pruned",
    "network",
    "optimal_brain_surgeon",
    "optimal_brain_surgeons",
    "plot",
    "profiling",
    "prune",
    "pruning",
    "repair",
    "report",
    "save",
    "save_pruned",
    "scores",
    "shrink",
    "silence",
    "sites",
    "stats",
    "tables",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"channelscope.{name}")
    if name in _HOME_OF:
        value = vars(import_module(f"channelscope.{_HOME_OF[name]}"))[name]
        globals()[name] = value
        return value
    near = get_close_matches(name, __all__, 2)
    raise AttributeError(f"module 'channelscope' has no attribute '{name}'" + (f"; near matches: {', '.join(near)}" if near else ""))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
