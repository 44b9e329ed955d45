"""Yaml configs: a tree of typed settings, and constructors that can be called with one.

Every error a config file or a command line can cause names the full dotted key and what to write instead.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import yaml
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _FvcoreCfgNode
from yacs.config import CfgNode as _YacsCfgNode

from detlab.config.compat import LATEST_VERSION, guess_version, upgrade_config
from detlab.config.defaults import DEFAULTS
from detlab.config.nearest import did_you_mean
from detlab.utils.file_io import open_text


class UnknownKeyError(KeyError):
    """A setting that does not exist; reads as its message, where ``KeyError`` would quote it."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Assignment(NamedTuple):
    """One checked setting, ready to be made."""

    section: _YacsCfgNode
    key: str
    value: Any


class CfgNode(_FvcoreCfgNode):
    """A section of settings, read and written as attributes.

    Merging is all or nothing: a file or an override list with an unknown key, or a value of the wrong type, changes
    nothing. Only code may add keys (``cfg.MODEL.MY_HEAD = CfgNode({...})``), before it merges files.
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        # Names with an underscore are asked for by copy and pickle, not by people.
        hint = "" if name.startswith("_") else did_you_mean(name, self)
        raise AttributeError(f"this section of the config has no {name!r}{hint}")

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        return open_text(filename)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The settings of a yaml file on top of those of its ``_BASE_``, as plain dictionaries.

        ``_BASE_`` is one path or a list of them, where later ones win; a path may start with ``~`` or be relative to
        the file that names it. ``allow_unsafe`` is accepted for compatibility; files are always read safely.

        Raises:
            FileNotFoundError: if the file or a base is missing.
            ValueError: if a file is not a mapping of settings, holds a key twice, asks for Python objects, or is its
                own base.
        """
        return _load_with_bases(cls._open_cfg, os.fspath(filename), ())

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Takes over the settings of a yaml file, its bases and their older key names included.

        Args:
            cfg_filename: a path, or a URL that ``PathManager`` opens.
            allow_unsafe: accepted for compatibility; a file cannot run code either way.

        Raises:
            UnknownKeyError: (a ``KeyError``) names the nearest known keys.
            ValueError: if a value has another type than the setting, or the file cannot be read as settings.
        """
        loaded = type(self)(self.load_yaml_with_base(cfg_filename))
        if "VERSION" not in loaded:
            loaded.VERSION = guess_version(loaded, os.fspath(cfg_filename))
        if loaded.VERSION != LATEST_VERSION:
            loaded = upgrade_config(loaded)
        self._merge([loaded], origin=f" in {cfg_filename}")

    def merge_from_other_cfg(self, cfg_other: _YacsCfgNode) -> None:
        """Takes over the settings of another config.

        Raises:
            UnknownKeyError, ValueError: as ``merge_from_file``.
        """
        self._merge([cfg_other], origin="")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Takes over ``[key, value, key, value, ...]``, as given on a command line.

        A value that is a string is read as a Python literal where it is one.

        Raises:
            UnknownKeyError, ValueError: as ``merge_from_file``; ``ValueError`` also for a list of odd length.
        """
        _check_pairs(cfg_list)
        trees = [_nest(key, value) for key, value in zip(cfg_list[0::2], cfg_list[1::2])]
        self._merge(trees, origin=" in the overrides")

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The settings as yaml text; arguments go to ``yaml.safe_dump``."""
        return yaml.safe_dump(_plain(self), *args, **kwargs)

    def _merge(self, trees: Sequence[Mapping[str, Any]], origin: str) -> None:
        if self.is_frozen():
            raise AttributeError("this config is frozen; merge settings into a clone() after calling its defrost()")
        plan: list[_Assignment] = []
        unknown: list[str] = []
        for tree in trees:
            _plan_merge(tree, self, "", self, plan, unknown)
        if unknown:
            known = list(_dotted_keys(self))
            lines = [f"unknown config key {key!r}{origin}{did_you_mean(key, known)}" for key in unknown]
            raise UnknownKeyError("\n".join(lines))
        for section, key, value in plan:
            section[key] = value


def _check_pairs(cfg_list: Sequence[Any]) -> None:
    for key in cfg_list[0::2]:
        if not isinstance(key, str) or key.startswith("-") or "=" in key:
            raise ValueError(f"expected a key such as SOLVER.BASE_LR, got {key!r}; overrides are KEY VALUE pairs")
    if len(cfg_list) % 2:
        raise ValueError(f"the config key {cfg_list[-1]!r} has no value; overrides are KEY VALUE pairs")


def _nest(dotted_key: str, value: Any) -> dict[str, Any]:
    first, _, rest = dotted_key.partition(".")
    return {first: _nest(rest, value) if rest else value}


def _dotted_keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{key}.")


def _plain(value: Any) -> Any:
    """Settings as fresh dictionaries and lists, which yaml writes without anchors and tags."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _plan_merge(
    source: Mapping[str, Any],
    target: _YacsCfgNode,
    prefix: str,
    root: _YacsCfgNode,
    plan: list[_Assignment],
    unknown: list[str],
) -> None:
    """Collects what has to be set in ``target``, whose dotted name is ``prefix``, and the keys it does not know."""
    for key, given in source.items():
        full_key = f"{prefix}{key}"
        if full_key == BASE_KEY:
            raise ValueError(f"{BASE_KEY} names the base of a file; it has no meaning among other settings")
        if key in target:
            value = _fit(given, target[key], full_key)
            if isinstance(value, Mapping):
                _plan_merge(value, target[key], f"{full_key}.", root, plan, unknown)
            else:
                plan.append(_Assignment(target, key, value))
        elif target.is_new_allowed():
            plan.append(_Assignment(target, key, copy.deepcopy(target._decode_cfg_value(given))))
        elif root.key_is_renamed(full_key):
            root.raise_key_rename_error(full_key)
        elif not root.key_is_deprecated(full_key):
            unknown.append(_innermost_key(full_key, given))


def _innermost_key(dotted_key: str, given: Any) -> str:
    """The dotted key of the value in a chain of sections that hold one key each, as overrides make them."""
    while isinstance(given, Mapping) and len(given) == 1:
        ((key, given),) = given.items()
        dotted_key = f"{dotted_key}.{key}"
    return dotted_key


def _fit(given: Any, current: Any, full_key: str) -> Any:
    """``given`` in the type of the ``current`` value, where nothing is lost by it.

    Raises:
        ValueError: if the two types do not go together.
    """
    value = _read_literal(given, current)
    is_section = isinstance(current, Mapping)
    if is_section == isinstance(value, Mapping):
        if is_section or value is None or current is None or type(value) is type(current):
            return copy.deepcopy(value)
        if isinstance(current, (list, tuple)) and isinstance(value, (list, tuple)):
            return type(current)(copy.deepcopy(value))
        if type(current) is float and type(value) is int:
            return float(value)
    raise ValueError(f"{full_key} expects {_expectation(current)}, got {given!r}{_cure(value, current)}")


def _read_literal(given: Any, current: Any) -> Any:
    """A string read as the Python literal it spells, unless the setting wants a string or it spells none."""
    if not isinstance(given, str):
        return given
    if isinstance(current, bool) and given.lower() in ("true", "false"):
        return given.lower() == "true"
    try:
        value = literal_eval(given)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return given
    return given if isinstance(current, str) and not isinstance(value, (str, type(None))) else value


def _expectation(current: Any) -> str:
    if isinstance(current, Mapping):
        return f"a section with keys such as {', '.join(list(current)[:3])}"
    kind = type(current).__name__
    return f"a value of type {kind} such as {current!r}"


def _cure(value: Any, current: Any) -> str:
    if isinstance(current, (list, tuple)) and not isinstance(value, Mapping):
        one = (value,) if isinstance(current, tuple) else [value]
        return f"; for a single entry write {one!r}"
    if isinstance(current, bool):
        return "; write True or False"
    return ""


# ---------------------------------------------------------------------------------------------------- yaml files


class _SettingsLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, that refuses a key given twice and leaves dates as text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"line {line} repeats the key {key_node.value!r}")
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def load_yaml(text: str, filename: str) -> Any:
    """Plain data from yaml text; ``filename`` is for messages.

    Raises:
        ValueError: if the text is not yaml, holds a key twice, or asks for Python objects.
    """
    try:
        return yaml.load(text, Loader=_SettingsLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        cure = "; write plain values: files that build Python objects are refused" if "python/" in reason else ""
        raise ValueError(f"{filename} cannot be read as settings: {reason}{cure}") from None


def _load_with_bases(
    open_file: Callable[[str], IO[str] | IO[bytes]], filename: str, children: tuple[str, ...]
) -> dict[str, Any]:
    """``children`` are the files that led here, each the base of the one before it."""
    if filename in children:
        raise ValueError(f"{BASE_KEY} goes in a circle: {' -> '.join([*children, filename])}")
    try:
        with open_file(filename) as stream:
            settings = load_yaml(stream.read(), filename)  # type: ignore[arg-type]
    except FileNotFoundError:
        whose = f", the {BASE_KEY} of {children[-1]}," if children else ""
        raise FileNotFoundError(f"the config file {filename}{whose} does not exist") from None
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise ValueError(f"{filename} should hold sections of settings, but is a {type(settings).__name__}")
    bases = settings.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        base_settings = _load_with_bases(open_file, _base_path(base, filename), (*children, filename))
        _overlay(base_settings, merged, filename)
    _overlay(settings, merged, filename)
    return merged


def _base_path(base: Any, filename: str) -> str:
    if not isinstance(base, str):
        raise ValueError(f"{BASE_KEY} in {filename} should be a path or a list of paths, got {base!r}")
    base = os.path.expanduser(base)
    if os.path.isabs(base) or "://" in base:
        return base
    folder = os.path.dirname(filename)
    if "://" in folder:
        return f"{folder}/{base}"
    return os.path.normpath(os.path.join(folder, base))


def _overlay(upper: dict[str, Any], lower: dict[str, Any], filename: str, prefix: str = "") -> None:
    """Puts ``upper`` on top of ``lower``, in place; sections are joined, anything else is replaced."""
    for key, value in upper.items():
        if isinstance(value, dict) and key in lower:
            if not isinstance(lower[key], dict):
                raise ValueError(f"{prefix}{key} is a section in {filename}, but the value {lower[key]!r} in its base")
            _overlay(value, lower[key], filename, f"{prefix}{key}.")
        else:
            lower[key] = value


# ------------------------------------------------------------------------------------------------- global access

global_cfg: CfgNode = CfgNode()


def get_cfg() -> CfgNode:
    """A fresh config with every default; change it, then ``freeze()`` it."""
    return CfgNode(DEFAULTS)


def set_global_cfg(cfg: CfgNode) -> None:
    """Makes ``detlab.config.global_cfg`` hold the settings of ``cfg``.

    Meant for experiments only: code that reads a global cannot be configured twice in one process.
    """
    global_cfg.clear()
    global_cfg.update(cfg)


# -------------------------------------------------------------------------------------------------- configurable


def configurable(
    init_func: Callable[..., Any] | None = None, *, from_config: Callable[..., dict[str, Any]] | None = None
) -> Callable[..., Any]:
    """Lets a constructor or function with explicit arguments be called with a config as well.

    On ``__init__``, the class's ``from_config`` class method says what a config means::

        class Head(nn.Module):
            @configurable
            def __init__(self, *, num_classes: int, depth: int = 2): ...

            @classmethod
            def from_config(cls, cfg, input_shape):
                return {"num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES}

        Head(num_classes=3)              # explicit
        Head(cfg, input_shape)           # from_config's result
        Head(cfg, input_shape, depth=4)  # from_config's result, with one argument replaced

    On a function, ``@configurable(from_config=...)`` does the same with the function given.

    A call counts as one with a config if its first argument, or the one named ``cfg``, is a ``CfgNode`` or an omegaconf
    ``DictConfig``. Keyword arguments that ``from_config`` takes go to it; the others replace or add to its result.

    Raises:
        TypeError: if the decorator is used in neither of the two ways.
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or init_func.__name__ != "__init__" or from_config is not None:
            raise TypeError("@configurable without arguments belongs on __init__; on a function give from_config=")
        return _configurable_init(init_func)
    if from_config is None:
        raise TypeError("@configurable() on a function needs from_config=, the function that reads the config")
    if not inspect.isfunction(from_config):
        raise TypeError(f"from_config must be a function, got {type(from_config).__name__}")
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if _is_called_with_config(args, kwargs):
            init(self, **_explicit_arguments(_class_from_config(type(self)), args, kwargs))
        else:
            init(self, *args, **kwargs)

    return wrapped


def _configurable_function(func: Callable[..., Any], *, from_config: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _is_called_with_config(args, kwargs):
            return func(**_explicit_arguments(from_config, args, kwargs))
        return func(*args, **kwargs)

    wrapped.from_config = from_config  # type: ignore[attr-defined]
    return wrapped


def _is_config(value: Any) -> bool:
    # Only a program that has imported omegaconf can hold one of its configs; importing it here would cost every start.
    omegaconf = sys.modules.get("omegaconf")
    return isinstance(value, _YacsCfgNode) or (omegaconf is not None and isinstance(value, omegaconf.DictConfig))


def _is_called_with_config(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return (bool(args) and _is_config(args[0])) or _is_config(kwargs.get("cfg"))


def _class_from_config(owner: type) -> Callable[..., Any]:
    """The bound ``from_config`` of a class, or of the subclass that is being made."""
    from_config = getattr(owner, "from_config", None)
    if from_config is None:
        raise AttributeError(
            f"{owner.__name__} was given a config, but has no from_config; "
            "add a @classmethod from_config(cls, cfg, ...) that gives the constructor's arguments"
        )
    if not inspect.ismethod(from_config):
        raise TypeError(f"{owner.__name__}.from_config must be a class method; put @classmethod above it")
    return from_config


def _explicit_arguments(from_config: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict:
    """Keyword arguments for the decorated function, from a call that holds a config."""
    name = getattr(from_config, "__qualname__", repr(from_config))
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{name}({', '.join(parameters)}) must take 'cfg' as its first argument")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    passed = {key: value for key, value in kwargs.items() if takes_any or key in parameters}
    arguments = from_config(*args, **passed)
    if not isinstance(arguments, Mapping):
        raise TypeError(f"{name} must give a dict of constructor arguments, got {type(arguments).__name__}")
    return {**arguments, **{key: value for key, value in kwargs.items() if key not in passed}}
