"""Saving every so many iterations, and keeping only the newest files."""

from __future__ import annotations

import os
import re
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _FvcorePeriodicCheckpointer

__all__ = ["PeriodicCheckpointer"]


class PeriodicCheckpointer(_FvcorePeriodicCheckpointer):
    """Saves ``<prefix>_<iteration>.pth`` every ``period`` iterations and ``<prefix>_final.pth`` at the end.

    The directory is tried out at once, not at the first save. With ``max_to_keep``, files that a resumed run had
    written before count too.

    Args:
        checkpointer: saves.
        period: iterations between two checkpoints.
        max_iter: of the run; None for no final checkpoint.
        max_to_keep: how many periodic checkpoints to keep; None keeps all.
        file_prefix: of the names.

    Raises:
        OSError: the directory cannot be written.
        ValueError: ``period`` or ``max_to_keep`` is not positive.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        max_iter: int | None = None,
        max_to_keep: int | None = None,
        file_prefix: str = "model",
    ):
        if period < 1 or (max_to_keep is not None and max_to_keep < 1):
            raise ValueError(
                f"period={period} and max_to_keep={max_to_keep} must be positive (SOLVER.CHECKPOINT_PERIOD)"
            )
        super().__init__(checkpointer, period, max_iter, max_to_keep, file_prefix)
        self._looked_for_earlier = False
        self._saved_iteration: int | None = None
        if hasattr(checkpointer, "check_save_dir"):
            checkpointer.check_save_dir()

    def step(self, iteration: int, **kwargs: Any) -> None:
        """To be called after every iteration.

        Args:
            iteration: counted from 0.
            kwargs: further data to save.
        """
        if not self._looked_for_earlier:
            self._looked_for_earlier = True
            self.recent_checkpoints = self._files_before(int(iteration)) if self.max_to_keep else []
        state = {"iteration": int(iteration), **kwargs}
        if (iteration + 1) % self.period == 0:
            self._save_and_forget_oldest(f"{self.file_prefix}_{iteration:07d}", state)
        if self.max_iter is not None and iteration >= self.max_iter - 1:
            self.checkpointer.save(f"{self.file_prefix}_final", **state)
            self._saved_iteration = int(iteration)

    def save_if_missing(self, iteration: int, **kwargs: Any) -> None:
        """Save ``<prefix>_<iteration>.pth`` although it may not be time, unless a checkpoint of the iteration is there.

        Args:
            iteration, kwargs: see :meth:`step`.
        """
        if iteration != self._saved_iteration:
            self._save_and_forget_oldest(f"{self.file_prefix}_{iteration:07d}", {"iteration": int(iteration), **kwargs})

    def _files_before(self, iteration: int) -> list[str]:
        """Checkpoints of earlier iterations, oldest first; later ones belong to another run."""
        folder = self.checkpointer.save_dir
        if not folder or not self.path_manager.isdir(folder):
            return []
        pattern = re.compile(re.escape(self.file_prefix) + r"_(\d{7,})\.pth")
        found = [
            (int(match.group(1)), name) for name in self.path_manager.ls(folder) if (match := pattern.fullmatch(name))
        ]
        return [os.path.join(folder, name) for number, name in sorted(found) if number < iteration]

    def _save_and_forget_oldest(self, name: str, state: dict[str, Any]) -> None:
        self.checkpointer.save(name, **state)
        self._saved_iteration = state["iteration"]
        if self.max_to_keep is None or not self.checkpointer.save_to_disk:
            return
        self.recent_checkpoints.append(os.path.join(self.checkpointer.save_dir, f"{name}.pth"))
        while len(self.recent_checkpoints) > self.max_to_keep:
            oldest = self.recent_checkpoints.pop(0)
            if self.path_manager.exists(oldest):
                self.path_manager.rm(oldest)
