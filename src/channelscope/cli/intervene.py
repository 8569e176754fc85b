"""Commands that ask what would be if a channel were gone: lesion, hulls."""

from pathlib import Path

import pandas as pd
from rich.text import Text

from channelscope import store
from channelscope.cli.addition import Addition, folder_at
from channelscope.cli.sources import Convention, Network, console, fitted, opened
from channelscope.errors import DataError
from channelscope.experiments.hulls import Rule
from channelscope.experiments.hulls import hulls as replaceability
from channelscope.experiments.lesion import Plan
from channelscope.experiments.lesion import lesion as lesioned
from channelscope.scores import Convention as Shared
from channelscope.scores.table import assumption
from channelscope.tables import interval
from channelscope.zoo import ImageSource

EVALUATED = 1000
"""Test images where the user says nothing."""


def lesion(
    network: Network,
    source: ImageSource,
    convention: Convention,
    plan: Plan,
    rule: Rule,
    out: Path = Path("runs/lesion"),
    profile: Path | None = None,
    evaluated: int | None = None,
) -> None:
    """Take channels away one by one, let peers stand in for them, and set the damage beside every score.

    out        folder for the tables and report.html; an interrupted run goes on from there
    profile    a profile collected before, instead of a new pass over the calibration images
    evaluated  test images on which the damage is measured; by default 1,000, or all there are
    """
    if evaluated is not None and evaluated < 1:
        raise DataError(f"lesions need evaluation images: expected --evaluated of at least 1, received {evaluated}")
    folder_at(out)
    model, images = opened(network, source)
    held_out = fitted(images.test, evaluated, EVALUATED, "--evaluated")
    addition = Addition(out)
    found = addition.profiled(model, images, profile)
    frames = lesioned(model, found, held_out, plan, rule, out / "lesion.unfinished", **convention.options())
    facts = {
        "data": source.data,
        "target": convention.target,
        "assumption": assumption(found, Shared(**convention.options())),
    }
    page = addition.write(found, f"Lesions of {network.title}", frames, **facts, **network.origin)
    for line in frames["said"]["said"]:
        console.print(Text.assemble(("note ", "yellow"), line))
    console.print(_repaid(frames["repaid"]))
    print(page)


def _repaid(rows: pd.DataFrame) -> str:
    """The answer in one sentence."""
    (whole,) = rows.query("site == 'all layers' and quantity == 'kl' and stand_in == 'hull' and which == 'all'").to_dict("records")
    share = interval(whole["repaid"], whole["low"], whole["high"], int(whole["n"]), "channels")
    return f"of the damage done by silencing, measured as divergence of the output, hulls repay {share}"


def hulls(profile: Path, rule: Rule, out: Path, shrinkage: str | float | None = None) -> None:
    """Find the small sets of peers that can stand in for each channel, from a profile alone.

    profile    profile file
    out        folder for the tables and report.html
    shrinkage  of correlation matrices: a number from 0 to 1, or oas
    """
    addition, found = Addition(out), store.load(profile)
    addition.agrees(found.weights_hash, found.network)
    print(addition.write(found, f"Hulls of {found.network}", replaceability(found, rule, shrinkage=shrinkage)))
