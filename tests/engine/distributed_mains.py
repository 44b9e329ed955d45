"""Functions that started processes run; they have to be importable."""

import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from detlab.engine import run_lock
from detlab.engine.defaults import create_ddp_model
from detlab.engine.hooks import CallbackHook, PreciseBN
from detlab.engine.interruption import StoppedBySignal
from detlab.engine.train_loop import SimpleTrainer, TrainerBase
from detlab.utils import comm
from detlab.utils.events import EventStorage
from tests.engine.toys import Poisoned, ToyLoader, ToyModel, toy_trainer, weights


def write_place(folder):
    """Says where this process stands."""
    place = {
        "world": comm.get_world_size(),
        "local_rank": comm.get_local_rank(),
        "local_size": comm.get_local_size(),
        "backend": dist.get_backend(),
        "sum": sum(comm.all_gather(comm.get_rank() + 1)),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
    Path(folder, f"{comm.get_rank()}.json").write_text(json.dumps(place))


def fail_in_rank_1(folder):
    """Rank 0 waits for something that does not come."""
    if comm.get_rank() == 1:
        raise ValueError("the trouble with rank 1")
    time.sleep(60)
    Path(folder, "survived").touch()


class RankPart(ToyLoader):
    """The part of each batch that belongs to this rank."""

    def batch(self, number):
        items = super().batch(number)
        share = len(items) // comm.get_world_size()
        return items[comm.get_rank() * share : (comm.get_rank() + 1) * share]


class PoisonedPart(RankPart, Poisoned):
    """As ``Poisoned``, whose bad point is in the part of the first of two ranks."""


def train_ddp(folder, num_iters):
    """Trains a toy model on shares of the same batches and saves weights and metrics."""
    torch.manual_seed(0)
    model = ToyModel()
    model.dropout.p = 0.0
    model = create_ddp_model(model)
    trainer = SimpleTrainer(model, RankPart(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    trainer.train(0, num_iters)
    if comm.is_main_process():
        losses = [value for value, _ in trainer.storage.history("total_loss").values()]
        torch.save({"weights": weights(trainer), "losses": losses}, Path(folder, "trained.pth"))


def meet_a_bad_loss(folder):
    """Both ranks should stop in the same iteration, knowing about it, whenever losses are looked at."""
    for late in (False, True):
        np.random.seed(comm.get_rank())
        trainer = toy_trainer(PoisonedPart(2), async_write_metrics=late)
        try:
            trainer.train(0, 100)
        except FloatingPointError as error:
            Path(folder, f"{comm.get_rank()}_{late}.txt").write_text(f"{trainer.iter}\n{error}")


def save_after_a_bad_loss(folder):
    """Neither rank should have a state to save, also the one whose own losses are numbers."""
    trainer = toy_trainer(PoisonedPart(2), async_write_metrics=True)
    trainer.model = create_ddp_model(trainer.model)
    trainer.register_hooks([CallbackHook(after_step=lambda trainer: trainer.state_dict())])
    try:
        trainer.train(0, 100)
    except FloatingPointError as error:
        Path(folder, f"{comm.get_rank()}_not_saved.txt").write_text(f"{trainer.iter}\n{error}")


def gather_statistics(folder):
    """Statistics of batches that lie on two ranks."""
    torch.manual_seed(comm.get_rank())
    batches = [torch.randn(2, 3, 4 + comm.get_rank(), 5) + comm.get_rank() for _ in range(2)]
    norm = nn.BatchNorm2d(3)
    hook = PreciseBN(0, norm, batches, 2)
    hook.trainer = type("Trainer", (), {"iter": 0})
    with EventStorage():
        hook.update_stats()
    torch.save({"batches": batches, "mean": norm.running_mean, "var": norm.running_var},
               Path(folder, f"{comm.get_rank()}.pth"))  # fmt: skip


def write_metrics_of_different_models(folder):
    """The ranks have losses of other names, and then more of them than usual."""
    rank = comm.get_rank()
    with EventStorage() as storage:
        SimpleTrainer.write_metrics({"loss_a": torch.tensor(1.0 + rank), f"loss_{rank}": torch.tensor(4.0)}, rank, 0)
        many = {f"loss_many_{i}": torch.tensor(float(i + rank)) for i in range(100)}
        SimpleTrainer.write_metrics(many, 0.0, 1)
    if comm.is_main_process():
        values = {name: value for name, (value, _) in storage.latest().items()}
        Path(folder, "metrics.json").write_text(json.dumps(values))


class StepsWithoutLosses(TrainerBase):
    """Nothing of a step is exchanged between the ranks."""

    def run_step(self):
        pass


def stop_when_one_is_told(folder):
    """A signal comes to rank 1 only; where both ranks stop is written down, for several kinds of trainers."""
    trainers = [toy_trainer(), toy_trainer(gather_metric_period=5), toy_trainer(async_write_metrics=True)]
    stops = []
    for trainer in [*trainers, StepsWithoutLosses()]:

        def tell(trainer):
            if comm.get_rank() == 1 and trainer.iter == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        trainer.register_hooks([CallbackHook(before_step=tell)])
        try:
            trainer.train(0, 1000)
        except StoppedBySignal as stopped:
            stops.append((trainer.iter, stopped.code, stopped.on_all_ranks))
    Path(folder, f"{comm.get_rank()}_stops.json").write_text(json.dumps(stops))


def meet_in_a_directory_in_use(folder):
    """Only rank 0 looks at the directory."""
    in_use = Path(folder, "in_use")
    if comm.is_main_process():
        in_use.mkdir()
        (in_use / run_lock.FILE_NAME).write_text(json.dumps({"machine": "another", "pid": 7, "host": "elsewhere"}))
    try:
        run_lock.lock_output_dir(str(in_use))
    except run_lock.OutputDirInUseError as error:
        Path(folder, f"{comm.get_rank()}_refused.txt").write_text(str(error))


def be_busy(folder):
    """Trains until it is stopped; says so in a file when it is at it, and whether it saw the end."""
    trainer = toy_trainer()
    # At its usual rate the loss grows until it is not finite, which ends the training in ten seconds.
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    mark = Path(folder, f"{comm.get_rank()}_{os.getpid()}")
    trainer.register_hooks([CallbackHook(after_step=lambda _: mark.touch() if trainer.iter == 3 else time.sleep(0.01))])
    trainer.train(0, 10**9)


def load_tool(name):
    """A file of tools/ as a module."""
    path = Path(__file__).resolve().parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_train_net(args):
    """The main function of tools/train_net.py."""
    return load_tool("train_net").main(args)


def say_rank(folder):
    """For torchrun."""
    Path(folder, f"{comm.get_rank()}_of_{comm.get_world_size()}").write_text(os.environ["LOCAL_RANK"])
    return "done"


def run_all(folder):
    """All of the above that end well, as starting processes takes longest."""
    write_place(folder)
    meet_a_bad_loss(folder)
    save_after_a_bad_loss(folder)
    write_metrics_of_different_models(folder)
    gather_statistics(folder)
    train_ddp(folder, 10)
    stop_when_one_is_told(folder)
    meet_in_a_directory_in_use(folder)
