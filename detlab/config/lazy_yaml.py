"""Lazy configs in yaml are data: what they may call, and what their values may refer to.

A Python config is a program that its reader has chosen to run. A yaml file may be a stranger's, and ``instantiate``
calls what it names; so it may name only parts of models and trainings: those of this package, layers and optimizers of
torch, and what the user's own modules define. Each name is judged before anything is imported for its sake.

References between values (``${model.width}``) are followed here once, so that values made of values made of values
cannot grow beyond bounds when they are read.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from detlab.config.instantiate import TARGET
from detlab.config.values import shown
from detlab.config.yaml_files import MAX_NODES, read_yaml
from detlab.utils.registry import is_registered, locate, qualified_name
from detlab.utils.user_modules import is_of_user_module

__all__ = ["read_lazy_yaml"]

CURE = (
    "import the module that defines it (--import FILE_OR_MODULE), or write the config in Python, which is run as code"
)
# Beside what is registered, and what modules define that the user imports. Not among them: what starts processes, reads
# and runs other files, or finds objects by their names.
OWN_PACKAGES = tuple(f"detlab.{name}." for name in ("data", "evaluation", "layers", "modeling", "solver", "structures"))
CLASSES_OF = ("torch.nn.", "torch.optim.", "fvcore.common.param_scheduler.")

# Of references: all that omegaconf takes but calls of functions, dictionaries written within, and keys that are
# themselves put together.
MARK = "${"
REFERENCE = re.compile(
    r"\$\{\s*(?:(?P<resolver>oc\.(?:select|dict\.keys|dict\.values))\s*:\s*)?(?P<key>[\w.\-\[\]]+)\s*"
    r"(?:,\s*[\w.\-+ ]*)?\}"
)
RESOLVERS = "oc.select, oc.dict.keys and oc.dict.values"
MAX_DEPTH = 100
MAX_CHARACTERS = 4 * 2**20
# Taken by all references on their ways.
MAX_STEPS = 200_000


def read_lazy_yaml(filename: str) -> dict[str, Any]:
    """Named configs from a yaml file, as plain data that may be instantiated.

    Args:
        filename: a path, or an address that ``PathManager`` opens.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no yaml of named configs; a target in it is not among those that yaml may name; a reference
            calls a function, or references go in a circle or grow beyond bounds.
    """
    try:
        values = read_yaml(filename)
    except FileNotFoundError:
        raise FileNotFoundError(f"the config file {filename} does not exist") from None
    if not isinstance(values, dict):
        raise ValueError(f"{filename} should hold named configs, but is a {type(values).__name__}")
    try:
        _check_targets(values)
        _Growth(values).check()
    except ValueError as error:
        raise ValueError(f"{filename} is refused: {error}") from None
    return values


# ------------------------------------------------------------------------------------------------------- targets


def _check_targets(root: dict[str, Any]) -> None:
    """Refuses targets that a yaml file may not name; each name is looked up once."""
    accepted: set[str] = set()
    for path, target in _targets(root, "", set()):
        if not isinstance(target, str) or MARK in target:
            raise ValueError(f"{path} is {shown(target)}; in yaml a target is the dotted name of a class or function")
        if target not in accepted:
            _check_target(path, target)
            accepted.add(target)


def _check_target(path: str, name: str) -> None:
    if not _may_be_looked_up(name) or not _may_be_called(_located(path, name)):
        raise ValueError(
            f"{path} names {shown(name)}, which is neither a part of detlab, a layer or optimizer of torch, nor a "
            f"part that you have registered or imported; {CURE}"
        )


def _located(path: str, name: str) -> Any:
    try:
        return locate(name)
    except ImportError as error:
        raise ValueError(f"{path}: {error}") from None


def _targets(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Each target with its dotted key. What aliases share is gone through once."""
    if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
        return
    seen.add(id(value))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        place = f"{path}.{key}" if path else str(key)
        if key == TARGET:
            yield place, item
        yield from _targets(item, place, seen)


def _may_be_looked_up(name: str) -> bool:
    """Whether what must be imported to find a name is this package's, torch's or the user's."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    if is_of_user_module(name, or_called_like_one=True) or is_registered(name):
        return True
    return name.startswith((*OWN_PACKAGES, *CLASSES_OF)) and not _is_private(name)


def _may_be_called(found: Any) -> bool:
    """Whether an object is, by the place that defines it, one that yaml may name.

    The place counts because names lead through what modules have imported: ``detlab.data.build.os.system``.
    """
    try:
        home = qualified_name(found)
        if not callable(found) or locate(home) != found:
            return False
    except (ValueError, ImportError):
        return False
    if is_of_user_module(home) or is_registered(home):
        return True
    is_part = home.startswith(OWN_PACKAGES) or (home.startswith(CLASSES_OF) and inspect.isclass(found))
    return is_part and not _is_private(home)


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


# ---------------------------------------------------------------------------------------------------- references


class _Extent(NamedTuple):
    """How much it takes to read a value, where what is referred to counts each time."""

    nodes: int
    characters: int


Path = tuple[Any, ...]


class _Growth:
    """Follows the references of a config.

    Args:
        root: what absolute references start at.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        # None while the value is looked at.
        self._extents: dict[Path, _Extent | None] = {}
        self._depth = self._steps = 0

    def check(self) -> None:
        """Measures everything.

        Raises:
            ValueError: a reference is none that yaml may make, goes in a circle, or makes a value too large.
        """
        self._visit((), self._root)

    def _visit(self, path: Path, value: Any) -> _Extent:
        if path in self._extents:
            known = self._extents[path]
            if known is None:
                raise ValueError(f"{_dotted(path)} refers to itself")
            return known
        self._extents[path] = None
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"{_dotted(path)} is reached through more than {MAX_DEPTH} levels and references")
        extent = self._measured(path, value)
        self._depth -= 1
        if extent.nodes > MAX_NODES or extent.characters > MAX_CHARACTERS:
            raise ValueError(
                f"{_dotted(path)} and what it refers to have more than {MAX_NODES} values, or {MAX_CHARACTERS} "
                "characters"
            )
        self._extents[path] = extent
        return extent

    def _measured(self, path: Path, value: Any) -> _Extent:
        if isinstance(value, dict):
            return _sum([self._visit((*path, key), item) for key, item in value.items()])
        if isinstance(value, (list, tuple)):
            return _sum([self._visit((*path, index), item) for index, item in enumerate(value)])
        if not isinstance(value, str):
            return _Extent(1, 0)
        own = _Extent(0, len(value))
        return _sum([own, *(self._of_key(path, key) for key in _references(value, path))])

    def _of_key(self, path: Path, key: str) -> _Extent:
        before = self._steps
        found = self._find(_absolute(path, key))
        way = _Extent(self._steps - before, 0)
        # What is not there fails when it is read.
        return way if found is None else _sum([way, self._visit(*found)])

    def _find(self, steps: list[Any], depth: int = 0) -> tuple[Path, Any] | None:
        """The place and value at a path, through references on the way; None if there is nothing."""
        path: Path = ()
        value: Any = self._root
        for step in steps:
            self._steps += 1
            if depth > MAX_DEPTH or self._steps > MAX_STEPS:
                raise ValueError(f"{_dotted(path)} is reached through too many references")
            match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
            found = self._find(_absolute(path, match["key"]), depth + 1) if match else (path, value)
            if found is None:
                return None
            path, value = found
            if isinstance(value, (list, tuple)) and str(step).isdecimal() and len(str(step)) < 10:
                step = int(step)
            try:
                value = value[step]
            except (LookupError, TypeError):
                return None
            path = (*path, step)
        return path, value


def _absolute(path: Path, key: str) -> list[Any]:
    """What a key in the value at ``path`` means; each leading point goes a level up."""
    name = key.lstrip(".")
    num_levels = len(key) - len(name)
    start = path[: max(len(path) - num_levels, 0)] if num_levels else ()
    return [*start, *re.findall(r"[^.\[\]]+", name)]


def _references(text: str, path: Path) -> Iterator[str]:
    """The keys that a text refers to."""
    at = text.find(MARK)
    while at >= 0:
        match = REFERENCE.match(text, at)
        if match is None:
            raise ValueError(
                f"{_dotted(path)} is {shown(text)}; in yaml a reference is ${{a.key}} or one of {RESOLVERS} with a "
                "key, and calls nothing else: write the value itself, or the config in Python"
            )
        yield match["key"]
        at = text.find(MARK, match.end())


def _sum(parts: list[_Extent]) -> _Extent:
    return _Extent(1 + sum(part.nodes for part in parts), sum(part.characters for part in parts))


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))[:300] or "it"
