"""The command `faithfulness`."""

import time
from pathlib import Path

from channelscope import tables
from channelscope.cli.circuits import circuit_facts
from channelscope.cli.discarding import layer_names, options_text
from channelscope.cli.options import NetworkOptions, console, fitted, load_network
from channelscope.cli.run_folder import RunAddition, folder_at
from channelscope.data.sources import ImageSource
from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.faithfulness import compare_maps
from channelscope.errors import DataError
from channelscope.network.module_state import weights_hash
from channelscope.report import page
from channelscope.tables.rounding import format_interval

EVALUATED, TUNED = 64, 32
"""Numbers of test and calibration images unless the user gives them."""


def faithfulness(
    network: NetworkOptions,
    source: ImageSource,
    rule: CIDOptions,
    out: Path,
    layers: str = "",
    evaluated: int | None = None,
    tuned: int | None = None,
) -> None:
    """Judge CID maps against gradient, integrated gradients, Grad-CAM and LRP: descriptive accuracy, and finding the object.

    Needs captum and zennit (the extra `attribution`) and images with boxes.

    out        folder for the tables and report.html
    layers     modules whose CID is judged, separated by commas; Grad-CAM is taken at the last; by default the third of four
    evaluated  test images judged; by default 64, or all there are
    tuned      calibration images on which each method's threshold is chosen; by default 32, or all there are
    """
    begun = time.monotonic()
    if min(each for each in (evaluated, tuned, 2) if each is not None) < 2:
        raise DataError(f"expected --evaluated and --tuned of at least 2, received {evaluated} and {tuned}")
    folder_at(out)
    model, images = load_network(network, source)
    RunAddition(out).agrees(weights_hash(model), network.model)
    tuning = fitted(images.calibration, tuned, TUNED, "--tuned")
    split = fitted(images.test, evaluated, EVALUATED, "--evaluated")
    comparison = compare_maps(model, split, tuning, images.calibration, layer_names(layers), rule)
    for name, frame in comparison.tables.items():
        tables.write(frame, out / f"{name}.csv")
    if not (out / "run.json").exists():
        facts = {
            "title": f"Faithfulness of maps of {network.model}",
            "layers": list(comparison.layers),
            "rule": options_text(rule),
        }
        tables.write_json(circuit_facts(network, model, images, begun) | facts, out / "run.json")
    for row in comparison.tables["localization"].to_dict("records"):
        overlap = format_interval(row["iou"], row["iou_low"], row["iou_high"], int(row["n"]), "images")
        doubt = f"; {row['converged']:.0%} of the images converged" if row["converged"] < 1 else ""
        console.print(f"{row['method']}: mean IoU {overlap}{doubt}")
    print(page.write_report(out))
