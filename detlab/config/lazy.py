"""Configs as Python files: calls are written down with ``LazyCall`` and made later by ``instantiate``.

A config file runs in a namespace of its own, in which a relative import (``from ..common.train import train``) runs the
config file beside it afresh. So no two configs share a value, and a folder of configs need not be a package. A file
that ``import_user_modules`` (``--import``) has loaded is the exception: it is imported as the module that it is.

A Python config is a program, and its targets are whatever it names: load only what you would run. A yaml config is
data: it may name parts of models and trainings, and what the user's own modules define (``detlab.config.lazy_yaml``).
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import inspect
import logging
import numbers
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from detlab.config.instantiate import TARGET, dotted_name, dump_dataclass, resolve_target
from detlab.config.lazy_yaml import read_lazy_yaml
from detlab.config.nearest import UnknownKeyError, did_you_mean
from detlab.config.values import literal, shown
from detlab.utils.file_io import PathManager, read_text, write_atomically
from detlab.utils.registry import locate
from detlab.utils.user_modules import loaded_user_file

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["LazyCall", "LazyConfig"]

logger = logging.getLogger(__name__)

LINE_LENGTH = 100


class LazyCall:
    """Writes a call down instead of making it: ``LazyCall(Conv2d)(in_channels=3, ...)`` is a ``DictConfig``.

    Its arguments can be read and replaced until ``instantiate`` makes the call. The target is a callable, the dotted
    name of one, or a description that builds one.

    Raises:
        TypeError: if the target is none of these.
    """

    def __init__(self, target: Callable[..., Any] | str | Mapping[str, Any]):
        if not callable(target) and not isinstance(target, (str, Mapping)):
            raise TypeError(f"LazyCall needs a callable or the dotted name of one, got {target!r}")
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        target = dotted_name(self._target) if _is_schema(self._target) else self._target
        return _as_config({TARGET: target, **kwargs})


class LazyConfig:
    """Loads, changes and saves configs made of ``LazyCall``; every method is static."""

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Runs a ``.py`` config, which may do anything a program may, or reads a ``.yaml`` one as data.

        Args:
            filename: a path, or a URL that ``PathManager`` opens.
            keys: which of the file's names to give: one name, or several for a tuple of values. By default all come as
                one ``DictConfig``; of a ``.py`` config, those dictionaries and configs whose names do not start with an
                underscore.

        Raises:
            KeyError: if a name asked for is not there.
            ValueError: for other file extensions; and if a yaml file has a target that is no part of detlab, layer or
                optimizer of torch, nor registered or defined in a module that ``import_user_modules`` has imported.
        """
        filename = os.fspath(filename)
        extension = os.path.splitext(filename)[1]
        if extension not in (".py", ".yaml", ".yml"):
            raise ValueError(f"{filename} is no config: its name should end in .py or .yaml")
        values: Any = _run_file(filename, ()) if extension == ".py" else _as_config(read_lazy_yaml(filename))
        if keys is None and extension == ".py":
            return _as_config({name: value for name, value in values.items() if _is_public_config(name, value)})
        if keys is None:
            return values
        found = tuple(_pick(values, key, filename) for key in ((keys,) if isinstance(keys, str) else keys))
        return found[0] if isinstance(keys, str) else found

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """As ``load``, for a path relative to the file that calls."""
        caller = sys._getframe(1).f_code.co_filename
        if not os.path.isfile(caller):
            raise ValueError(f"load_rel({filename!r}) was called from {caller}, which is no file; use load")
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Writes a config as yaml that ``load`` reads back; targets become their dotted names.

        Values that yaml cannot hold are written as text, and a warning names them.
        """
        lost: list[str] = []
        plain = _saveable(_container(cfg), "cfg", lost)
        if lost:
            logger.warning("%s cannot be loaded back as it was; written as text: %s", filename, ", ".join(lost))
        with write_atomically(filename, "w") as stream:
            stream.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Changes ``cfg`` in place, as told on a command line, and gives it back.

        ``a.b=value`` sets a key that is there or that the ``_target_`` beside it takes, ``+a.b=value`` adds any key,
        ``~a.b`` removes one. Values are yaml: ``1e-3``, ``true``, ``null``, ``[1,2]``, ``"{x: 1}"``; others are text.

        Raises:
            KeyError: if a key does not exist.
            ValueError: if an override is written in another way.
        """
        for override in overrides:
            _apply_override(cfg, override)
        return cfg

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """A config as Python-like text, to read and to compare: one assignment for each value or call."""
        return "\n".join(_assignments(_container(cfg), prefix.rstrip("."))) + "\n"


# ------------------------------------------------------------------------------------------------------- loading


def _as_config(values: Mapping[str, Any]) -> DictConfig:
    from omegaconf import DictConfig

    return DictConfig(content=dict(values), flags={"allow_objects": True})


def _is_schema(target: Any) -> bool:
    """Whether omegaconf would take a target for the type of a value: dataclasses and containers."""
    return dataclasses.is_dataclass(target) or (isinstance(target, type) and issubclass(target, (dict, list, tuple)))


def _is_config(value: Any) -> bool:
    from omegaconf import OmegaConf

    return OmegaConf.is_config(value)


def _is_public_config(name: str, value: Any) -> bool:
    return not name.startswith("_") and (isinstance(value, dict) or _is_config(value))


def _pick(values: Mapping[str, Any], key: str, filename: str) -> Any:
    if key not in values:
        names = [name for name, value in values.items() if _is_public_config(name, value)]
        raise UnknownKeyError(f"{filename} defines no {key!r}{did_you_mean(key, names)}; it has {', '.join(names)}")
    value = values[key]
    return _as_config(value) if type(value) is dict else value


def _run_file(filename: str, importers: tuple[str, ...]) -> dict[str, Any]:
    """The namespace of a config file after it ran; ``importers`` are the files that led here."""
    path = filename if "://" in filename else os.path.abspath(filename)
    if path in importers:
        raise ImportError(f"config files import each other in a circle: {' -> '.join([*importers, path])}")
    known = loaded_user_file(path)
    if known is not None:
        # It has registered its parts as a module, and must not do so again under another name.
        return dict(vars(known))
    code = _compile(path)
    module = ModuleType("detlab_config_" + re.sub(r"\W", "_", os.path.splitext(path)[0]))
    # Dataclasses look their module up, and so does pickle for functions.
    sys.modules[module.__name__] = module
    namespace = module.__dict__
    namespace["__file__"] = path
    namespace["__builtins__"] = {**vars(builtins), "__import__": _importer_for(path, importers)}
    exec(code, namespace)
    return namespace


def _compile(path: str) -> CodeType:
    text = read_text(path, "config file")
    try:
        return compile(text, path, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if getattr(error, "filename", None) == path:
            raise
        raise ValueError(f"the config file {path} cannot be read as Python: {error or type(error).__name__}") from None


def _importer_for(path: str, importers: tuple[str, ...]) -> Callable[..., Any]:
    """What ``import`` does in the config file at ``path``."""

    def import_config(
        name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> Any:
        if level == 0:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        return _import_beside(path, (*importers, path), name, fromlist or (), level)

    return import_config


def _import_beside(path: str, importers: tuple[str, ...], name: str, members: Sequence[str], level: int) -> ModuleType:
    """The module that ``from <level dots><name> import <members>`` means in the config file at ``path``."""
    base = path
    for _ in range(level):
        base = os.path.dirname(base)
    base = os.path.join(base, *name.split(".")) if name else base
    file = next((f for f in (f"{base}.py", os.path.join(base, "__init__.py")) if PathManager.isfile(f)), None)
    if file is None and not PathManager.isdir(base):
        raise ImportError(f"{path} imports {'.' * level}{name}, but {base}.py does not exist, nor a folder {base}")
    module = ModuleType(f"{'.' * level}{name}")
    for key, value in (_run_file(file, importers) if file else {}).items():
        if not key.startswith("__"):
            setattr(module, key, _as_config(value) if type(value) is dict else value)
    for member in members:
        beside = os.path.join(base, f"{member}.py")
        if not hasattr(module, member) and PathManager.isfile(beside):
            setattr(module, member, _import_beside(path, importers, f"{name}.{member}".strip("."), (), level))
    return module


# -------------------------------------------------------------------------------------------------------- saving


def _container(cfg: Any) -> Any:
    """Plain dictionaries and lists, references between them left as text."""
    from omegaconf import OmegaConf, SCMode

    if not _is_config(cfg):
        return cfg
    return OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)


def _saveable(value: Any, path: str, lost: list[str]) -> Any:
    """``value`` as yaml can hold it; ``lost`` collects the paths of what could only be written as text."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _saveable(item, f"{path}.{key}", lost) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_saveable(item, f"{path}[{i}]", lost) for i, item in enumerate(value)]
    if _is_config(value):
        return _saveable(_container(value), path, lost)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _saveable(dump_dataclass(value), path, lost)
    if isinstance(value, numbers.Real) and not isinstance(value, enum.Enum):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    text = dotted_name(value)
    if not (path.endswith(f".{TARGET}") and _is_importable(text, value)):
        lost.append(path)
    return text


def _is_importable(name: str, value: Any) -> bool:
    try:
        return locate(name) is value
    except (ImportError, AttributeError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------------- to_py


def _assignments(value: Any, path: str) -> Iterator[str]:
    """``path = value`` for a call, a list or a plain value; for other dictionaries the same of each entry."""
    is_section = isinstance(value, Mapping) and TARGET not in value and all(str(key).isidentifier() for key in value)
    if is_section and value:
        for key, item in value.items():
            yield from _assignments(item, f"{path}.{key}")
    else:
        yield f"{path} = {_expression(value, '')}"


def _expression(value: Any, indent: str) -> str:
    """Python-like text of a value, broken into lines where it is long."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dump_dataclass(value)
    if isinstance(value, Mapping) and TARGET in value:
        parts = [(f"{key}=", item) for key, item in value.items() if key != TARGET]
        opening, closing = f"{dotted_name(value[TARGET])}(", ")"
    elif isinstance(value, Mapping):
        parts = [(f"{key!r}: ", item) for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, (list, tuple)):
        parts = [("", item) for item in value]
        opening, closing = "[", "]"
    else:
        return dotted_name(value) if callable(value) else repr(value)
    inner = indent + "    "
    texts = [f"{label}{_expression(item, inner)}" for label, item in parts]
    one_line = f"{opening}{', '.join(texts)}{closing}"
    if len(indent) + len(one_line) <= LINE_LENGTH and "\n" not in one_line:
        return one_line
    return f"{opening}\n" + "".join(f"{inner}{text},\n" for text in texts) + f"{indent}{closing}"


# ------------------------------------------------------------------------------------------------------ overrides


def _apply_override(cfg: DictConfig, override: str) -> None:
    match = re.fullmatch(r"(~|\+{0,2})([^=\s]+?)(?:=(.*))?", override, flags=re.DOTALL)
    action, key, text = match.groups(default="") if match else ("", "", "")
    if not match or ("=" in override) == (action == "~"):
        raise ValueError(
            f"cannot read the override {shown(override)}; write key=value, +key=value to add or ~key to remove"
        )
    section, leaf = _section_of(cfg, key, may_add=action.startswith("+"))
    exists = leaf in section if isinstance(section, Mapping) else _is_index(section, leaf)
    if action == "~":
        if not exists:
            raise _unknown(cfg, key, "")
        del section[leaf if isinstance(section, Mapping) else int(leaf)]
        return
    if not exists and not action and not _target_takes(section, leaf):
        raise _unknown(cfg, key, f"; to add it write +{override:.200}")
    _set(section, leaf, _parse_value(text, override))


def _section_of(cfg: DictConfig, key: str, may_add: bool) -> tuple[Any, str]:
    """The section that holds the last part of a dotted key, and that part."""
    *parents, leaf = key.split(".")
    section: Any = cfg
    for depth, part in enumerate(parents):
        if may_add and isinstance(section, Mapping) and part not in section:
            _set(section, part, {})
        if not (part in section if isinstance(section, Mapping) else _is_index(section, part)):
            raise _unknown(cfg, key, "")
        section = section[part if isinstance(section, Mapping) else int(part)]
        if not _is_config(section):
            raise KeyError(f"cannot set {key}: {'.'.join(parents[: depth + 1])} is the value {section!r}, no section")
    return section, leaf


def _is_index(section: Sequence[Any], text: str) -> bool:
    return text.isdecimal() and len(text) < 10 and int(text) < len(section)


def _target_takes(section: Any, name: str) -> bool:
    """Whether the section describes a call that has an argument of this name."""
    if not isinstance(section, Mapping) or TARGET not in section:
        return False
    try:
        parameters = inspect.signature(resolve_target(section[TARGET])).parameters
    except ValueError:  # some builtins do not tell their arguments
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _unknown(cfg: Any, key: str, cure: str) -> UnknownKeyError:
    return UnknownKeyError(
        f"unknown config key {key[:200]!r}{did_you_mean(key, _config_keys(_container(cfg), ''))}{cure}"
    )


def _config_keys(value: Any, prefix: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{prefix}{key}"
            yield from _config_keys(item, f"{prefix}{key}.")


def _set(section: Any, leaf: str, value: Any) -> None:
    value = _as_config(value) if isinstance(value, dict) else value
    if isinstance(section, Mapping):
        section[leaf] = value  # type: ignore[index]
    else:
        section[int(leaf)] = value


def _parse_value(text: str, override: str) -> Any:
    """A value from a command line, as yaml; tuples and the empty text are understood too."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not text:
        return text
    if text.startswith("("):
        return literal(text)
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read the override {shown(override)}: {reason[:200]}; put texts in quotes") from None
    if isinstance(value, dict) and any(":" in str(key) and item is None for key, item in value.items()):
        raise ValueError(f"cannot read the override {shown(override)}; write a space after each colon of a dictionary")
    return value
