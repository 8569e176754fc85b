"""LazyModule: a module that is imported when something of it is first used."""

from importlib import import_module
from typing import Any


class LazyModule:
    """A module that is imported when an attribute of it is first asked for, so that programs which do not need it start sooner.

    Parameters
    ----------
    name
        Name of the module, such as `sklearn.cluster`.

    Examples
    --------
    >>> statistics = LazyModule("statistics")
    >>> statistics
    LazyModule('statistics')
    >>> statistics.median([1, 2, 4])
    2
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        module = vars(import_module(self._name))
        if attribute not in module:
            raise AttributeError(f"module '{self._name}' has no attribute '{attribute}'")
        return module[attribute]

    def __repr__(self) -> str:
        return f"LazyModule({self._name!r})"
