"""Yaml configs: a tree of typed settings, and constructors that can be called with one.

Every error a config file or a command line can cause names the full dotted key and what to write instead.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import yaml
from fvcore.common.config import CfgNode as _FvcoreCfgNode
from yacs.config import CfgNode as _YacsCfgNode

from detlab.config.bases import load_with_bases
from detlab.config.compat import LATEST_VERSION, guess_version, upgrade_config
from detlab.config.defaults import DEFAULTS
from detlab.config.merging import PLACE, MergePlan, check_pairs, nest, place_of
from detlab.config.nearest import did_you_mean, probable_slip
from detlab.config.values import assigned_value, new_value, shown
from detlab.utils.file_io import open_text

logger = logging.getLogger(__name__)

# Beside the settings of a section, like its place: whether a file was merged into the config.
_FILE_MERGED = "_file_merged"
_named_new_keys: set[str] = set()


class CfgNode(_FvcoreCfgNode):
    """A section of settings, read and written as attributes.

    Merging is all or nothing: a file or an override list with an unknown key, a value of the wrong type, or one that
    the key may not hold (``detlab.config.constraints``) changes nothing. Only code may add keys
    (``cfg.MODEL.MY_HEAD = CfgNode({...})``), before it merges files.

    A config from ``get_cfg`` checks what is assigned to an attribute as well: it keeps the type of the setting, and
    takes what means the same (a list for a tuple, an int for a float, one text for a list of one, a number of numpy's).
    A new key that looks like a slip, or comes when files were merged already, is taken with a warning.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        full_key = place_of(self, name)
        if full_key is not None and not (self.is_frozen() or name in self.__dict__ or name.startswith("COMPUTED_")):
            value = self._checked(name, value, full_key)
        super().__setattr__(name, value)

    def _checked(self, name: str, value: Any, full_key: str) -> Any:
        """A value that is assigned, in the type of its setting; a dictionary becomes a section."""
        if name in self:
            value = assigned_value(value, self[name], full_key)
        else:
            value = new_value(value, full_key)
            self._warn_of_new_key(name, full_key, is_section=isinstance(value, Mapping))
        if isinstance(value, Mapping) and not isinstance(value, _YacsCfgNode):
            value = type(self)(value)
        if isinstance(value, CfgNode):
            value._note(PLACE, full_key)
        return value

    def _warn_of_new_key(self, name: str, full_key: str, is_section: bool) -> None:
        meant = probable_slip(name, self, whole=is_section)
        came_late = self.__dict__.get(_FILE_MERGED, False)
        if full_key in _named_new_keys or not (meant or came_late):
            return
        _named_new_keys.add(full_key)
        hint = f"did you mean {meant!r}?" if meant else "add it before files are merged, so that they can set it"
        logger.warning("%s is a new key of the config, which only code of your own can read; %s", full_key, hint)

    def _note(self, name: str, value: Any) -> None:
        """Keeps something about this section and those below it, beside their settings; a place grows on the way."""
        self.__dict__[name] = value
        for key, section in self.items():
            if isinstance(section, CfgNode):
                section._note(name, place_of(self, key) if name == PLACE else value)

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
            ValueError: if a file is not a mapping of settings, asks for Python objects, is its own base, or is far
                larger than a config. Names the file.
        """
        filename = os.fspath(filename)
        if filename.endswith(".py"):
            raise ValueError(
                f"{filename} is a Python config, which this program does not take: train it with "
                "tools/lazyconfig_train_net.py, or read it with LazyConfig.load"
            )
        return load_with_bases(cls._open_cfg, filename)

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Takes over the settings of a yaml file, its bases and their older key names included.

        Args:
            cfg_filename: a path, or a URL that ``PathManager`` opens.
            allow_unsafe: accepted for compatibility; a file cannot run code either way.

        Raises:
            UnknownKeyError: (a ``KeyError``) names the nearest known keys.
            ValueError: if a value has another type than the setting or is one that it may not hold, or the file
                cannot be read as settings.
        """
        loaded = type(self)(self.load_yaml_with_base(cfg_filename))
        self._merge([_of_latest_version(loaded, os.fspath(cfg_filename))], origin=f" in {cfg_filename}")
        self._note(_FILE_MERGED, True)

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
        check_pairs(cfg_list)
        trees = [nest(key, value) for key, value in zip(cfg_list[0::2], cfg_list[1::2])]
        self._merge(trees, origin=" in the overrides")

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The settings as yaml text; arguments go to ``yaml.safe_dump``."""
        return yaml.safe_dump(_plain(self), *args, **kwargs)

    def _merge(self, trees: Sequence[Mapping[str, Any]], origin: str) -> None:
        if self.is_frozen():
            raise AttributeError("this config is frozen; merge settings into a clone() after calling its defrost()")
        plan = MergePlan(self, origin)
        for tree in trees:
            plan.add(tree)
        plan.apply()


def _of_latest_version(loaded: CfgNode, filename: str) -> CfgNode:
    """The settings of a file, with the names that keys have now."""
    if "VERSION" not in loaded:
        loaded.VERSION = guess_version(loaded, filename)
    if type(loaded.VERSION) is not int:
        raise ValueError(f"VERSION must be a whole number, got {shown(loaded.VERSION)} in {filename}")
    try:
        return loaded if loaded.VERSION == LATEST_VERSION else upgrade_config(loaded)
    except ValueError as error:
        raise ValueError(f"{filename}: {error}") from None


def _plain(value: Any) -> Any:
    """Settings as fresh dictionaries and lists, which yaml writes without anchors and tags."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# ------------------------------------------------------------------------------------------------- global access

global_cfg: CfgNode = CfgNode()


def get_cfg() -> CfgNode:
    """A fresh config with every default; change it, then ``freeze()`` it."""
    cfg = CfgNode(DEFAULTS)
    cfg._note(PLACE, "")
    return cfg


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
