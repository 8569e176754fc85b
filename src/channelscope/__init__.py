"""channelscope: what the channels of a vision network know, what they share, and which it could do without."""

from channelscope import scores, zoo
from channelscope.collect import collect
from channelscope.errors import ChannelscopeError
from channelscope.evaluate import evaluate
from channelscope.net.budget import cut
from channelscope.net.edits import silence
from channelscope.net.find import sites
from channelscope.net.groups import Group, groups
from channelscope.net.subset import Subset
from channelscope.net.surgery import shrink
from channelscope.prune import export, load_pruned, prune, save_pruned
from channelscope.ranking import Ranking
from channelscope.repair import reconstruction, reconstructions, repair
from channelscope.site import Site
from channelscope.stats.moments import Moments
from channelscope.stats.profile import Profile
from channelscope.store import load, save

__version__ = "0.1.0"

__all__ = [
    "ChannelscopeError",
    "Group",
    "Moments",
    "Profile",
    "Ranking",
    "Site",
    "Subset",
    "collect",
    "cut",
    "evaluate",
    "export",
    "groups",
    "load",
    "load_pruned",
    "prune",
    "reconstruction",
    "reconstructions",
    "repair",
    "save",
    "save_pruned",
    "scores",
    "shrink",
    "silence",
    "sites",
    "zoo",
]
