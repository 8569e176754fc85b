"""Information discarding: how much of each input pixel every layer discards, in nats."""

from channelscope.discarding.analysis import DiscardingAnalysis, ExtraAnalyses
from channelscope.discarding.attribution import attributions
from channelscope.discarding.cid import CalibrationStatistics, CIDOptions, CIDResult, discard
from channelscope.discarding.concentration import concentration_table, edge_color_correlation
from channelscope.discarding.faithfulness import MapComparison, compare_maps, descriptive_accuracy_table
from channelscope.discarding.localization import localization_table
from channelscope.discarding.pixel_network import PixelNetwork
from channelscope.discarding.reconstruction import reconstruction_table
from channelscope.discarding.tables import difference_table, image_table, layer_table

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
