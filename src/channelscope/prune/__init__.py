"""Prune: from a ranking to a smaller network in a folder of its own, and back."""

from channelscope.prune.export import export
from channelscope.prune.folder import load_pruned, save_pruned
from channelscope.prune.prune import Pruned, prune
from channelscope.prune.recipe import Factory, Recipe

__all__ = ["Factory", "Pruned", "Recipe", "export", "load_pruned", "prune", "save_pruned"]
