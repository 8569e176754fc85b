"""traced: the network a profile was measured on, followed again."""

from torch import nn

from channelscope.errors import MismatchError
from channelscope.net.edits import blank
from channelscope.net.find import Sites, sites
from channelscope.net.identity import weights_hash
from channelscope.stats.profile import Profile


def traced(model: nn.Module, profile: Profile) -> Sites:
    """The sites of `model` with its graph, once it is certain that the profile is of this network with these weights.

    Raises   MismatchError if the weights or the sites differ.
    """
    own = weights_hash(model)
    if own != profile.weights_hash:
        raise MismatchError(
            f"the profile is of {profile.network} with weights {profile.weights_hash[:12]}, the network given has weights {own[:12]}: "
            "give the network that was profiled, or collect its profile"
        )
    found = sites(model, blank(model, profile.input_shape))
    if found.found != profile.sites:
        differ = sorted({site.name for site in found} ^ {site.name for site in profile.sites}) or ["their read or cut points"]
        raise MismatchError(f"the profile's sites are not the network's: they differ in {', '.join(differ[:5])}; collect it again")
    return found
