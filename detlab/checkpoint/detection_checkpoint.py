"""Saving a run so that a kill loses nothing, and loading weights of many origins."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detlab.checkpoint.c2_model_loading import align_and_update_state_dicts, strip_prefix
from detlab.checkpoint.catalog import fetch
from detlab.checkpoint.finite import check_finite, check_real
from detlab.checkpoint.formats import find_unloadable, read_checkpoint
from detlab.checkpoint.key_report import IncompatibleKeys, ShapeMismatch, describe_mismatches, describe_names
from detlab.checkpoint.optimizer_state import check_optimizer_state
from detlab.checkpoint.run_state import check_iteration, check_scheduler_state, check_trainer_state
from detlab.checkpoint.torchvision_names import are_torchvision_resnet_names, convert_torchvision_resnet_names
from detlab.utils import comm
from detlab.utils.file_io import PathManager, read_text, write_atomically
from detlab.utils.folder_watch import before_writing

__all__ = ["DetectionCheckpointer"]

LAST_CHECKPOINT = "last_checkpoint"
# Set by the config, not learned: their absence from a file of weights says nothing.
CONSTANT_BUFFERS = ("pixel_mean", "pixel_std")
# Old checkpoints hold the anchors, which are computed from the config.
IGNORED_IN_FILES = "anchor_generator.cell_anchors"


class DetectionCheckpointer(Checkpointer):
    """Saves and loads a model with whatever else has a ``state_dict``.

    A checkpoint is written beside its place and moved there when it is whole. The file ``last_checkpoint`` changes
    after that: a run killed at any moment leaves a checkpoint to go on from.

    Weights are read from ``.pth``, ``.safetensors`` and the ``.pkl`` files of the reference's and Caffe2's model zoos,
    by path, address, ``detectron2://``, ``catalog://`` or ``torchvision://``, without running anything that a file
    contains. Names that differ from the model's are matched by their ends for files that ask for it, as the zoo's
    backbones do, for ResNets of torchvision, for plain weights of which the model knows no name, and when
    ``?matching_heuristics=True`` follows the path.

    Args:
        model: whose weights to save and load; a distributed wrapper is taken off.
        save_dir: directory of the checkpoints; empty for loading only.
        save_to_disk: whether this process writes; the main process does by default.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, by the name to save them under.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.path_manager = PathManager
        self.logger = logging.getLogger(__name__)
        self._is_distributed = isinstance(model, DistributedDataParallel)

    def check_save_dir(self) -> None:
        """Makes the directory, and proves that a file can be written there; call it before a long run.

        Raises:
            OSError: it cannot be written.
        """
        if not self.save_dir or not self.save_to_disk or "://" in self.save_dir:
            return
        try:
            os.makedirs(self.save_dir, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.save_dir, prefix=".probe"):
                pass
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoints cannot be written to {self.save_dir!r} ({error.strerror}); set OUTPUT_DIR to a directory "
                "that you may write to",
            ) from None

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` and makes it the last checkpoint; does nothing where nothing is to be saved.

        Args:
            name: of the file, without extension.
            kwargs: further plain data to save.

        Raises:
            TypeError: some state holds an object that a safe load would refuse.
            OSError: the file cannot be written; earlier ones are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        basename = f"{name}.pth"
        if os.path.basename(basename) != basename:
            raise ValueError(f"{name!r}: a checkpoint's name holds no directory; save_dir is {self.save_dir!r}")
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        self._refuse_unloadable(data)
        before_writing(self.save_dir)
        self.check_save_dir()
        path = os.path.join(self.save_dir, basename)
        self.logger.info("Saving checkpoint to %s", path)
        self._write(path, data)
        self.tag_last_checkpoint(basename)

    def _refuse_unloadable(self, data: dict[str, Any]) -> None:
        problems = list(find_unloadable(data))
        if problems:
            raise TypeError(
                "a checkpoint holds tensors, arrays, numbers, texts and plain containers of these, because nothing "
                f"else can be loaded safely; but {'; '.join(problems[:5])}. Return plain values from state_dict()."
            )

    def _write(self, path: str, data: dict[str, Any]) -> None:
        try:
            with write_atomically(path) as file:
                torch.save(data, file)
        except (OSError, RuntimeError) as error:
            # torch hides a full disk behind a RuntimeError about positions in the file.
            cause = _first_os_error(error)
            if cause is None:
                raise
            raise OSError(
                cause.errno,
                f"checkpoint {path!r} was not written ({cause.strerror or cause}); earlier checkpoints are whole. Make "
                "room on the disk, or set OUTPUT_DIR to a larger one, and go on with --resume",
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Records which file ``resume`` goes on from."""
        with write_atomically(os.path.join(self.save_dir, LAST_CHECKPOINT), "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:  # type: ignore[override]
        """Loads weights, and the state of other objects.

        Weights that the file lacks, that the model lacks, or that differ in shape are listed in the log and left as
        they are. In a distributed run all ranks must call it; what only the main process can read is sent to the
        others.

        Args:
            path: path or address; empty loads nothing.
            checkpointables: names of the objects to load; None loads all that the file holds.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError: there is no such file (for the main process).
            UnsafePickleError: reading the file could run code.
            ValueError: the file is damaged, names in it are ambiguous, weights in it are not finite, or the state of
                an object does not fit.
        """
        if not path:
            self.logger.info("No checkpoint given. Initializing model from scratch")
            return {}
        self.logger.info("Loading from %s ...", path)
        checkpoint = self._read_on_all_ranks(path) if self._is_distributed else self._read(path)
        try:
            if "iteration" in checkpoint and self.checkpointables and checkpointables != []:
                check_iteration(checkpoint["iteration"], "iteration")
            incompatible = self._load_model(checkpoint)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        self._log_incompatible_keys(incompatible)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self._load_object(key, checkpoint.pop(key), path)
        return checkpoint

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Goes on from the last checkpoint, with everything, or begins with the weights of ``path`` alone.

        Args:
            path: as for :meth:`load`.
            resume: go on from the last checkpoint, if there is one.

        Returns:
            As :meth:`load`.
        """
        last = self.get_checkpoint_file() if resume else ""
        if self._is_distributed:
            # Ranks on another machine may not see the directory; all must load the same.
            last = comm.broadcast(last)
        return self.load(last) if last else self.load(path, checkpointables=[])

    def _load_object(self, key: str, state: Any, path: str) -> None:
        self.logger.info("Loading %s from %s ...", key, path)
        target = self.checkpointables[key]
        try:
            if isinstance(target, torch.optim.Optimizer):
                check_optimizer_state(target, state, "the checkpoint", model=self.model)
            elif isinstance(target, torch.optim.lr_scheduler.LRScheduler):
                check_scheduler_state(target, state)
            elif hasattr(target, "iter"):
                check_trainer_state(state)
            target.load_state_dict(state)
        except Exception as error:
            raise ValueError(
                f"the state of {key!r} in {path} does not fit ({error}). Go back to the settings of that run; or begin "
                "anew, without --resume, in another OUTPUT_DIR and with MODEL.WEIGHTS set to this file"
            ) from error

    def _read(self, path: str) -> dict[str, Any]:
        file_path, query = _split_query(path)
        checkpoint = self._load_file(fetch(file_path))
        if query.get("matching_heuristics") == ["True"]:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _read_on_all_ranks(self, path: str) -> dict[str, Any]:
        """Every rank reads the file itself, unless some cannot see it."""
        file_path = _split_query(path)[0]
        problems = comm.all_gather(_problem_of_fetching(file_path))
        if problems[0]:
            raise FileNotFoundError(f"{problems[0]} (as the main process sees it)")
        blind = [rank for rank, problem in enumerate(problems) if problem]
        if not blind:
            return self._read(path)
        self.logger.warning("ranks %s cannot see %s; the main process sends it to them", blind, file_path)
        return self._read_for_all_ranks(path)

    def _read_for_all_ranks(self, path: str) -> dict[str, Any]:
        """The main process reads; an error of its is raised by all, as none may be left waiting for the file."""
        checkpoint, problem = None, None
        if comm.is_main_process():
            try:
                checkpoint = self._read(path)
            except Exception as error:
                problem = error
        checkpoint, problem = comm.broadcast((checkpoint, problem))
        if problem is not None:
            raise problem
        return checkpoint

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> IncompatibleKeys:
        """Brings the file's names to the model's, copies what fits, and says what does not."""
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        strip_prefix(weights, "module.")
        weights = checkpoint["model"] = self._rename(weights, checkpoint)
        model_state = self.model.state_dict()
        known = {name: value for name, value in weights.items() if name in model_state}
        check_real(known, model_state)
        check_finite(known, model_state)
        return self._without_harmless(super()._load_model(checkpoint))

    def _rename(self, weights: dict[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        model_state = self.model.state_dict()
        asked_for = checkpoint.get("matching_heuristics", False)
        has_own_resnet = any(name.endswith("stem.conv1.weight") for name in model_state)
        if has_own_resnet and are_torchvision_resnet_names(weights):
            weights = convert_torchvision_resnet_names(weights)
        if not asked_for and model_state.keys() & weights.keys():
            return weights
        from_caffe2 = checkpoint.get("__author__") == "Caffe2"
        try:
            return align_and_update_state_dicts(model_state, weights, c2_conversion=from_caffe2)
        except ValueError:
            if asked_for:
                raise
            return weights

    def _without_harmless(self, incompatible: Any) -> IncompatibleKeys:
        return IncompatibleKeys(
            missing_keys=[name for name in incompatible.missing_keys if not _is_constant(name)],
            unexpected_keys=[name for name in incompatible.unexpected_keys if IGNORED_IN_FILES not in name],
            incorrect_shapes=[ShapeMismatch(*entry) for entry in incompatible.incorrect_shapes],
        )

    def _log_incompatible_keys(self, incompatible: IncompatibleKeys) -> None:
        missing, unexpected, mismatches = incompatible
        # These are missing too, but have been explained better.
        missing = sorted(set(missing) - {mismatch.name for mismatch in mismatches})
        missing = self._without_shared(missing)
        if mismatches:
            self.logger.warning("Not loaded, because shapes differ:\n%s", describe_mismatches(mismatches))
        if missing:
            self.logger.warning("Not in the checkpoint, left as initialized:\n%s", describe_names(missing))
        if unexpected:
            self.logger.warning("In the checkpoint, but not in the model:\n%s", describe_names(unexpected))
        num_learned = sum(not _is_constant(name) for name in self.model.state_dict())
        if missing and len(missing) + len(mismatches) >= num_learned:
            self.logger.error("NOTHING was loaded: the checkpoint is of another model")

    def _without_shared(self, missing: list[str]) -> list[str]:
        """Drops names of tensors that were loaded under another of their names."""
        state = self.model.state_dict()
        loaded = {value.data_ptr() for name, value in state.items() if name not in set(missing) and value.numel()}
        return [name for name in missing if name not in state or state[name].data_ptr() not in loaded]

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            if not isinstance(name, str):
                raise ValueError(f"a weight has the name {name!r}, a {type(name).__name__}; names are texts")
            if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
                state_dict[name] = _to_tensor(np.asarray(value))
            elif not isinstance(value, torch.Tensor):
                kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
                raise ValueError(f"{name!r} is no weight but a value of the type {kind}")

    def has_checkpoint(self) -> bool:
        """Whether ``save_dir`` holds a checkpoint to go on from."""
        return bool(self.save_dir) and super().has_checkpoint()

    def get_checkpoint_file(self) -> str:
        """Path of the last checkpoint, or an empty text when there is none.

        Raises:
            FileNotFoundError: the file that ``last_checkpoint`` names is gone.
        """
        if not self.has_checkpoint():
            return ""
        name = self._read_last_name()
        path = os.path.join(self.save_dir, name)
        if not name or not self.path_manager.isfile(path):
            others = sorted(os.path.basename(file) for file in self.get_all_checkpoint_files())
            raise FileNotFoundError(
                f"{self.save_dir}/{LAST_CHECKPOINT} names {name[:100]!r}, which is not there; checkpoints that are: "
                f"{', '.join(others) or 'none'}. Write one of them into {LAST_CHECKPOINT}, or start without --resume."
            )
        return path

    def _read_last_name(self) -> str:
        """The content of ``last_checkpoint``; empty if it is no name of a file."""
        try:
            name = read_text(os.path.join(self.save_dir, LAST_CHECKPOINT)).strip()
        except ValueError as error:
            self.logger.error("%s", error)
            return ""
        return name if name.isprintable() else ""


def _problem_of_fetching(path: str) -> str:
    try:
        fetch(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _first_os_error(error: BaseException | None) -> OSError | None:
    """The one that began a chain of exceptions."""
    found = None
    while error is not None:
        found = error if isinstance(error, OSError) else found
        error = error.__context__
    return found


def _is_constant(name: str) -> bool:
    return name.rpartition(".")[2] in CONSTANT_BUFFERS


def _split_query(path: str) -> tuple[str, dict[str, list[str]]]:
    """``"x.pkl?matching_heuristics=True"`` to path and query; a ``?`` in the name of an existing file is kept."""
    base, mark, query = path.rpartition("?")
    if not mark or "=" not in query or os.path.isfile(path):
        return path, {}
    return base, parse_qs(query)


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    # Files from other machines may have the other byte order; arrays read from a buffer are read-only.
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
