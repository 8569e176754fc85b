"""The commands that read what is there: `sites`, `list`, `info`, `evaluate`, `export`, `report`, `compare` and `explain`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from channelscope import tables
from channelscope.benchmark.channel_summary import channel_summary as joined
from channelscope.circuits import folder as circuit_folder
from channelscope.circuits.criteria import CRITERIA
from channelscope.cli.call import NetworkOptions, batch_count, current_call, finish_run, load_network, note_chance, open_run
from channelscope.cli.measure import profile_numbers, tally_numbers
from channelscope.data.sources import ImageSource
from channelscope.errors import DataError, FormatError, InputError, near_paths
from channelscope.evaluation import evaluate as evaluated
from channelscope.network.cost import cost
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.groups import Groups, groups
from channelscope.network.sites import sites_of
from channelscope.profiling.collect import load as load_profile
from channelscope.progress import console, progress_bar, track
from channelscope.pruning.folder import RECIPE, Manifest, load_pruned
from channelscope.pruning.folder import export as exporting
from channelscope.report import page
from channelscope.scores.score import REGISTRY
from channelscope.tables.frame import format_interval, format_number
from channelscope.tables.quantities import score_title
from channelscope.tables.run_folder import FACTS, RunFolder, compare_runs
from channelscope.zoo.models import network_names
from channelscope.zoo.training_run import LOG, History
from channelscope.zoo.weight_files import read_weights

SHOWN = 8
"""Largest differences that `compare` prints."""

DATA = {
    "digits": "1,797 scanned digits, 8×8 gray; comes with scikit-learn",
    "cifar10": "CIFAR-10, 32×32 color; downloaded once",
    "cifar100": "CIFAR-100, 32×32 color; downloaded once",
    "folder:PATH": "pictures: PATH/CLASS/, or PATH/PART/CLASS/ with parts train, val and test",
    "hf:ID_OR_PATH": "a data set of the Hugging Face hub, or a local folder of parquet files",
}

FURTHER_NETWORKS = {
    "timm:NAME": "any classifier of timm (extra timm)",
    "torchvision:NAME": "any classifier of torchvision",
    "FILE.py:CLASS": "a class of your own",
    "FOLDER": "a network that `channelscope prune` left",
}


def sites(network: NetworkOptions, source: ImageSource) -> None:
    """List every layer with what can be measured and removed there, what is kept whole and why, and its multiply-adds.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.

    Examples
    --------
    channelscope sites resnet20
    channelscope sites timm:resnet18 -d folder:photos --json
    """
    model, images = load_network(network, source)
    example = zero_batch(model, images.image_shape)
    with progress_bar("groups of channels", None):
        found, spent = groups(model, example), cost(model, example)
    rows = site_rows(found, spent.macs, spent.total_macs)
    console.print(
        f"{len(found.sites)} sites with {sum(site.channels for site in found.sites):,} channels, in {len(found):,} groups that can be "
        f"removed; {spent.total_macs:,} multiply-adds an image"
    )
    current_call().result(text=text_table(rows), network=network.model, macs=spent.total_macs, groups=len(found), layers=rows)


def site_rows(found: Groups, macs: Mapping[str, int], total: int) -> list[dict[str, Any]]:
    """A row for each layer: what can be measured and removed there, and what it costs."""
    rows, wording = [], current_call().wording
    for site in found.sites:
        first = found.first_id[site.name]
        free = int((found.group_of[first : first + site.channels] >= 0).sum())
        spent = int(macs.get(site.name, 0))
        shape = "×".join(map(str, site.shape))
        row = {"layer": site.name, "kind": site.kind, "channels": site.channels, "shape": shape, "removable": free}
        rows.append(row | {"macs": spent, "share": spent / total, "note": wording(found.unprunable.get(site.name, ""))})
    for name, reason in sites_of(found.graph).skipped.items():
        spent = int(macs.get(name, 0))
        row = {"layer": name, "kind": "not measured", "channels": 0, "shape": "", "removable": 0}
        rows.append(row | {"macs": spent, "share": spent / total, "note": wording(reason)})
    return rows


def list_(what: Literal["models", "data", "scores", "criteria"]) -> None:
    """List the networks, data sets, scores or circuit criteria that can be named.

    Parameters
    ----------
    what
        models, data, scores or criteria.

    Examples
    --------
    channelscope list scores
    channelscope list models --json
    """
    rows = LISTS[what]()
    current_call().result(None, text_table(rows), **{what: rows})


def _models() -> list[dict[str, Any]]:
    return [{"name": name, "about": "comes with this library"} for name in network_names()] + [
        {"name": name, "about": about} for name, about in FURTHER_NETWORKS.items()
    ]


def _scores() -> list[dict[str, Any]]:
    return [
        {
            "name": score.name,
            "family": score.family,
            "unit": score.unit,
            "keeps": score.keeps,
            "title": score_title(score.name),
            "source": score.source,
        }
        for score in REGISTRY.values()
    ]


LISTS: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
    "models": _models,
    "data": lambda: [{"name": name, "about": about} for name, about in DATA.items()],
    "scores": _scores,
    "criteria": lambda: [{"name": each.name, "about": each.meaning, "source": each.source} for each in CRITERIA.values()],
}
"""what can be listed → its rows"""


def info(path: Path) -> None:
    """Say what a profile, run folder, circuit, pruned network, training run, weights file or table holds.

    Parameters
    ----------
    path
        The file or folder.

    Examples
    --------
    channelscope info runs/demo
    channelscope info resnet20.profile --json
    """
    if not path.exists():
        raise InputError(f"{path}: expected a file or folder, found nothing there{near_paths(path)}")
    found = folder_contents(path) if path.is_dir() else file_contents(path)
    lines = [line for kind, facts in found.items() for line in (kind, *(f"  {name}: {_short(value)}" for name, value in facts.items()))]
    current_call().result(None, "\n".join(lines), **found)


def folder_contents(path: Path) -> dict[str, dict[str, Any]]:
    """What each kind of run has left in a folder."""
    found = {kind: read(path) for file, (kind, read) in FOLDERS.items() if (path / file).is_file()}
    if not found:
        raise FormatError(f"{path}: expected a folder that a command of channelscope wrote, found none of {', '.join(FOLDERS)}")
    return found


def file_contents(path: Path) -> dict[str, dict[str, Any]]:
    """What a profile, a table or a file of weights holds."""
    if path.suffix in (".csv", ".parquet") or (path.suffix == ".json" and _is_table(path)):
        frame = tables.read(path)
        columns = {name: f"{about.get('meaning', '')} [{about.get('unit') or '1'}]" for name, about in frame.attrs["columns"].items()}
        return {"table": {"name": frame.attrs["name"], "rows": len(frame), "columns": columns}}
    if _is_profile(path):
        return {"profile": profile_numbers(load_profile(path))}
    state = read_weights(path)
    count = sum(tensor.numel() for tensor in state.values())
    return {"weights": {"tensors": len(state), "parameters": count, "shapes": {name: list(each.shape) for name, each in state.items()}}}


def _is_table(path: Path) -> bool:
    """Whether a JSON file is a table."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and "values" in found


def _is_profile(path: Path) -> bool:
    """Whether a file has the header of a profile, or its name."""
    try:
        with safe_open(path, "pt") as file:
            return "channelscope" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return path.suffix == ".profile"


def _run_contents(path: Path) -> dict[str, Any]:
    run = RunFolder.read(path)
    calls = [
        {
            key: call.get(key)
            for key in ("command", "date", "seconds", "device", "threads", "versions", "tables")
            if call.get(key) is not None
        }
        for call in run.calls
    ]
    facts = {key: value for key, value in run.facts.items() if key not in ("calls", "command")}
    return {**facts, "tables": {name: f"{len(frame):,} rows" for name, frame in run.tables.items()}, "calls": calls}


def _pruned_contents(path: Path) -> dict[str, Any]:
    recipe = Manifest.read(path / RECIPE)
    left = {name: f"{int(marks.sum())} of {len(marks)}" for name, marks in recipe.kept.masks.items()}
    return {
        "network": recipe.factory.name if recipe.factory else "not made by the zoo",
        "original": recipe.original,
        "weights": recipe.pruned,
        "settings": dict(recipe.made),
        "versions": dict(recipe.versions),
        "channels kept": left,
    }


def _circuit_contents(path: Path) -> dict[str, Any]:
    circuit = circuit_folder.load_mask(path)
    kept = {name: f"{int(marks.sum())} of {marks.numel()}" for name, marks in circuit.masks.items()}
    return {"feature": circuit.feature, "kernels": circuit.count, "kernels kept": kept}


def _training_contents(path: Path) -> dict[str, Any]:
    history = History.read(path)
    return {
        "network": history.network,
        "epochs": len(history.epochs) - 1,
        "best": history.best,
        "kept": history.kept,
        "validation accuracy": history.epochs[history.kept].validation_accuracy,
        "test accuracy": history.test_accuracy,
        "test images": history.test_images,
        "checkpoints": {str(epoch): str(file) for epoch, file in history.checkpoints.items()},
        "settings": dict(history.settings),
    }


FOLDERS: Mapping[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    FACTS: ("run", _run_contents),
    RECIPE: ("pruned network", _pruned_contents),
    circuit_folder.RECIPE: ("circuit", _circuit_contents),
    LOG: ("training", _training_contents),
}
"""file in a folder → what the folder then is, and how it is read"""


def evaluate(
    network: NetworkOptions,
    source: ImageSource,
    part: Literal["test", "validation", "calibration", "train"] = "test",
    test: int | None = None,
) -> None:
    """Measure accuracy, loss and margin of a network, with intervals.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    part
        Part of the images.
    test
        Images of that part, the first; by default all.

    Examples
    --------
    channelscope evaluate resnet20 -w runs/demo/trained.safetensors
    channelscope evaluate runs/small -d folder:photos --part validation --json
    """
    model, images = load_network(network, source)
    splits = {"test": images.test, "validation": images.validation, "calibration": images.calibration, "train": images.train}
    split = splits[part]
    count = len(split) if test is None else test
    if not 1 <= count <= len(split):
        asked = "" if test is None else f", asked for {test}"
        raise DataError(f"{source.data}: expected at least 1 of {len(split)} {part} images{asked}; choose another --part")
    split = split.take(count)
    console.print(f"evaluating on {count:,} {part} images")
    tally = evaluated(model, track(split, f"evaluation on {count:,} {part} images", batch_count(split)))
    numbers = tally_numbers(tally) | {"loss": tally.loss, "loss_se": tally.loss_standard_error, "margin": tally.margin}
    note_chance(network, numbers["accuracy_low"], images)
    current_call().result(None, f"{network.title}: {tally}, margin {tally.margin:.3f}", network=network.model, part=part, **numbers)


def export(folder: Path, format: Literal["onnx", "pt2"] = "onnx", out: Path | None = None) -> None:
    """Write a pruned network in a format that runs without this library, and compare its outputs in that format's runtime.

    Parameters
    ----------
    folder
        Folder that `channelscope prune` left.
    format
        ONNX, or a PyTorch export (pt2).
    out
        File to write; by default network.onnx or network.pt2 in the folder.

    Examples
    --------
    channelscope export runs/small
    channelscope export runs/small --format pt2 --out small.pt2
    """
    path = folder / f"network.{format}" if out is None else out
    if path.suffix != f".{format}":
        raise InputError(f"--out {path}: expected a name that ends in .{format}, for --format {format}")
    recipe, small = Manifest.read(folder / RECIPE), load_pruned(folder)
    shape = tuple(recipe.kept.input_shape)
    with progress_bar(f"export as {format}", None):
        difference = exporting(small, path, shape)
    console.print(f"outputs differ by {difference:.2g} of the largest, for batches of 2 and of 3 images of {'×'.join(map(str, shape))}")
    current_call().result(path, difference=difference, input_shape=list(shape))


def report(folder: Path) -> None:
    """Write the report of a run folder again from its tables.

    Parameters
    ----------
    folder
        Run folder, such as runs/demo.

    Examples
    --------
    channelscope report runs/demo
    """
    with progress_bar("report", None):
        written = page.write_report(folder)
    current_call().result(written)


def compare(first: Path, second: Path, out: Path = Path("runs/comparison")) -> None:
    """Compare two runs: their facts, every number that both have with its difference and interval, and their channels' scores.

    The interval of a difference treats the runs as independent; for runs on the same images it is too wide.

    Parameters
    ----------
    first
        Run folder.
    second
        Another one, of the same network or of a different one.
    out
        Folder for the tables and report.html.

    Examples
    --------
    channelscope compare runs/seed0 runs/seed1
    channelscope compare runs/margin runs/label --out runs/targets --json
    """
    run, runs = open_run(out), (RunFolder.read(first), RunFolder.read(second))
    frames = compare_runs(*runs)
    values = frames["compared_values"]
    known = values["difference_low"].notna()
    console.print(
        f"{len(values):,} numbers are in both runs; of {int(known.sum()):,} with intervals, {int(values['apart'].sum()):,} differ"
    )
    for row in values[values["apart"]].sort_values("difference", key=abs, ascending=False).head(SHOWN).to_dict("records"):
        change = format_interval(row["difference"], row["difference_low"], row["difference_high"])
        console.print(
            f"  {row['table']} {row['row']}: {row['quantity']} {format_number(row['first'])} → {format_number(row['second'])}, {change}"
        )
    titles = [str(each.facts.get("title") or each.folder) for each in runs]
    same = titles[0] == titles[1]
    title = f"{first.name} against {second.name}: {titles[0]}" if same else f"{titles[0]} against {titles[1]}"
    finish_run(run, frames, {"title": title, "runs": [str(first), str(second)]})


def explain(channel: str, runs: list[Path], out: Path = Path("runs/explanation")) -> None:
    """Summarize what earlier runs found about one channel: pruning, ablation, circuits, scores and replacement sets.

    Parameters
    ----------
    channel
        layer:channel, such as layer3.0.conv2:17.
    runs
        Run folders of one network: of axes, ablate, hulls, prune, circuit or subcircuits.
    out
        Folder for the tables and report.html.

    Examples
    --------
    channelscope explain layer3.0.conv2:17 runs/axes runs/ablation runs/small --out runs/explanation
    """
    frames = joined(channel, runs)
    joint = frames["explanation"].attrs["provenance"]
    run = open_run(out, joint["weights"], joint["network"])
    for sentence in frames["explanation"]["sentence"]:
        console.print(sentence)
    finish_run(run, frames, {**joint, "title": f"Why {joint['channel']}?"})


def text_table(rows: list[dict[str, Any]]) -> str:
    """Rows as text with aligned columns; numbers at the right."""
    names = list(rows[0])
    cells = [[_cell(name, row[name]) for name in names] for row in rows]
    numbers = [all(isinstance(row[name], int | float) for row in rows) for name in names]
    widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)]
    lines = []
    for row in (names, *cells):
        aligned = (text.rjust(width) if right else text.ljust(width) for text, width, right in zip(row, widths, numbers, strict=True))
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if name == "share":
        return tables.format_percent(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


MOST = 12
"""Entries of a list that `info` prints."""


def _short(value: Any) -> str:
    """The value on a line; of long lists and mappings the beginning."""
    if isinstance(value, Mapping):
        shown = [f"{name} {_short(each)}" for name, each in list(value.items())[:MOST]]
        return ", ".join(shown) + (f", … ({len(value)} in all)" if len(value) > MOST else "")
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "".join(f"\n    {_short(each)}" for each in value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value[:MOST])) + (f", … ({len(value)} in all)" if len(value) > MOST else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, bool) else str(value)
