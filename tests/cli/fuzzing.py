"""Random command lines: what the user wrote, the state of the files, and the machine around them; how each one ended."""

import contextlib
import inspect
import io
import os
import re
import resource
import stat
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_origin
from unittest import mock

import typer
from hypothesis import strategies as st
from matplotlib.figure import Figure

import odd_files
from channelscope import cli
from channelscope.cli.flags import CALL_FLAGS
from channelscope.cli.flags import command as to_flags
from cli.commands import run

NETWORKS = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, channels=1, classes=10):
        super().__init__(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
        )


class Color(Net):
    def __init__(self):
        super().__init__(3, 3)


class OneLayer(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


class Maps(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 10, 3)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = 1 / 0


class BrokenForward(Net):
    def forward(self, images):
        return {}["logits"]


class Needs(nn.Module):
    def __init__(self, depth):
        super().__init__()


def build():
    return Net()


number = 3
"""

SMALL = ("--images", "48", "--weights", "{train}/trained.safetensors")
NET = "{net.py}:Net"
OUT = ("--out", "{out}")

COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", NET, "--epochs", "1", *OUT),
    "profile": ("profile", NET, *SMALL, "--sensitivity", "--out", "{out}"),
    "merge": ("merge", "{n.profile}", "{m.profile}", *OUT),
    "scores": ("scores", "{n.profile}", "--out", "{out}.csv"),
    "axes": ("axes", NET, *SMALL, "--profile", "{n.profile}", *OUT),
    "report": ("report", "{out}"),
    "hulls": ("hulls", "{n.profile}", *OUT),
    "communities": ("communities", "{n.profile}", "--no-intervals", *OUT),
    "ablate": ("ablate", NET, *SMALL, "--profile", "{n.profile}", "--test", "20", "--channels", "3", "--draws", "20", *OUT),
    "propagation": ("propagation", NET, *SMALL, "--profile", "{n.profile}", "--permutations", "9", *OUT),
    "gradients": ("gradients", NET, *SMALL, "--profile", "{n.profile}", *OUT),
    "trajectory": ("trajectory", "{train}", "--images", "48", *OUT),
    "prune": ("prune", NET, *SMALL, *OUT),
    "circuit": ("circuit", NET, "--weights", "{train}/trained.safetensors", "--feature", "3:1", "--keep", "0.5", "--images", "16", *OUT),
    "subcircuits": (
        *("subcircuits", NET, "--weights", "{train}/trained.safetensors", "--feature", "3:1", "--keep", "0.5", "--general", "1"),
        *("--images", "40", "--strongest", "16", *OUT),
    ),
    "discard": ("discard", NET, *SMALL, "--layers", "0,3", "--test", "4", *OUT),
    "benchmark": (*("benchmark", NET, *SMALL, "--scores", "l2,random", "--budgets", "0.7", "--test", "40", "--seeds", "0", *OUT),),
    "explain": ("explain", "3:1", "{axes}", "{prune}", *OUT),
    "sites": ("sites", NET),
    "info": ("info", "{n.profile}"),
    "evaluate": ("evaluate", NET, *SMALL),
    "compare": ("compare", "{axes}", "{axes}", *OUT),
    "faithfulness": ("faithfulness", NET, *SMALL, *OUT),
    "doctor": ("doctor",),
}
"""each command as it works; {out} is what it writes, every other name in braces something of the world"""

FILES = ("profile", "merge", "scores")
"""commands that write a file, not a folder"""

ITEM = re.compile(r"\{([\w./]+)\}")

INTEGERS = ("-3", "-1", "0", "1", "2", "3", "7", "1000000000000", "9" * 25, "1.5", "", "x")
FLOATS = ("-1", "0", "0.3", "1", "1.5", "1e-300", "1e300", "nan", "inf", "-inf", "", "x")
WORDS = (
    *("", "x", "l2", "l2,random", "taylor_weight,hrank", "oas", "median", "0.5", "0.5,0.9", "nan", "-1", "all", ",", "none", "mean"),
    *("0,3", "3", "8", "9", "6", "7:1,2", "3:1", "3:99", "3:-1", "3:1@max", "3:1@2,2", "3:1@99,0", "logit:3", "logit:99", "0:vector.npy"),
    *("positions(all)", "positions(0)", "positions(x", "pooled", "margin", "[red]x[/red]", "{0}%s", "é\udcff", "w" * 300, "../x", "fast"),
)
NAMES = (
    *("resnet20(width=2)", "resnet20(width=0)", "resnet20(width='x')", "resnet20(", "resnet20(depth=3)", "", "timm:", "timm:nope"),
    *("torchvision:nope", "{net.py}", "{net.py}:", "{net.py}:Nope", "{net.py}:Net(channels=0)", "{net.py}:Color", "{net.py}:OneLayer"),
    *("{net.py}:Maps", "{net.py}:Broken", "{net.py}:BrokenForward", "{net.py}:Needs", "{net.py}:number", "{net.py}:build", "nope.py:Net"),
    *("{bad.py}:Net", "{stops.py}:Net", "{n.profile}:Net", "resnet20(__import__('os'))"),
)
DATA = (
    *("", "digit", "folder:", "folder:nowhere", "folder:{net.py}", "folder:{train}", "folder:{photos}", "folder:{gray}", "hf:{train}"),
    *("hf:{tables}", "hf:", "folder:{photos}/cat"),
)
DEVICES = ("cuda", "cuda:7", "cpu:3", "mps", "meta", "xpu", "gpu", "", "0", "vulkan")
ODD_PATHS = (
    "{net.py}",
    "{n.profile}",
    "{train}",
    "{photos}",
    "{scores.csv}",
    "nowhere",
    "{net.py}/x",
    "",
    ".",
    "/dev/null",
    "x" * 300,
    "\udcff",
)
NO_OUT = tuple(name for name, line in COMMANDS.items() if not any("{out" in word for word in line))
"""commands that write nothing"""

POSITIONAL = ("model", "profiles", "runs", "channel", "folder", "first", "second", "path")

VOCABULARY = {"model": NAMES, "data": DATA, "device": DEVICES, "engine": ("process", "x"), "address": ("x",), "root": ("{photos}",)}
"""flag → its values, where its type says too little"""
SLOW = {"epochs", "finetune", "every", "workers", "seeds", "pictures", "compare", "size", "export", "address"}
"""flags that take no large number, for that would take long as asked"""


@dataclass(frozen=True)
class Case:
    """A command line, and what is around it."""

    arguments: tuple[str, ...]
    """names in braces are those of the world's files, or of changed copies of them"""
    made: tuple[tuple, ...] = ()
    """(name of a copy, "copy", item), ("…", "photos", odd pictures, gray), ("…", "parquet", labels, images, metadata)"""
    damage: tuple[tuple[str, int, str, int], ...] = ()
    """(name of a copy, which of its files, how, number)"""
    around: tuple[str, str] = ("", "")
    """(full, bytes), (locale, encoding), (closed, "") or (variable, NAME=VALUE)"""
    kind: str = ""
    """which of `cases` drew it"""


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    said: str
    error: BaseException | None = None
    changed: tuple[str, ...] = ()
    """files that changed although they were not asked for"""
    warned: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """worked, refused, or what is wrong."""
        if self.error is not None:
            place = [each for each in traceback.extract_tb(self.error.__traceback__) if "channelscope" in each.filename][-1]
            where = f"{Path(place.filename).name}:{place.name}"
            return f"traceback {type(self.error).__name__} in {where}: {str(self.error)[:160]}"
        if self.changed:
            return f"changed {', '.join(self.changed)}"
        if self.status == 0 or ("Usage: " in self.said and "--install-completion" in self.said):
            return "worked"  # without any word there is the help, with status 2
        last = self.said.strip().rsplit("rror: ", 1)
        if self.status != 2:
            return f"status {self.status}: {self.said[-200:]}"
        if len(last) < 2 or not last[1].strip():
            return f"refused without a sentence: {self.said[-200:]}"
        if "Traceback" in self.said:
            return "a traceback was printed"
        return "refused"


@dataclass
class World:
    """Files of finished runs, made once; nothing may change them."""

    folder: Path
    items: tuple[str, ...] = ()
    before: dict[str, tuple] = field(default_factory=dict)

    @classmethod
    def build(cls, folder: Path, *only: str) -> "World":
        """Run every command as it works, or some of them; each has to succeed."""
        world = cls(folder)
        (folder / "net.py").write_text(NETWORKS, encoding="utf-8")
        (folder / "bad.py").write_text("class Net(:\n", encoding="utf-8")
        (folder / "stops.py").write_text("raise KeyError('no such thing')\n", encoding="utf-8")
        odd_files.photos(folder / "photos", [])
        odd_files.photos(folder / "gray", [], gray=True)
        odd_files.parquet(folder / "tables")
        made = {
            "train": COMMANDS["train"],
            "n.profile": COMMANDS["profile"],
            "m.profile": (*COMMANDS["profile"][:-2], "--seed", "9", "--out", "{out}"),
            **{
                name: line
                for name, line in COMMANDS.items()
                if name not in ("train", "profile", "merge", "report", "faithfulness", *NO_OUT)
            },
        }
        for name, line in ((name, made[name]) for name in only or made):
            target = folder / name
            words = [ITEM.sub(lambda match, here=target: str(here if match[1] == "out" else folder / match[1]), word) for word in line]
            with undrawn(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                status = run(*words, "--quiet")
            assert status == 0, f"{words}: {said.getvalue()}"
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        world.items = tuple(sorted(each.name for each in folder.iterdir()))
        world.before = snapshot(folder)
        return world


def snapshot(folder: Path) -> dict[str, tuple]:
    """Path → kind, size and time of the last change, for all that lies in a folder."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            about = os.lstat(path)
            size = 0 if stat.S_ISDIR(about.st_mode) else about.st_size
            time = 0 if stat.S_ISDIR(about.st_mode) else about.st_mtime_ns
            found[os.path.relpath(path, folder)] = (stat.S_IFMT(about.st_mode), size, time)
    return found


def flags(command: str) -> dict[str, inspect.Parameter]:
    """Parameters of a command as typer is shown them, without --out and what every command has; none of a misspelled command."""
    if command not in cli.FUNCTIONS:
        return {}
    found = to_flags(cli.function_of(command))
    every = {"out", *(each.name for each in CALL_FLAGS)} - {"as_json", "dry_run"}
    return {name: each for name, each in inspect.signature(found).parameters.items() if name not in every}


def flag(parameter: inspect.Parameter) -> str:
    """The long form of a parameter's flag."""
    words = [part for word in get_args(parameter.annotation)[1].param_decls for part in word.split("/")]
    return next((word for word in words if word.startswith("--")), f"--{parameter.name}")


def values(name: str, hint) -> st.SearchStrategy[str | None]:
    """Values of one flag, odd ones included; None for a flag that takes none."""
    kind = get_args(hint)[0]  # of Annotated
    inner = next((part for part in get_args(kind) if part is not type(None)), kind) if get_origin(kind) is not Literal else kind
    if name in VOCABULARY:
        return st.sampled_from(VOCABULARY[name])
    if inner is bool:
        return st.none()
    if get_origin(inner) is Literal:
        return st.sampled_from((*get_args(inner), "x"))
    if inner is Path:
        return st.sampled_from(ODD_PATHS)
    if inner is int:
        return st.sampled_from(tuple(each for each in INTEGERS if name not in SLOW or len(each) < 5))
    return st.sampled_from(FLOATS if inner is float else (*WORDS, *FLOATS[:5]))


@st.composite
def cases(draw) -> Case:
    """A command line as it works, with one kind of thing wrong with it, sometimes with two."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    kinds = {"values": _odd_values, "damage": _damaged, "pictures": _pictures, "labels": _labels, "around": _around, "files": _files}
    kinds |= {"grammar": _grammar, "again": _again}
    kind = draw(st.sampled_from(sorted(kinds)))
    case = Case(COMMANDS[command], kind=kind)
    case = draw(kinds[kind](case))
    if draw(st.integers(0, 5)) == 0:
        case = draw(_around(case))
    return case


def _with(case: Case, *more: str, **changes) -> Case:
    return Case(**{**vars(case), **changes, "arguments": (*changes.get("arguments", case.arguments), *more)})


@st.composite
def _odd_values(draw, case: Case) -> Case:
    known = {
        name: each
        for name, each in flags(case.arguments[0]).items()
        if not isinstance(get_args(each.annotation)[1], typer.models.ArgumentInfo)
    }
    names = sorted(name for name in known if not (name in ("profile", "feature") and known[name].default is inspect.Parameter.empty))
    words = list(case.arguments)
    if "model" in flags(case.arguments[0]) and draw(st.integers(0, 4)) == 0:
        words[1] = draw(st.sampled_from(NAMES))
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)) if names else ():
        value = draw(values(name, known[name].annotation))
        words += [flag(known[name])] if value is None else [flag(known[name]), value]
    return _with(case, arguments=tuple(words))


def _names(case: Case) -> list[str]:
    """The items of the world that a command reads."""
    return [name.partition("/")[0] for word in case.arguments for name in ITEM.findall(word) if name.partition("/")[0] != "out"]


@st.composite
def _damaged(draw, case: Case) -> Case:
    """One or two files of what the command reads are damaged; a command may also find a damaged run of its own at --out."""
    command = case.arguments[0]
    names = [name for name in _names(case) if name != "net.py"]
    old = {"profile": "n.profile", "merge": "n.profile"}.get(command, "scores.csv" if command == "scores" else command)
    if command == "report":
        old = draw(st.sampled_from(("axes", "ablate", "prune", "circuit", "discard", "benchmark", "hulls", "explain", "trajectory")))
    here = [*names, *(["out"] if command not in ("faithfulness", "scores", *NO_OUT) else [])]
    if not here:
        return case
    name = draw(st.sampled_from(here))
    damage = tuple(
        (name, draw(st.integers(0, 999)), draw(st.sampled_from(odd_files.DAMAGE)), draw(st.integers(0, 99_999)))
        for _ in range(draw(st.integers(1, 2)))
    )
    closed = any(how == "closed" for _, _, how, _ in damage)
    made = ((name, "copy", old if name == "out" else name),)
    return _with(case, made=made, damage=damage, around=("closed", "") if closed else case.around)


@st.composite
def _pictures(draw, case: Case) -> Case:
    """Odd pictures in the folder of the images."""
    if "data" not in flags(case.arguments[0]):
        return draw(_odd_values(case))
    odd = tuple(draw(st.lists(st.sampled_from(sorted(odd_files.PICTURES)), min_size=1, max_size=3, unique=True)))
    gray = draw(st.booleans())
    words = draw(st.sampled_from(([], ["--skip-corrupt"], ["--size", "8"], ["--skip-corrupt", "--size", "8"])))
    arguments = _untrained(case, draw(st.sampled_from(("{net.py}:Color", "resnet20(width=2)", "{net.py}:Net(classes=3)"))))
    return _with(case, "--data", "folder:{odd}", *words, arguments=arguments, made=(("odd", "photos", odd, gray),))


@st.composite
def _labels(draw, case: Case) -> Case:
    """A parquet file with other types of columns."""
    if "data" not in flags(case.arguments[0]):
        return draw(_odd_values(case))
    labels, images, metadata = "int8", "struct", "none"
    which = draw(st.sampled_from(("labels", "labels", "images", "metadata")))
    if which == "labels":
        labels = draw(st.sampled_from(sorted(odd_files.LABELS)))
    elif which == "images":
        images = draw(st.sampled_from(sorted(odd_files.IMAGES)))
    else:
        metadata = draw(st.sampled_from(sorted(odd_files.METADATA)))
    words = draw(st.sampled_from(([], ["--label-column", "label"], ["--image-column", "image"])))
    arguments = _untrained(case, draw(st.sampled_from(("{net.py}:Color", "resnet20(width=2)"))))
    return _with(case, "--data", "hf:{odd}", *words, arguments=arguments, made=(("odd", "parquet", labels, images, metadata),))


def _untrained(case: Case, network: str) -> tuple[str, ...]:
    """The command for another network, without weights and profile, with few images."""
    words = [network if word == NET else word for word in case.arguments]
    for flag in ("--weights", "--profile", "--images", "--test", "--held-out", "--strongest"):
        if flag in words:
            place = words.index(flag)
            del words[place : place + 2]
    return tuple(words)


@st.composite
def _around(draw, case: Case) -> Case:
    """The machine: a disk that is full, a locale without UTF-8, a folder that may not be written, variables, devices."""
    full = st.tuples(st.just("full"), st.sampled_from(("0", "1", "100", "1000", "5000", "20000", "100000")))
    locale = st.tuples(st.just("locale"), st.sampled_from(("ascii", "latin-1", "cp1252")))
    variable = st.tuples(
        st.just("variable"),
        st.sampled_from(
            ("WORLD_SIZE=2", "WORLD_SIZE=x", "COLUMNS=1", "COLUMNS=x", "HOME=/nowhere", "TMPDIR=/nowhere", "TERM=dumb", "NO_COLOR=1")
        ),
    )
    where = draw(st.one_of(full, locale, variable, st.just(("closed", "")), st.just(("device", ""))))
    if where[0] == "device":
        return _with(case, *(("--device", draw(st.sampled_from(DEVICES))) if "device" in flags(" ".join(case.arguments[:1])) else ()))
    return _with(case, around=where)


@st.composite
def _files(draw, case: Case) -> Case:
    """A file or folder of another kind in the place of one that the command reads or writes."""
    paths = [place for place, word in enumerate(case.arguments) if ITEM.search(word)]
    if not paths:
        return case
    place = draw(st.sampled_from(paths))
    items = (
        "net.py",
        "n.profile",
        "train",
        "axes",
        "prune",
        "circuit",
        "photos",
        "tables",
        "scores.csv",
        "discard",
        "benchmark",
        "explain",
    )
    other = "{" + draw(st.sampled_from(items)) + "}"
    words = list(case.arguments)
    if "{out" in words[place]:  # never the world's own: a copy of it
        return _with(case, made=(("out", "copy", other[1:-1]),))
    words[place] = draw(st.sampled_from((other, "nowhere", "", words[place] + "/x", "{train}/epoch_000.safetensors")))
    return _with(case, arguments=tuple(words))


@st.composite
def _grammar(draw, case: Case) -> Case:
    """Words too many, too few or misspelled."""
    words = list(case.arguments)
    place = draw(st.integers(0, len(words) - 1))
    how = draw(st.sampled_from(("drop", "twice", "swap", "letter", "more")))
    if how == "drop":
        del words[place]
    elif how == "twice":
        words.insert(place, words[place])
    elif how == "swap" and place:
        words[place], words[place - 1] = words[place - 1], words[place]
    elif how == "letter" and words[place] and "{" not in words[place]:
        words[place] = words[place][:-1]
    else:
        words.insert(place + 1, draw(st.sampled_from(("--", "-x", "--nope", "--out", "-q", "extra", "--help", "--version", "\udcff"))))
    return _with(case, arguments=tuple(words))


@st.composite
def _again(draw, case: Case) -> Case:
    """The folder of an earlier run, of this command or of another, at --out; with another seed or not."""
    if case.arguments[0] in (*FILES, *NO_OUT, "faithfulness"):
        return draw(_odd_values(case))
    commands = sorted(set(COMMANDS) - {*FILES, *NO_OUT, "report", "faithfulness"})
    other = (
        draw(st.sampled_from((*commands, *[case.arguments[0]] * 5))) if case.arguments[0] in commands else draw(st.sampled_from(commands))
    )
    seed = draw(st.sampled_from((None, "0", "5"))) if "seed" in flags(case.arguments[0]) else None
    return _with(case, *(() if seed is None else ("--seed", seed)), made=(("out", "copy", other),))


class _Caught:
    """Keeps the error that ends the block."""

    error: BaseException | None = None

    def __enter__(self) -> "_Caught":
        return self

    def __exit__(self, kind, error, trace) -> bool:
        self.error = error
        return True


@contextlib.contextmanager
def _limits(size: int | None) -> Iterator[None]:
    """At most 3 GiB of further memory; no file larger than `size` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory, files = resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * 2**30, memory[1]))
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, files[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, files)
        resource.setrlimit(resource.RLIMIT_AS, memory)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Charts are written without being drawn, for that takes most of the time and reads nothing."""

    def savefig(self, target, **_) -> None:
        (target.write if isinstance(target, io.BytesIO) else Path(target).write_bytes)(b"<svg/>")

    with mock.patch.multiple(Figure, savefig=savefig, draw_without_rendering=lambda self: None):
        yield


@contextlib.contextmanager
def _nobody(asked: bool) -> Iterator[None]:
    """Run by a user who may not read what is closed, where this process is root's."""
    if not asked or os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def prepare(case: Case, world: World, scratch: Path) -> list[str]:
    """Make the copies and damage them; return the words of the command line."""
    places = {}
    for name, how, *about in case.made:
        places[name] = scratch / "made" / (name if how != "copy" or name != "out" else "out")
        if how == "copy":
            odd_files.copy(world.folder / about[0], places[name])
        elif how == "photos":
            odd_files.photos(places[name], list(about[0]), about[1])
        else:
            odd_files.parquet(places[name], *about)
    for name, which, how, number in case.damage:
        inner = {word.partition("}")[2] for word in case.arguments if word.startswith("{" + name + "}/")}  # what the command reads of it
        files = [Path(f"{places[name]}{end}") for end in sorted(inner)] or sorted(odd_files.files(places[name]))
        files = [path for path in files if path.is_file() and path.stat().st_mode & 0o400]
        if files:
            odd_files.damage(files[which % len(files)], how, number)
    if case.around[0] == "closed":
        for path in (scratch, *scratch.rglob("*")):
            if not path.is_symlink() and path.stat().st_mode & 0o400:
                path.chmod(0o777 if path.is_dir() else 0o666)
        if not case.damage:
            places.setdefault("out", scratch / "closed" / "out")
            (scratch / "closed").mkdir()
            (scratch / "closed").chmod(0o555)
    places.setdefault("out", scratch / "out")

    def path(match: re.Match) -> str:
        first, *rest = match[1].split("/")
        return str(Path(places.get(first, world.folder / first), *rest))

    return [ITEM.sub(path, word) for word in case.arguments]


def end(case: Case, world: World, scratch: Path) -> Outcome:
    """Run a command line in this process, and say how it ended."""
    words = prepare(case, world, scratch)
    home, about = Path.cwd(), case.around
    (scratch / "cwd").mkdir(mode=0o777)
    (scratch / "cwd").chmod(0o777)
    before = snapshot(scratch)
    encoding = about[1] if about[0] == "locale" else "utf-8"
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", write_through=True)
    variable, _, value = about[1].partition("=") if about[0] == "variable" else ("", "", "")
    old = os.environ.get(variable)
    caught, status = _Caught(), -1
    os.chdir(scratch / "cwd")
    try:
        if variable:
            os.environ[variable] = value
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            size = int(about[1]) if about[0] == "full" else None
            with undrawn(), caught, _nobody(about[0] == "closed"), _limits(size):
                status = run(*words)
    finally:
        os.chdir(home)
        if variable:
            os.environ.pop(variable)
            if old is not None:
                os.environ[variable] = old
    said = err.buffer.getvalue().decode("utf-8", "replace")
    return Outcome(status, said, caught.error, tuple(_changed(case, world, scratch, before)), tuple(_loud(warned)))


def _loud(warned: list[warnings.WarningMessage]) -> Iterator[str]:
    """Warnings that no user should see: numerical ones, and ones for programmers."""
    for each in warned:
        if issubclass(each.category, RuntimeWarning | DeprecationWarning | FutureWarning):
            yield f"{each.category.__name__} {Path(each.filename).name}:{each.lineno}: {str(each.message)[:100]}"


BESIDE = ("evaluation-", "latency-")
"""beginnings of the names of what `prune` keeps beside its folder for other runs, and says so"""


def _changed(case: Case, world: World, scratch: Path, before: dict[str, tuple]) -> Iterator[str]:
    """Files that are not as they were, outside --out and what stands beside it under its name or is kept there for other runs."""
    if snapshot(world.folder) != world.before:
        after = snapshot(world.folder)
        changed = sorted(name for name in {*after, *world.before} if after.get(name) != world.before.get(name))
        yield from (name for name in changed if not name.startswith(BESIDE))
    after = snapshot(scratch)
    for name in sorted(after.keys() | before.keys()):
        place = name.split("/")
        inner = place[1] if place[0] in ("made", "closed") and len(place) > 1 else place[0]
        asked = inner == "out" or inner.startswith(("out.", *BESIDE))
        asked |= place[0] == "cwd" and (place[1:2] == ["runs"] or "{out}" not in case.arguments)
        if ".partial" in name and after.get(name) and name not in before:
            yield f"{name} is left"
        elif after.get(name) != before.get(name) and not asked:
            yield name


def table(counts: Counter) -> str:
    """The counts, as lines of Markdown."""
    kinds = sorted({kind for kind, _ in counts})
    lines = ["| what is wrong | tried | worked | refused |", "|---|---|---|---|"]
    for kind in kinds:
        worked, refused = counts[kind, "worked"], counts[kind, "refused"]
        lines.append(f"| {kind} | {sum(n for (each, _), n in counts.items() if each == kind):,} | {worked:,} | {refused:,} |")
    return "\n".join(lines)
