"""Every page that a command writes, from small real runs: networks of a few thousand weights, on digits and on squares in noise."""

from pathlib import Path

from cli.commands import boxed, run, small_network

FEW = ("--images", "80")
CHANNEL = "layer2.0.conv1:3"

NAMES = (
    *("axes", "ablate", "hulls", "communities", "propagation", "gradients", "prune", "benchmark", "circuit", "criteria", "subcircuits"),
    *("discard", "faithfulness", "trajectory", "compare", "explain", "together", "diagram"),
)


NEEDS = {
    "trajectory": ("train",),
    "compare": ("axes", "together"),
    "explain": ("axes", "prune", "circuit", "ablate"),
    "diagram": ("circuit",),
}
"""page → folders that its command reads"""


class Pages:
    """The pages by name, each made when it is first asked for. `together` holds what four commands found about one network, `diagram` is
    the page of a circuit's drawing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.given, self.profile = small_network(folder)
        self.made: set[str] = set()

    def __getitem__(self, name: str) -> Path:
        for needed in NEEDS.get(name, ()):
            self.make(needed)
        if name == "diagram":
            return self.folder / "circuit" / "circuit.html"
        self.make(name)
        return self.folder / name / "report.html"

    def make(self, name: str) -> None:
        if name not in self.made:
            for call in self.calls(name):
                assert run(*call, "--quiet", "--out", self.folder / name) == 0, call
            self.made.add(name)

    def calls(self, name: str) -> list[tuple]:
        """What is run for a page."""
        network, measured = (*self.given, *FEW), ("--profile", self.profile)
        propagation = ("propagation", *network, *measured, "--permutations", "20")
        if name == "together":
            return [("axes", *network), ("hulls", self.profile), ("communities", self.profile), propagation]
        if name == "faithfulness":
            (self.folder / "squares").mkdir()
            square, weights = boxed(self.folder / "squares", empty=False)
            few = ("--images", "12", "--test", "4", "--tuning", "4", "--layers", "layer1", "--grid-side", "4")
            return [("faithfulness", square, "--weights", weights, "--data", f"hf:{self.folder / 'squares' / 'set'}", *few)]
        one: dict[str, tuple] = {
            "axes": ("axes", *network, "--pictures", "strongest"),
            "ablate": ("ablate", *network, *measured, "--test", "40", "--layers", "layer2.0.conv1"),
            "hulls": ("hulls", self.profile),
            "communities": ("communities", self.profile),
            "propagation": propagation,
            "gradients": ("gradients", *network, *measured, "--layers", "layer2.0.conv1"),
            "prune": ("prune", *network, "--test", "60"),
            "benchmark": ("benchmark", *network, "--test", "60", "--budgets", "0.7,0.4", "--scores", "random,l1,capture"),
            "circuit": ("circuit", *network, "--feature", CHANNEL, "--held-out", "40", "--keep", "0.3"),
            "criteria": ("circuit", *network, "--compare", "--features", "2", "--criteria", "gate,random", "--sizes", "0.5,0.2"),
            "subcircuits": ("subcircuits", *network, "--feature", CHANNEL, "--strongest", "20", "--keep", "0.3"),
            "discard": ("discard", *network, "--layers", "layer1,layer3", "--test", "4"),
            "train": ("train", self.given[0], "--epochs", "1"),
            "trajectory": ("trajectory", self.folder / "train", *FEW, "--layer-count", "2"),
            "compare": ("compare", *(self.folder / each for each in NEEDS["compare"])),
            "explain": ("explain", CHANNEL, *(self.folder / each for each in NEEDS["explain"])),
        }
        return [one[name]]
