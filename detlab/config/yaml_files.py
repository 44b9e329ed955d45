"""Reading yaml: plain data, without running anything, in time and memory that the file's size bounds.

Two habits of configs are met: ``!!python/object/apply:eval`` on a small formula is computed by
``detlab.config.formula``, and ``!!python/tuple`` and its like are read as the data they mean. Anything else under a
Python tag is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import yaml

from detlab.config.formula import evaluate
from detlab.utils.file_io import open_text

__all__ = ["load_yaml", "read_yaml"]

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 4 * 2**20
MAX_DEPTH = 64
# Nodes of a document, where one that is referred to counts each time.
MAX_NODES = 50_000
MAX_DIGITS = 400
MAX_LIKE_A_NUMBER = 10_000
MAX_FORMULAS = 100
MAX_WARNINGS = 5

_TAG = "tag:yaml.org,2002:"
_PYTHON = f"{_TAG}python/"
_DATA_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _SettingsLoader(_Base):
    """The safe loader for plain data alone: dates and "=" are text, and binary data, sets and so on are refused."""

    num_formulas = 0
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {f"{_TAG}{name}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"] for name in _DATA_TAGS}


def read_yaml(filename: str, open_file: Callable[[str], IO[str] | IO[bytes]] = open_text) -> Any:
    """Plain data from a yaml file; see :func:`load_yaml`.

    Args:
        filename: a path, or an address that ``PathManager`` opens.
        open_file: opens it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, pipe or device, cannot be opened, is no text in UTF-8, or as :func:`load_yaml` says.
    """
    try:
        with open_file(filename) as stream:
            text = stream.read(MAX_CHARACTERS + 1)
        if isinstance(text, bytes):
            text = text.decode("utf-8")
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        # A link to itself, a name that is too long, a folder that is a file.
        reason = error.strerror or error
        raise ValueError(f"{filename:.300} cannot be read as settings: {reason}; check the path") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{filename} cannot be read as settings: it is no text in UTF-8 ({error.reason})") from None
    return load_yaml(text, filename)


def load_yaml(text: str, filename: str) -> Any:
    """Plain data from yaml text; ``filename`` is for messages.

    Of a key that is given twice in one mapping the last value counts, and a warning names its line.

    Raises:
        ValueError: the text is not yaml, is no settings but something huge, or asks for Python objects.
    """
    try:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
        _check_events(text)
        return _construct(text, filename)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        cure = "; write plain values: files that build Python objects are refused" if "python/" in reason else ""
        raise ValueError(f"{filename} cannot be read as settings: {reason}{cure}") from None
    except ValueError as error:
        raise ValueError(f"{filename} cannot be read as settings: {error}") from None


def _check_events(text: str) -> None:
    """Refuses what would be too deep or too large to make nodes of."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_SettingsLoader):
        nodes += isinstance(event, yaml.NodeEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            _check_digits(event.value, line)
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            what = f"nests more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"has more than {MAX_NODES} values"
            raise ValueError(f"it {what} (line {line})")


def _check_digits(value: str, line: int) -> None:
    """Refuses what to compare with the forms of numbers takes a hundred times its size."""
    if len(value) > MAX_LIKE_A_NUMBER and value[0] in "+-.0123456789":
        raise ValueError(f"the number in line {line} has {len(value)} digits")


def _construct(text: str, filename: str) -> Any:
    loader = _SettingsLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        check = _GraphCheck()
        check.visit(root)
        _warn_of_repeated_keys(check.repeated_keys, filename)
        return loader.construct_document(root)
    finally:
        loader.dispose()


class _Extent(NamedTuple):
    """How large the value of a node is, where what is referred to counts each time."""

    nodes: int
    depth: int


class _GraphCheck:
    """Looks at each node of a document once, before values are made of them.

    Attributes:
        repeated_keys: nodes of keys that their mappings have before them already.
    """

    def __init__(self) -> None:
        self.repeated_keys: list[yaml.ScalarNode] = []
        # None while a node's children are looked at.
        self._extents: dict[yaml.Node, _Extent | None] = {}

    def visit(self, node: yaml.Node) -> _Extent:
        """The extent of a node.

        Raises:
            ValueError: it is too large, a node holds itself, or a number has too many digits.
        """
        line = node.start_mark.line + 1
        if node in self._extents:
            known = self._extents[node]
            if known is None:
                raise ValueError(f"line {line} refers to itself")
            return known
        self._extents[node] = None
        self._check(node, line)
        below = [self.visit(child) for child in _children(node)]
        extent = _Extent(1 + sum(e.nodes for e in below), 1 + max((e.depth for e in below), default=0))
        if extent.nodes > MAX_NODES:
            raise ValueError(f"line {line} and what it refers to have more than {MAX_NODES} values in all")
        if extent.depth > MAX_DEPTH:
            raise ValueError(f"line {line} and what it refers to nest more than {MAX_DEPTH} deep")
        self._extents[node] = extent
        return extent

    def _check(self, node: yaml.Node, line: int) -> None:
        if isinstance(node, yaml.MappingNode):
            self._find_repeated_keys(node)
        if node.tag.endswith((":int", ":float", "/int", "/long", "/float")) and len(node.value) > MAX_DIGITS:
            raise ValueError(f"the number in line {line} has {len(node.value)} digits")

    def _find_repeated_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            if (key.tag, key.value) in seen:
                self.repeated_keys.append(key)
            seen.add((key.tag, key.value))


def _warn_of_repeated_keys(keys: list[yaml.ScalarNode], filename: str) -> None:
    for key in keys[:MAX_WARNINGS]:
        line = key.start_mark.line + 1
        logger.warning("%s line %d repeats the key %.100r; the last one counts", filename, line, key.value)
    if len(keys) > MAX_WARNINGS:
        logger.warning("%s repeats %d keys more", filename, len(keys) - MAX_WARNINGS)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


# ------------------------------------------------------------------------------------------------------ Python tags


def _refuse(loader: Any, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(
        problem=f"line {node.start_mark.line + 1} has the tag {_short_tag(node.tag)!r}, which is no plain data"
    )


def _short_tag(tag: str) -> str:
    return "!!" + tag[len(_TAG) :] if tag and tag.startswith(_TAG) else str(tag)


def _formula(loader: Any, node: yaml.Node) -> Any:
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else [None]
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        return _refuse(loader, node)
    loader.num_formulas += 1
    if loader.num_formulas > MAX_FORMULAS:
        raise ValueError(f"it has more than {MAX_FORMULAS} formulas")
    try:
        return evaluate(arguments[0])
    except ValueError as error:
        raise yaml.constructor.ConstructorError(
            problem=f"line {node.start_mark.line + 1} has the tag {_short_tag(node.tag)!r}: {error}"
        ) from None


_SettingsLoader.add_constructor(None, _refuse)
_SettingsLoader.add_constructor(f"{_PYTHON}object/apply:eval", _formula)
_SettingsLoader.add_constructor(
    f"{_PYTHON}tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)
for _python_name, _name in (
    *(("none", "null"), ("bool", "bool"), ("int", "int"), ("long", "int"), ("float", "float")),
    *(("str", "str"), ("unicode", "str"), ("list", "seq"), ("dict", "map")),
):
    _SettingsLoader.add_constructor(f"{_PYTHON}{_python_name}", yaml.SafeLoader.yaml_constructors[f"{_TAG}{_name}"])
