"""From a description of a call, ``{"_target_": callable or dotted name, argument: value}``, to its result."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from detlab.config.nearest import did_you_mean
from detlab.utils.registry import locate, qualified_name

__all__ = ["dotted_name", "dump_dataclass", "instantiate"]

TARGET = "_target_"
RECURSIVE = "_recursive_"


def instantiate(cfg: Any) -> Any:
    """Calls ``cfg._target_`` with the other entries of ``cfg`` as arguments, innermost descriptions first.

    A description comes from ``LazyCall``, from yaml, or is a plain dict. Lists and tuples are gone through and come
    back as plain ones. Anything else, a dictionary without ``_target_`` among it, is given back as it is. An entry
    ``_recursive_: False`` hands inner descriptions to the target as they are.

    The target may be any importable callable: instantiate only configs that you would run as code, and yaml files that
    ``LazyConfig.load`` has read, which refuses other targets than parts of models and trainings.

    Raises:
        TypeError: if the target cannot be called, or not with these arguments.
    """
    from omegaconf import DictConfig, OmegaConf

    if isinstance(cfg, list) or OmegaConf.is_list(cfg):
        return [instantiate(item) for item in cfg]
    if type(cfg) is tuple or (OmegaConf.is_config(cfg) and not OmegaConf.is_dict(cfg)):
        return tuple(instantiate(item) for item in cfg)
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if isinstance(cfg, Mapping) and TARGET in cfg:
        return _call_target(cfg)
    return cfg


def _call_target(cfg: Mapping[str, Any]) -> Any:
    arguments = {key: value for key, value in cfg.items() if key not in (TARGET, RECURSIVE)}
    if cfg.get(RECURSIVE, True):
        arguments = {key: instantiate(value) for key, value in arguments.items()}
    target = resolve_target(cfg[TARGET])
    try:
        return target(**arguments)
    except TypeError as error:
        reason = _why_not_callable_with(target, arguments)
        if reason is None:
            raise
        raise TypeError(f"{dotted_name(target)} cannot be called as configured: {reason}") from error


def resolve_target(target: Any) -> Callable[..., Any]:
    """The callable that a ``_target_`` stands for: itself, its dotted name, or a description that builds it.

    Raises:
        TypeError: if that is no callable.
    """
    found = locate(target) if isinstance(target, str) else instantiate(target)
    if not callable(found):
        raise TypeError(f"{TARGET} {target!r} is not callable; give a class, a function or the dotted name of one")
    return found


def _why_not_callable_with(target: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with the names of ``arguments``; None if nothing is, or the target does not say what it takes."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        unknown = [name for name in arguments if name not in signature.parameters]
        return str(error) + "".join(did_you_mean(name, signature.parameters) for name in unknown[:1])
    return None


def dotted_name(target: Any) -> str:
    """``"package.module.Name"`` of a class or function, in its defining file; other values by their ``repr``."""
    if isinstance(target, str):
        return target
    try:
        return qualified_name(target)
    except ValueError:
        return repr(target)


def dump_dataclass(obj: Any) -> dict[str, Any]:
    """The description that ``instantiate`` turns back into a dataclass instance, inner dataclasses included.

    Raises:
        TypeError: if ``obj`` is not an instance of a dataclass.
    """
    if not dataclasses.is_dataclass(obj) or isinstance(obj, type):
        raise TypeError(f"dump_dataclass needs an instance of a dataclass, got {obj!r}")
    description: dict[str, Any] = {TARGET: dotted_name(type(obj))}
    for field in dataclasses.fields(obj):
        description[field.name] = _dump_value(getattr(obj, field.name))
    return description


def _dump_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dump_dataclass(value)
    if isinstance(value, (list, tuple)):
        return [_dump_value(item) for item in value]
    return value
