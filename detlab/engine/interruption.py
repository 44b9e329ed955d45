"""Ending a run by a signal: after a whole step, the same one on all ranks, with a checkpoint to go on from.

SIGTERM is what schedulers, ``kill`` and ``torchrun`` send; SIGINT is Ctrl-C. The first asks a training to stop: the
step that is going on is finished, a checkpoint is saved, and the program ends with the status that shells give to the
signal. A second one ends it at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch

from detlab.utils import comm

__all__ = [
    "Signals",
    "StopRequest",
    "StoppedBySignal",
    "ends_at_once",
    "own_signal",
    "share_signals",
    "stopping",
    "unwinding",
    "watching_for_stop",
]

# Where a signal is handled otherwise, somebody has decided so.
_USUAL_HANDLERS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
# A terminal signals all processes, a parent passes the signal on, timeout(1) sends it twice: that is one request.
_ONE_REQUEST_SECONDS = 1.0
# A signal that comes while a process is made is taken so much later.
_SECONDS_TO_FORK = 0.05
# Without losses to exchange, the ranks ask each other this often whether to stop.
_STEPS_BETWEEN_QUESTIONS = 20


class StoppedBySignal(SystemExit):
    """A run ended because its process was asked to; uncaught, it ends the program silently with ``128 + number``.

    After Ctrl-C it is a ``KeyboardInterrupt`` as well.

    Attributes:
        signal_number: of the signal.
        on_all_ranks: whether all ranks stopped after the same step, so that they can still wait for each other.
    """

    signal_number: int
    on_all_ranks: bool


class _StoppedByCtrlC(StoppedBySignal, KeyboardInterrupt):
    pass


def stopping(signal_number: int, on_all_ranks: bool = False) -> StoppedBySignal:
    """The exception that ends a run."""
    kind = _StoppedByCtrlC if signal_number == signal.SIGINT else StoppedBySignal
    stopped = kind(128 + signal_number)
    stopped.signal_number, stopped.on_all_ranks = signal_number, on_all_ranks or comm.get_world_size() == 1
    return stopped


class Signals:
    """While its ``with`` block runs, SIGTERM and SIGINT call a function instead of ending the process.

    Signals that the program handles itself are left alone, and so are all outside of the main thread, where Python
    runs no handlers. Processes forked inside the block, as data workers are, end by their parent's SIGTERM only: a
    terminal, ``torchrun`` and schedulers signal them too, while their parent still needs them.

    Args:
        on_request: called with the number of the signal and whether it is a second request, one that comes at least
            a second after the first.
        numbers: of the signals.
        gives_way: a block within this one, such as a training's, takes the signals while it runs.
    """

    def __init__(
        self,
        on_request: Callable[[int, bool], None],
        numbers: Iterable[int] = tuple(_USUAL_HANDLERS),
        gives_way: bool = False,
    ) -> None:
        self._on_request = on_request
        self._numbers = tuple(numbers)
        self.gives_way = gives_way
        self._first_at: float | None = None
        self._taken: dict[int, Any] = {}  # number -> the handler before
        self._is_put_off = False
        self._put_off: list[int] = []

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in self._numbers}
            self._taken = {n: h for n, h in before.items() if h is _USUAL_HANDLERS[n] or _gives_way(h)}
        for number in self._taken:
            signal.signal(number, self._handle)
        _open.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _open.remove(self)
        if threading.current_thread() is threading.main_thread():
            for number, before in self._taken.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, before if _gives_way(before) else _USUAL_HANDLERS[number])
        self._taken = {}
        self._first_at = None

    @contextlib.contextmanager
    def put_off(self) -> Iterator[None]:
        """In this block a signal is noted only; the function is called at its end."""
        self._is_put_off = True
        try:
            yield
        finally:
            self._is_put_off = False
        while self._put_off:
            self._handle(self._put_off.pop(0), None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_put_off:
            self._put_off.append(number)
            return
        if _is_forking(frame):
            # What Python calls around a fork swallows exceptions, and the number of the child could be lost.
            main_thread = threading.main_thread().ident
            assert main_thread is not None
            threading.Timer(_SECONDS_TO_FORK, signal.pthread_kill, (main_thread, number)).start()
            return
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            self._on_request(number, False)
        elif now - self._first_at >= _ONE_REQUEST_SECONDS:
            self._on_request(number, True)


def _gives_way(handler: Any) -> bool:
    """Whether a handler is that of an open block which another may take the signals from."""
    owner = getattr(handler, "__self__", None)
    return isinstance(owner, Signals) and owner.gives_way and owner in _open


def _end_by_parent(parent: int) -> None:
    """Wait for SIGTERM from the parent, or from anybody once that is gone, and end by it."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent == os.getppid():
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)


def _is_forking(frame: FrameType | None) -> bool:
    """Whether a process of multiprocessing's, such as a data worker, is being made below a frame."""
    while frame is not None:
        # The process that was made runs below the same code, and knows by then that it is not the parent.
        if frame.f_code is _popen_code and getattr(frame.f_locals.get("self"), "pid", None) != 0:
            return True
        frame = frame.f_back
    return False


def _code_that_forks() -> CodeType | None:
    with contextlib.suppress(ImportError):
        from multiprocessing.popen_fork import Popen

        return Popen._launch.__code__  # type: ignore[attr-defined]
    return None


_popen_code = _code_that_forks()
_open: list[Signals] = []


def _leave_signals_to_parent() -> None:
    """In a forked process: what other processes ask for, the parent will see to."""
    taken = {number for signals in _open for number in signals._taken}
    for number in taken:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    if signal.SIGTERM in taken and hasattr(signal, "sigwaitinfo"):
        # Handlers are not told who has sent a signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_by_parent, args=(os.getppid(),), daemon=True).start()


def _let_workers_end() -> None:
    """To be called at the end of a process, which ends its workers; torch's handler would raise that as an error."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_signals_to_parent)
    # Before multiprocessing signals the workers.
    multiprocessing.util.Finalize(None, _let_workers_end, exitpriority=100)


def _unwind(number: int, is_repeated: bool) -> None:
    raise stopping(number)


def unwinding() -> Signals:
    """A block in which SIGTERM raises :class:`StoppedBySignal` where it arrives, outside of trainings.

    Without it the signal would end the process on the spot: no ``finally`` block and no function of ``atexit`` would
    run, and what they were to remove would stay.
    """
    return Signals(_unwind, numbers=[signal.SIGTERM], gives_way=True)


class StopRequest:
    """Whether a training was asked to stop, as far as this process knows, and as far as all ranks know.

    Attributes:
        own: the number of the signal that came to this process, or 0.
        of_all: that of a signal which all ranks have heard of in the same step, or 0.
        is_repeated: a second signal has come; nothing may be begun any more.
    """

    def __init__(self) -> None:
        self.own = 0
        self.of_all = 0
        self.is_repeated = False
        self._unshared_steps = 0
        self._may_raise = False

    def take(self, number: int, is_repeated: bool) -> None:
        """What the signals call."""
        if is_repeated:
            self.is_repeated = True
            raise stopping(number)
        self.own = number
        if comm.is_main_process():
            # Not the log: it could be in the middle of a line.
            name = signal.Signals(number).name
            with contextlib.suppress(OSError):
                os.write(2, f"{name}: stopping after this step, a second one stops at once\n".encode())
        if self._may_raise:
            raise stopping(number)

    def share(self, of_ranks: Iterable[float]) -> None:
        """Learn the signals that have come to all ranks; all must get the same, in the same step."""
        self.of_all = int(max(of_ranks))
        self._unshared_steps = 0

    def ask_all(self) -> None:
        """Exchange the signals; all ranks must call it."""
        if comm.get_world_size() == 1:
            self.share([self.own])
        else:
            self.share(comm.all_gather_tensor(torch.tensor(float(self.own))).tolist())

    def count_step(self) -> None:
        """To be called after each step: keeps ``of_all`` fresh where no losses are exchanged."""
        self._unshared_steps += 1
        if comm.get_world_size() == 1 or self._unshared_steps > _STEPS_BETWEEN_QUESTIONS:
            self.ask_all()

    def check(self) -> None:
        """Raise :class:`StoppedBySignal` if all ranks know that they shall stop."""
        if self.of_all:
            raise stopping(self.of_all, on_all_ranks=True)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """In this block a signal raises :class:`StoppedBySignal` where it arrives; all ranks must enter it."""
        self.ask_all()
        self.check()
        self._may_raise = True
        try:
            if self.own:
                # It came since the ranks were asked.
                raise stopping(self.own)
            yield
        finally:
            self._may_raise = False


_present: StopRequest | None = None


@contextlib.contextmanager
def watching_for_stop() -> Iterator[StopRequest]:
    """While the block runs, the first signal is noted instead of ending the process; a training's blocks may nest.

    Raises:
        StoppedBySignal: at the end of the block, if a signal came too late for anybody to heed it.
    """
    global _present
    if _present is not None:
        yield _present
        return
    request = _present = StopRequest()
    try:
        with Signals(request.take):
            yield request
    finally:
        _present = None
    if request.own:
        raise stopping(request.own)


def ends_at_once() -> contextlib.AbstractContextManager[Any]:
    """A block that a signal ends where it arrives, as an evaluation, whose results nobody waits for then.

    All ranks must enter it. Outside of a training it does nothing.

    Raises:
        StoppedBySignal: a signal came, before or in the block.
    """
    return _present.raising() if _present is not None else contextlib.nullcontext()


def own_signal() -> int:
    """The number of the signal that asked this process to stop, or 0: for the ranks to exchange."""
    return _present.own if _present is not None else 0


def share_signals(of_ranks: Iterable[float]) -> None:
    """Hand over what :func:`own_signal` gave on each rank, in the same step on all of them."""
    if _present is not None:
        _present.share(of_ranks)
