"""Ending a training by a signal: when, with what saved, and what is left alone."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.engine import hooks, interruption
from detlab.engine.interruption import StoppedBySignal
from tests.engine.toys import toy_trainer, weights

NUM_ITERS = 6
STOP_AT = 3
USUAL_HANDLERS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Whatever runs the tests may handle signals itself."""
    before = {number: signal.signal(number, usual) for number, usual in USUAL_HANDLERS.items()}
    yield
    assert {number: signal.getsignal(number) for number in USUAL_HANDLERS} == USUAL_HANDLERS
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers):
    """To this process, whose handlers run before this returns."""
    for number in numbers:
        os.kill(os.getpid(), number)


def call_at(moment, function, iteration=STOP_AT):
    """A hook that calls a function in one iteration."""
    return hooks.CallbackHook(**{moment: lambda trainer: function() if trainer.iter == iteration else None})


class Noting(hooks.HookBase):
    """Notes what it was called for."""

    def __init__(self):
        self.calls = []

    def after_step(self):
        self.calls.append(("after_step", self.trainer.iter))

    def before_stop(self):
        self.calls.append(("before_stop", self.trainer.iter))

    def after_train(self):
        self.calls.append(("after_train", self.trainer.iter))


def trainer_in(folder, *more_hooks, period=100, **kwargs):
    """A toy that saves to a folder; the hooks come before and after that which saves."""
    trainer = toy_trainer(**kwargs)
    checkpointer = DetectionCheckpointer(trainer.model, str(folder), trainer=trainer)
    before = [hook for hook in more_hooks if isinstance(hook, hooks.CallbackHook)]
    after = [hook for hook in more_hooks if not isinstance(hook, hooks.CallbackHook)]
    trainer.register_hooks([*before, hooks.PeriodicCheckpointer(checkpointer, period), *after])
    return trainer, checkpointer


def saved(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["before_step", "after_backward"])
@pytest.mark.parametrize("kwargs", [{}, {"async_write_metrics": True}, {"gather_metric_period": 4}])
def test_a_signal_ends_training_after_the_step_and_a_resumed_run_ends_bitwise_the_same(
    tmp_path, capfd, number, status, moment, kwargs
):
    whole, _ = trainer_in(tmp_path / "whole", **kwargs)
    np.random.seed(1)
    whole.train(0, NUM_ITERS)

    noting = Noting()
    stopped, _ = trainer_in(tmp_path / "a", call_at(moment, lambda: send(number)), noting, **kwargs)
    np.random.seed(1)
    with pytest.raises(StoppedBySignal) as caught:
        stopped.train(0, NUM_ITERS)
    assert caught.value.code == status
    assert isinstance(caught.value, SystemExit)
    assert isinstance(caught.value, KeyboardInterrupt) == (number == signal.SIGINT)
    assert saved(tmp_path / "a") == [f"model_{STOP_AT:07d}.pth"]
    assert noting.calls[-3:] == [("after_step", STOP_AT), ("before_stop", STOP_AT), ("after_train", STOP_AT)]
    # Also what is looked at later than in the step.
    assert stopped.storage.latest()["total_loss"][1] == STOP_AT
    assert capfd.readouterr().err.count("stopping after this step") == 1

    resumed, checkpointer = trainer_in(tmp_path / "a", seed=77, **kwargs)
    checkpointer.resume_or_load("", resume=True)
    resumed.train(resumed.iter + 1, NUM_ITERS)
    assert weights(resumed).equal(weights(whole))


def test_a_checkpoint_that_was_due_is_not_saved_twice(tmp_path, caplog):
    caplog.set_level("INFO")
    trainer, _ = trainer_in(tmp_path, call_at("before_step", lambda: send(signal.SIGTERM)), period=STOP_AT + 1)
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    assert caplog.text.count("Saving checkpoint") == 1


def test_a_signal_in_the_last_step_leaves_the_final_checkpoint_and_no_evaluation(tmp_path):
    evaluations = []
    trainer, _ = trainer_in(
        tmp_path,
        call_at("before_step", lambda: send(signal.SIGTERM), NUM_ITERS - 1),
        hooks.EvalHook(0, lambda: evaluations.append(1)),
    )
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == ["model_final.pth"]
    assert evaluations == []


def test_signals_within_a_second_are_one_request(tmp_path):
    """A terminal, a parent and timeout(1) may all pass on the same one."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    trainer, _ = trainer_in(tmp_path, call_at("before_step", lambda: send(*numbers)))
    with pytest.raises(StoppedBySignal, match="130"):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == [f"model_{STOP_AT:07d}.pth"]


@pytest.mark.parametrize("moment", ["before_step", "after_step"])
def test_a_second_signal_ends_at_once(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(interruption, "_ONE_REQUEST_SECONDS", 0.0)
    noting = Noting()

    def twice():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        pytest.fail("it went on")

    trainer, _ = trainer_in(tmp_path, call_at(moment, twice), noting)
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == []
    assert noting.calls[-2:] == [("after_step", STOP_AT - 1), ("after_train", STOP_AT)]


def test_an_evaluation_is_stopped_where_it_is_and_the_checkpoint_is_there(tmp_path, caplog):
    def evaluate():
        send(signal.SIGTERM)
        pytest.fail("the evaluation went on")

    noting = Noting()
    trainer, _ = trainer_in(tmp_path, hooks.EvalHook(STOP_AT + 1, evaluate), noting)
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == [f"model_{STOP_AT:07d}.pth"]
    assert noting.calls[-2:] == [("before_stop", STOP_AT), ("after_train", STOP_AT)]
    assert "evaluation after 4 iterations was stopped" in caplog.text


_calls_before_fork = []
os.register_at_fork(before=lambda: [call() for call in _calls_before_fork])


def test_a_signal_that_comes_while_a_data_worker_is_started_is_not_swallowed(tmp_path, monkeypatch):
    def evaluate():
        monkeypatch.setattr(f"{__name__}._calls_before_fork", [lambda: send(signal.SIGTERM)])
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        process.start()
        processes.append(process)
        monkeypatch.undo()
        time.sleep(10)
        pytest.fail("the evaluation went on")

    processes = []
    trainer, _ = trainer_in(tmp_path, hooks.EvalHook(STOP_AT + 1, evaluate))
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    # It was started whole, and its parent knows it.
    assert processes and processes[0].pid is not None
    processes[0].kill()
    processes[0].join()


def test_a_training_in_a_forked_process_is_stopped_too(tmp_path):
    def train():
        trainer, _ = trainer_in(tmp_path, call_at("before_step", lambda: send(signal.SIGTERM)))
        trainer.train(0, NUM_ITERS)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join(60)
    assert process.exitcode == 143
    assert saved(tmp_path) == [f"model_{STOP_AT:07d}.pth"]


def test_no_evaluation_is_begun_after_a_signal(tmp_path):
    evaluations = []
    evaluate = hooks.EvalHook(STOP_AT + 1, lambda: evaluations.append(1))
    trainer, _ = trainer_in(tmp_path, call_at("after_step", lambda: send(signal.SIGTERM)), evaluate)
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == [f"model_{STOP_AT:07d}.pth"]
    assert evaluations == []


def test_when_the_last_evaluation_is_stopped_the_hooks_behind_it_still_end(tmp_path):
    noting = Noting()
    evaluate = hooks.EvalHook(0, lambda: send(signal.SIGTERM))
    trainer, _ = trainer_in(tmp_path, evaluate, noting)
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == ["model_final.pth"]
    assert noting.calls[-1] == ("after_train", NUM_ITERS)


def test_a_signal_that_comes_too_late_to_stop_anything_is_not_lost(tmp_path):
    trainer, _ = trainer_in(tmp_path, call_at("after_train", lambda: send(signal.SIGTERM), NUM_ITERS))
    with pytest.raises(StoppedBySignal):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == ["model_final.pth"]


def test_an_exception_is_not_hidden_by_a_signal(tmp_path):
    def fail():
        send(signal.SIGTERM)
        raise ValueError("the trouble")

    trainer, _ = trainer_in(tmp_path, call_at("before_step", fail))
    with pytest.raises(ValueError, match="the trouble"):
        trainer.train(0, NUM_ITERS)
    assert saved(tmp_path) == []


def test_a_handler_of_the_programs_own_is_left_alone(tmp_path):
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    trainer, _ = trainer_in(tmp_path, call_at("before_step", lambda: send(signal.SIGTERM)))
    trainer.train(0, NUM_ITERS)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert came == [signal.SIGTERM]
    assert saved(tmp_path) == ["model_final.pth"]


def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    seen = []
    trainer, _ = trainer_in(tmp_path, call_at("before_step", lambda: seen.append(signal.getsignal(signal.SIGTERM))))
    thread = threading.Thread(target=trainer.train, args=(0, NUM_ITERS))
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
    assert saved(tmp_path) == ["model_final.pth"]


def test_a_training_within_a_training_stops_both(tmp_path):
    inner, _ = trainer_in(tmp_path / "inner", call_at("before_step", lambda: send(signal.SIGTERM)))
    outer, _ = trainer_in(tmp_path / "outer", call_at("before_step", lambda: inner.train(0, NUM_ITERS)))
    with pytest.raises(StoppedBySignal):
        outer.train(0, NUM_ITERS)
    assert saved(tmp_path / "inner") == [f"model_{STOP_AT:07d}.pth"]


def test_a_training_takes_sigterm_from_what_ends_the_program_otherwise_and_gives_it_back(tmp_path):
    with interruption.unwinding():
        trainer, _ = trainer_in(tmp_path, call_at("before_step", lambda: send(signal.SIGTERM)))
        with pytest.raises(StoppedBySignal) as caught:
            trainer.train(0, NUM_ITERS)
        assert caught.value.on_all_ranks
        assert saved(tmp_path) == [f"model_{STOP_AT:07d}.pth"]
        with pytest.raises(StoppedBySignal, match="143"):
            send(signal.SIGTERM)


def test_a_signal_that_is_put_off_comes_at_the_end_of_the_block():
    done = []
    with interruption.unwinding() as block, pytest.raises(StoppedBySignal), block.put_off():
        send(signal.SIGTERM)
        done.append("all of it")
    assert done == ["all of it"]


def _sleep(connection):
    connection.send("ready")
    time.sleep(100)


def test_a_worker_ends_by_its_parents_sigterm_only_while_the_parent_lives(tmp_path):
    """A terminal, torchrun and schedulers signal workers, too: the step that is to be finished needs their data."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe()
    worker = context.Process(target=_sleep, args=(sending,), daemon=True)

    def start_and_signal():
        worker.start()
        assert receiving.recv() == "ready"
        for number in ("INT", "TERM", "TERM"):
            subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
        worker.join(0.2)
        assert worker.is_alive()
        worker.terminate()
        worker.join()

    trainer, _ = trainer_in(tmp_path, call_at("before_step", start_and_signal))
    trainer.train(0, NUM_ITERS)
    assert worker.exitcode == -signal.SIGTERM
