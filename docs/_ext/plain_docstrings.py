"""Docstrings are plain text with NumPy sections: what reStructuredText would read as markup in them is escaped."""

import re

CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
INDENT = 4


def escaped(line: str) -> str:
    """The line with bars, asterisks and trailing underscores as they stand; what is between back-ticks is code."""
    parts = CODE.split(line)
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = f"``{part.strip('`')}``"
        else:
            parts[place] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"([\\|*])", r"\\\1", part))
    return "".join(parts)


def depth(line: str) -> int:
    """Spaces before the first letter."""
    return len(line) - len(line.lstrip())


def plain(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: formulas, which are indented after an empty line, become literal blocks."""
    made: list[str] = []
    previous, literal, example = 0, None, False
    for place, line in enumerate(lines):
        if not line.strip():
            made.append("")
            example = False
            continue
        here = depth(line)
        if literal is not None and here < literal:
            literal = None
        if literal is None and place and not lines[place - 1].strip() and here >= previous + INDENT:
            literal = here
            made += [" " * (here - INDENT) + ".. code-block:: text", ""]
        example = example or line.lstrip().startswith(">>>")
        if literal is not None or example:
            made.append(line)
        else:
            made.append(escaped(line))
            previous = here
    return made


def rewrite(app, what, name, thing, options, lines):
    """Replace the lines of a docstring in place, before the NumPy sections are read."""
    lines[:] = plain(lines)


def setup(app):
    """Connect ahead of napoleon."""
    app.connect("autodoc-process-docstring", rewrite, priority=100)
    return {"parallel_read_safe": True}
