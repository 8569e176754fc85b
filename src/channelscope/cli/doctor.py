"""The command `doctor`."""

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from channelscope.cli.call import current_call
from channelscope.data.sources import ImageSource

BFLOAT16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "bf16": "NEON", "svebf16": "SVE"}
"""flag in /proc/cpuinfo → the processor's unit for products in bfloat16"""

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?:\[[^\]]*\])?\s*(?P<bounds>[^;]*?)\s*(?:;.*extra == [\"'](?P<extra>[\w-]+)[\"'].*)?$")
"""name, bounds and extra of an entry of importlib.metadata.requires"""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    topic: str
    """what was looked at"""
    value: str
    """what was found"""
    problem: bool = False
    """whether it keeps commands from working"""

    def __str__(self) -> str:
        """The line as it is printed."""
        return f"{'PROBLEM  ' if self.problem else ''}{self.topic}: {self.value}"


def doctor() -> None:
    """Print versions, devices, threads, bfloat16 units, extras and caches of this installation; status 1 if there is a problem.

    Examples
    --------
    channelscope doctor
    channelscope doctor --json
    """
    findings = [*versions(), *hardware(), *extras(), *caches()]
    count = sum(each.problem for each in findings)
    text = "\n".join(map(str, (*findings, f"{count} {'problem' if count == 1 else 'problems'} found")))
    current_call().result(text=text, problems=count, findings=[vars(each) for each in findings])
    if count:
        sys.exit(1)


def versions() -> list[Finding]:
    """Versions of Python, of this library and of the packages it requires.

    Examples
    --------
    >>> [each.topic for each in versions()][:3]
    ['python', 'channelscope', 'torch']
    """
    found = [
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("channelscope", importlib.metadata.version("channelscope")),
    ]
    for name, bounds, extra in requirements():
        if not extra:
            installed = installed_version(name)
            found.append(Finding(name, installed or f"not installed: pip install '{name}{bounds}'", not installed))
    return found


def requirements() -> Iterator[tuple[str, str, str]]:
    """Name, bounds and extra of every package that this library's metadata names; the extra is empty for what is always required.

    Examples
    --------
    >>> ("torch", ">=2.6", "") in requirements(), ("timm", ">=1.0.15", "timm") in requirements()
    (True, True)
    """
    for text in importlib.metadata.requires("channelscope") or []:
        match = REQUIREMENT.match(text)
        if match is not None:
            yield match["name"], match["bounds"], match["extra"] or ""


def installed_version(name: str) -> str:
    """The version of an installed package, empty where it is not installed.

    Examples
    --------
    >>> installed_version("no-such-package")
    ''
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def hardware() -> list[Finding]:
    """Devices, threads, and the units that multiply in bfloat16.

    Examples
    --------
    >>> hardware()[0].topic, hardware()[-1].topic
    ('processor', 'bfloat16 units of the processor')
    """
    threads = f"{torch.get_num_threads()} for operations, {torch.get_num_interop_threads()} between them, of {os.cpu_count()} cores"
    found = [Finding("processor", f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"), Finding("threads", threads)]
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for name in names:
        about = torch.cuda.get_device_properties(name)
        half = "with" if about.major >= 8 else "without"  # compute capability 8.0 is the first with bfloat16
        found.append(Finding(name, f"{about.name}, {about.total_memory / 2**30:.1f} GiB, {half} bfloat16 units"))
    if torch.backends.mps.is_available():
        names.append("mps")
    found.append(Finding("devices", ", ".join(["cpu", *names])))
    return [*found, Finding("bfloat16 units of the processor", bfloat16_units(Path("/proc/cpuinfo")))]


def bfloat16_units(cpuinfo: Path) -> str:
    """The processor's units for products in bfloat16, as a file of the form of /proc/cpuinfo lists them.

    Examples
    --------
    >>> bfloat16_units(Path("/no/such/file"))
    'unknown'
    """
    if not cpuinfo.is_file():
        return "unknown"
    flags = set(
        re.findall(r"[\w]+", "\n".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)))
    )
    return ", ".join(unit for flag, unit in BFLOAT16_UNITS.items() if flag in flags) or "none"


def extras() -> list[Finding]:
    """Every extra of this library, with the versions of its packages or the command that installs it.

    Examples
    --------
    >>> {"extra timm", "extra onnx"} <= {each.topic for each in extras()}
    True
    """
    packages: dict[str, list[str]] = {}
    for name, _, extra in requirements():
        if extra and extra != "dev":
            packages.setdefault(extra, []).append(name)
    found = []
    for extra, names in packages.items():
        versions = {name: installed_version(name) for name in names}
        absent = [name for name, version in versions.items() if not version]
        held = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        value = f"{', '.join(absent)} not installed: pip install 'channelscope[{extra}]'" if absent else held
        found.append(Finding(f"extra {extra}", value))
    return found


def caches() -> list[Finding]:
    """The folders in which downloads and temporary files are kept, and whether they can be written.

    Examples
    --------
    >>> [each.topic for each in caches()]
    ['data sets', 'weights (torch)', 'weights (hub)', 'temporary files']
    """
    root = next(field.default for field in fields(ImageSource) if field.name == "root")
    hub = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    folders = {
        "data sets": Path(str(root)).expanduser(),
        "weights (torch)": Path(torch.hub.get_dir()),
        "weights (hub)": Path(hub),
        "temporary files": Path(tempfile.gettempdir()),
    }
    return [_writable(topic, folder) for topic, folder in folders.items()]


def _writable(topic: str, folder: Path) -> Finding:
    """Whether files can be made in a folder, or in the first folder above it that exists."""
    above = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    works = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    return Finding(topic, f"{folder} {'can be written' if works else 'cannot be written'}", not works)
