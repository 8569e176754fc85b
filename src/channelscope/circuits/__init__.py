"""Feature-preserving circuits: the kernels that one feature of a network needs, as a subset, a module and a diagram."""

from channelscope.circuits.circuit import Circuit, trim, union
from channelscope.circuits.extract import extract
from channelscope.circuits.feature import Feature
from channelscope.circuits.score import score
from channelscope.circuits.select import grown, top
from channelscope.circuits.target import locate

__all__ = ["Circuit", "Feature", "extract", "grown", "locate", "score", "top", "trim", "union"]
