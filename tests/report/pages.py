"""Every page that a command writes, from small real runs: networks of a few thousand weights, on digits and on squares in noise."""

from pathlib import Path

from cli.commands import boxed, run, small_network

FEW = ("--images", "80")
CHANNEL = "layer2.0.conv1:3"

NAMES = (
    *("axes", "ablate", "hulls", "communities", "propagation", "gradients", "prune", "benchmark", "circuit", "criteria", "subcircuits"),
    *("discard", "faithfulness", "trajectory", "compare", "explain", "together", "diagram"),
)


def write_pages(folder: Path) -> dict[str, Path]:
    """Name → page; `together` holds what four commands found about one network, `diagram` is the page of a circuit's drawing."""
    given, profile = small_network(folder)
    measured = ("--profile", profile)
    (folder / "squares").mkdir()
    square, weights = boxed(folder / "squares", empty=False)
    judged = ("--images", "12", "--test", "4", "--tuning", "4", "--layers", "layer1", "--grid-side", "4")
    propagation = ("propagation", *given, *FEW, *measured, "--permutations", "20")
    benchmark = ("--repairs", "none,least_squares", "--budgets", "0.7,0.4", "--scores", "random,l1,capture")
    calls: dict[str, list[tuple]] = {
        "axes": [("axes", *given, *FEW, "--pictures")],
        "ablate": [("ablate", *given, *FEW, *measured, "--test", "40", "--layers", "layer2.0.conv1")],
        "hulls": [("hulls", profile)],
        "communities": [("communities", profile)],
        "propagation": [propagation],
        "gradients": [("gradients", *given, *FEW, *measured, "--layers", "layer2.0.conv1")],
        "prune": [("prune", *given, *FEW, "--test", "60")],
        "benchmark": [("benchmark", *given, *FEW, "--test", "60", *benchmark)],
        "circuit": [("circuit", *given, *FEW, "--feature", CHANNEL, "--held-out", "40", "--keep", "0.3")],
        "criteria": [("circuit", *given, *FEW, "--compare", "--features", "2", "--criteria", "gate,random", "--sizes", "0.5,0.2")],
        "subcircuits": [("subcircuits", *given, *FEW, "--feature", CHANNEL, "--strongest", "20", "--keep", "0.3")],
        "discard": [("discard", *given, *FEW, "--layers", "layer1,layer3", "--test", "4")],
        "faithfulness": [("faithfulness", square, "--weights", weights, "--data", f"hf:{folder / 'squares' / 'set'}", *judged)],
        "train": [("train", given[0], "--epochs", "1")],
        "trajectory": [("trajectory", folder / "train", *FEW, "--layers", "2")],
        "together": [("axes", *given, *FEW), ("hulls", profile), ("communities", profile), propagation],
        "compare": [("compare", folder / "axes", folder / "together")],
        "explain": [("explain", CHANNEL, *(folder / name for name in ("axes", "prune", "circuit", "ablate")))],
    }
    for name, parts in calls.items():
        for call in parts:
            assert run(*call, "--quiet", "--out", folder / name) == 0, call
    pages = {name: folder / name / "report.html" for name in calls if name != "train"} | {"diagram": folder / "circuit" / "circuit.html"}
    assert set(pages) == set(NAMES)
    return pages
