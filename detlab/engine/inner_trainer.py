"""``trainer._trainer``, for programs that were written for the reference.

There a trainer made from a config runs the steps of a second one, its ``_trainer``, and programs reach into it: they
take batches from it in a ``run_step`` of their own, or put a trainer of their own in its place. Here one trainer runs
one step. So the trainer can be seen as that second one, and a trainer can stand in the place of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from detlab.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, StepTrainer, TrainerBase, held_by
from detlab.engine.train_step import MixedPrecision

__all__ = ["StepOfTrainer", "seen_as_simple_trainer"]


def seen_as_simple_trainer(trainer: StepTrainer) -> SimpleTrainer:
    """The same trainer, with the methods of :class:`SimpleTrainer`, or of :class:`AMPTrainer` in mixed precision.

    Not a copy: all that is read and set is the trainer's. Its ``run_step`` is the plain one, whatever the trainer's
    class makes of it.
    """
    kind = AMPTrainer if isinstance(trainer._one_step.arithmetic, MixedPrecision) else SimpleTrainer
    view = kind.__new__(kind)
    view.__dict__ = trainer.__dict__
    return view


class StepOfTrainer:
    """A trainer in the place of a :class:`~detlab.engine.train_step.TrainStep`: its ``run_step`` is the step.

    Args:
        trainer: has ``iter``, ``run_step`` and, as far as they are asked for, ``model``, ``data_loader``,
            ``optimizer``, ``state_dict`` and ``load_state_dict``.
        hooks: of the trainer that runs this step; one without hooks of its own calls them after the backward pass.
    """

    model = held_by("trainer.model", "The trainer's.")
    data_loader = held_by("trainer.data_loader", "The trainer's.")
    optimizer = held_by("trainer.optimizer", "The trainer's.")

    def __init__(self, trainer: Any, hooks: list[HookBase]) -> None:
        self.trainer = trainer
        self._shares_hooks = isinstance(trainer, TrainerBase) and not trainer.hooks
        if self._shares_hooks:
            trainer._hooks = hooks

    @property
    def gather_metric_period(self) -> int:
        """The trainer's, or 1."""
        return getattr(self.trainer, "gather_metric_period", 1)

    def tell(self, iteration: int, max_iter: float) -> None:
        """Let the trainer know where training is."""
        self.trainer.iter, self.trainer.max_iter = iteration, max_iter

    def run(
        self,
        iteration: int,
        max_iter: float,
        after_backward: Callable[[], None],
        write: Callable[..., None] | None = None,
    ) -> None:
        """The trainer's ``run_step``, with its own ``after_backward`` and its own way to write metrics."""
        self.tell(iteration, max_iter)
        self.trainer.run_step()

    def batches(self, iteration: int) -> Iterator[Any]:
        """The trainer's."""
        self.trainer.iter = iteration
        return self.trainer._data_loader_iter

    def reset_data_loader(self, data_loader_builder: Callable[[], Any]) -> None:
        """See :meth:`SimpleTrainer.reset_data_loader`."""
        self.trainer.reset_data_loader(data_loader_builder)

    def begin_elsewhere(self, iteration: int) -> None:
        """See ``TrainStep.begin_elsewhere``."""
        if isinstance(self.trainer, TrainerBase):
            self.trainer._begin_elsewhere(iteration)

    def look_at_losses(self, keep: int = 0, write: Callable[..., None] | None = None) -> None:
        """Let the trainer write all that it has kept back of the metrics."""
        if isinstance(self.trainer, TrainerBase):
            self.trainer.flush_metrics()

    def state_dict(self) -> dict[str, Any]:
        """The trainer's; the states of shared hooks are left to whom they are shared with."""
        state = self.trainer.state_dict()
        return {**state, "hooks": {}} if self._shares_hooks else state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``."""
        self.trainer.load_state_dict({**state_dict, "hooks": {}} if self._shares_hooks else dict(state_dict))
