"""Files of weights, of each kind, to one form: ``{"model": {name: tensor or array}, ...}``.

Nothing in a file is run. A file that is damaged, or wants to run something, is refused with a sentence.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from detlab.checkpoint.pickle_reader import MAX_INT_BYTES, KeyLimits, UnsafePickleError, check_key
from detlab.checkpoint.restricted_pickle import is_known_dtype
from detlab.checkpoint.torch_file import RefusedTensorError, is_torch_archive, read_pickle, read_torch_archive
from detlab.utils.optional import require

__all__ = ["find_unloadable", "read_checkpoint"]

# Keys that other programs keep their weights under, in files that may hold more.
WEIGHT_KEYS = ("model", "model_state", "state_dict")
CURES_FOR_TENSORS = "to_dense() of sparse, dequantize() of quantized, and real weights in place of meta tensors"


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a local file by its extension.

    * ``.pkl``: the zoo of the reference, or weights of Caffe2; arrays and plain containers only.
    * ``.safetensors``: weights.
    * anything else: what ``torch.save`` wrote, of any age; tensors, arrays and plain containers only.

    A changed byte is noticed where the format has checksums, which is in what ``torch.save`` writes since torch 1.6.
    No file can make this take much more memory than its size.

    Returns:
        A dict with ``"model"`` and whatever else the file holds. ``"matching_heuristics"`` says that names should be
        matched by their ends, ``"__author__": "Caffe2"`` that they are blobs' names.

    Raises:
        UnsafePickleError: reading the file could run code.
        ValueError: the file is damaged or holds no weights.
        ImportError: the package that reads the format is missing.
    """
    if path.endswith(".pkl"):
        return _from_pickle(_read(path, _load), path)
    if path.endswith(".safetensors"):
        loader = require("safetensors.torch", extra="safetensors", purpose="reading .safetensors files")
        return {"model": _read(path, loader.load_file)}
    return _from_torch(_read(path, _load), path)


def _read(path: str, load: Any) -> Any:
    try:
        return load(path)
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} is not read, because {error}, and only arrays and plain containers are allowed: anything else in "
            "a pickle can run code. If you trust where it comes from, write its weights to a .safetensors file."
        ) from None
    except RefusedTensorError as error:
        raise ValueError(f"{path} is not read: {error}. Save it again with {CURES_FOR_TENSORS}.") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError, MemoryError):
        raise
    except Exception as error:
        # Damage shows up as nearly any exception, wherever the bytes stop making sense.
        size = os.path.getsize(path)
        raise ValueError(
            f"{path} ({size} bytes) is damaged or is not a checkpoint: {_first_sentence(error)}. "
            "Download or copy it again, or give an earlier checkpoint."
        ) from error


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().split("\n")[0].split(". ")[0]
    return (text or type(error).__name__)[:200].rstrip(".")


def _load(path: str) -> Any:
    with open(path, "rb") as file:
        return read_torch_archive(file) if is_torch_archive(file) else read_pickle(file.read())


def _from_pickle(data: Any, path: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a dict of weights")
    if isinstance(data.get("model"), dict):
        return data
    blobs = data["blobs"] if isinstance(data.get("blobs"), dict) else data
    weights = {
        name: value
        for name, value in blobs.items()
        # Optimizer state lies between the weights; Caffe2's own bookkeeping is no array.
        if isinstance(value, np.ndarray) and not str(name).endswith("_momentum")
    }
    if not weights:
        raise ValueError(f"{path} holds no weights; its keys are {_some(data)}")
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _from_torch(data: Any, path: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a dict of weights")
    for key in WEIGHT_KEYS:
        if isinstance(data.get(key), Mapping):
            rest = {name: value for name, value in data.items() if name != key}
            # Names of other programs seldom begin as those of this one do.
            hints = {} if key == "model" else {"matching_heuristics": True}
            return {"model": data[key], **rest, **hints}
    if data and all(isinstance(value, torch.Tensor | np.ndarray) for value in data.values()):
        return {"model": data}
    raise ValueError(f"{path} holds no weights; its keys are {_some(data)}")


def _some(data: Mapping) -> str:
    names = [repr(name)[:100] for name in data]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "none"


# Subclasses of these would be written as classes, which are refused.
PLAIN_TYPES = (type(None), bool, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)
MAX_INT = 2 ** (8 * MAX_INT_BYTES - 1)


def find_unloadable(value: Any, place: str = "", limits: KeyLimits | None = None) -> Iterator[str]:
    """Where a value to be saved holds something that :func:`read_checkpoint` would refuse to load again.

    Args:
        value: of any type.
        place: of the value, for the words.
        limits: of keys, shared by all that goes into one file.

    Yields:
        For example ``"trainer.hooks.3 is a MyState"``.
    """
    limits = limits or KeyLimits()
    if type(value) in (dict, OrderedDict, Counter):
        for index, (key, item) in enumerate(value.items()):
            yield from _find_bad_key(key, place, limits, index)
            yield from find_unloadable(item, f"{place}.{key}" if place else str(key), limits)
    elif type(value) is set:
        for item in value:
            yield from _find_bad_key(item, place, limits)
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from find_unloadable(item, f"{place}.{index}", limits)
    elif not (type(value) in PLAIN_TYPES or (type(value) is int and abs(value) < MAX_INT)):
        problem = _problem_of(value)
        if problem:
            yield f"{place} is {problem}"


def _find_bad_key(key: Any, place: str, limits: KeyLimits, index: int = -1) -> Iterator[str]:
    try:
        check_key(key)
        limits.take(key, index)
    except pickle.UnpicklingError as error:
        yield f"{place}: {error}"


def _problem_of(value: Any) -> str:
    """What keeps a tensor, an array or any other object from being loaded again."""
    if isinstance(value, np.ndarray | np.generic):
        return "" if is_known_dtype(value.dtype) else f"an array of the type {value.dtype}"
    if type(value) not in TENSOR_TYPES:
        return f"a {type(value).__module__}.{type(value).__qualname__}"
    if value.is_quantized or value.is_meta or value.is_conj() or value.is_neg() or value.layout != torch.strided:
        return "a tensor without plain storage (quantized, meta, sparse, nested, conjugated)"
    return ""
