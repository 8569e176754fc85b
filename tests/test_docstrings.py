"""Every example in a docstring runs as written, and every public function has one."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "channelscope"
MODULES = sorted(
    ".".join(["channelscope", *path.relative_to(ROOT).with_suffix("").parts]) for path in ROOT.rglob("*.py") if path.name[:2] != "__"
)
COMMANDS = "channelscope.cli."
"""The docstrings of commands are their help; they are run by the tests of the command line."""
WITHOUT_EXAMPLES = {
    "benchmark.analysis",
    "benchmark.channel_summary",
    "benchmark.engines",
    "benchmark.grid",
    "benchmark.run",
    "benchmark.setup",
    "circuits.circuit",
    "circuits.comparison",
    "circuits.contributions",
    "circuits.criteria",
    "circuits.diagram.drawing",
    "circuits.diagram.layout",
    "circuits.diagram.pictures",
    "circuits.evaluation",
    "circuits.extraction",
    "circuits.folder",
    "circuits.kernel_scores",
    "circuits.learned_gates",
    "circuits.located_feature",
    "circuits.options",
    "circuits.selection",
    "circuits.subfeatures",
    "data.augmentation",
    "data.batches",
    "data.decoding",
    "data.images",
    "data.masks",
    "data.parquet",
    "data.partitions",
    "data.sources",
    "discarding.attribution",
    "discarding.cid",
    "discarding.concentration",
    "discarding.faithfulness",
    "discarding.jacobian",
    "discarding.localization",
    "discarding.map_cache",
    "discarding.noise",
    "discarding.optimum",
    "discarding.reconstruction",
    "discarding.smoothing",
    "discarding.tables",
    "errors",
    "evaluation",
    "experiments.ablation.analysis",
    "experiments.ablation.damage",
    "experiments.ablation.ledger",
    "experiments.ablation.plan",
    "experiments.ablation.run",
    "experiments.ablation.tables",
    "experiments.axes",
    "experiments.columns",
    "experiments.communities",
    "experiments.gradients",
    "experiments.hulls",
    "experiments.propagation",
    "experiments.trajectory",
    "formulas.clustering",
    "formulas.gaussian",
    "formulas.gradients",
    "formulas.graphs",
    "formulas.hulls",
    "formulas.information",
    "formulas.ranks",
    "formulas.regression",
    "formulas.resampling",
    "formulas.task_information",
    "network.channel_tracing",
    "network.consumers",
    "network.edits",
    "network.graph",
    "network.module_state",
    "network.nest",
    "network.partial_forward",
    "network.patches",
    "network.receptive_field",
    "network.removal.channels",
    "network.removal.comparison",
    "network.removal.groups",
    "network.removal.outputs",
    "network.removal.slicing",
    "network.removal.trial",
    "network.sites",
    "network.tracing.comparison",
    "network.tracing.interception",
    "network.tracing.numbers",
    "network.tracing.recorder",
    "network.tracing.recording",
    "profiling.collect",
    "profiling.collector",
    "profiling.distributed",
    "profiling.store",
    "profiling.weight_norms",
    "pruning.cut",
    "pruning.export",
    "pruning.folder",
    "pruning.optimal_brain_surgeon",
    "pruning.prune",
    "pruning.recovery.calibration",
    "pruning.recovery.layer_context",
    "pruning.recovery.normal_equations",
    "pruning.recovery.normalization",
    "pruning.recovery.peers",
    "pruning.recovery.repair",
    "pruning.shrink",
    "scores.baselines",
    "scores.composites",
    "scores.local",
    "scores.null_distribution",
    "scores.registry",
    "scores.score_table",
    "scores.target",
    "stats.feature_maps",
    "stats.moments",
    "stats.readout",
    "stats.site_record",
    "stats.tally",
    "storage",
    "tables.frame",
    "tables.rounding",
    "zoo.architectures",
    "zoo.loading",
    "zoo.models",
    "zoo.schedule",
    "zoo.toys.coupled",
    "zoo.toys.linear",
    "zoo.toys.toy",
    "zoo.training",
    "zoo.weight_files",
}
"""Modules in which a public function still lacks an example."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(COMMANDS)])
def test_every_public_function_has_an_example(name):
    tree = ast.parse((ROOT / Path(*name.split(".")[1:])).with_suffix(".py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    lacking = [node.name for node in functions if ">>> " not in (ast.get_docstring(node) or "")]
    assert bool(lacking) == (name.removeprefix("channelscope.") in WITHOUT_EXAMPLES), lacking
