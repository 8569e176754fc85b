"""Information discarding: how much of each input pixel every layer discards, in nats."""

from channelscope.discarding.analysis import DiscardingAnalysis, ExtraAnalyses
from channelscope.discarding.cid import CalibrationStatistics, CIDOptions, CIDResult, difference_table, discard, image_table, layer_table
from channelscope.discarding.concentration import concentration_table, edge_color_correlation, localization_table
from channelscope.discarding.faithfulness import MapComparison, attributions, compare_maps, descriptive_accuracy_table
from channelscope.discarding.jacobian import PixelNetwork
from channelscope.discarding.reconstruction import reconstruction_table

__all__ = [
    "CIDOptions",
    "CIDResult",
    "CalibrationStatistics",
    "DiscardingAnalysis",
    "ExtraAnalyses",
    "MapComparison",
    "PixelNetwork",
    "attributions",
    "compare_maps",
    "concentration_table",
    "descriptive_accuracy_table",
    "difference_table",
    "discard",
    "edge_color_correlation",
    "image_table",
    "layer_table",
    "localization_table",
    "reconstruction_table",
]
