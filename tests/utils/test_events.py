"""What is put can be read, written and smoothed."""

import json
import logging
import shutil
import threading

import numpy as np
import pytest
import torch

from detlab.utils import events
from detlab.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
    log_scalar,
    log_scalars,
)
from detlab.utils.folder_watch import reopen_files


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_logging_without_a_storage_does_nothing_and_asking_for_one_explains():
    assert not has_event_storage()
    log_scalar("a", 1.0)
    log_scalars(a=1.0, b=torch.ones(()))
    with pytest.raises(RuntimeError, match="with EventStorage"):
        get_event_storage()


def test_the_innermost_storage_is_the_open_one():
    with EventStorage(5) as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
        assert outer.iter == outer.iteration == 5
    assert not has_event_storage()


def test_each_thread_has_its_own_storages_and_one_without_takes_the_only_ones():
    both_are_open = threading.Barrier(2, timeout=30)
    others = {}

    def look():
        others["seen"] = get_event_storage() if has_event_storage() else None

    def use(name):
        with EventStorage() as storage:
            both_are_open.wait()
            log_scalar(name, 1.0)
            look_from_a_thread(look) if name == "a" else None
            both_are_open.wait()
        others[name] = list(storage.latest())

    def look_from_a_thread(function):
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    threads = [threading.Thread(target=use, args=name) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert others == {"seen": None, "a": ["a"], "b": ["b"]}
    with EventStorage() as only:
        look_from_a_thread(look)
    assert others["seen"] is only
    assert not has_event_storage()


def test_scalars_keep_their_iterations():
    with EventStorage(10) as storage:
        log_scalars(loss=2.0)
        storage.step()
        log_scalar("loss", torch.tensor([4.0], requires_grad=True))
        storage.put_scalar("late", 1, cur_iter=3)
    assert storage.history("loss").values() == [(2.0, 10), (4.0, 11)]
    assert storage.latest() == {"loss": (4.0, 11), "late": (1.0, 3)}


def test_medians_smooth_only_what_may_be_smoothed():
    storage = EventStorage()
    for value in [1, 100, 3]:
        storage.put_scalars(loss=value)
        storage.put_scalars(lr=value, smoothing_hint=False)
        storage.step()
    assert storage.latest_with_smoothing_hint(20) == {"loss": (3.0, 2), "lr": (3.0, 2)}
    assert storage.latest_with_smoothing_hint(2)["loss"] == (51.5, 2)
    assert storage.smoothing_hints() == {"loss": True, "lr": False}


def test_samples_are_counted_by_iteration():
    storage = EventStorage()
    for iteration in [0, 5, 30, 35, 35]:
        storage.put_scalar("x", 0.0, cur_iter=iteration)
    assert [storage.count_samples("x", window) for window in (1, 6, 31, 1000)] == [2, 3, 4, 5]


def test_a_hint_may_not_change():
    storage = EventStorage()
    storage.put_scalar("x", 1.0)
    with pytest.raises(ValueError, match="'x' was put with smoothing_hint=True"):
        storage.put_scalar("x", 1.0, smoothing_hint=False)


def test_an_unknown_history_names_the_known():
    storage = EventStorage()
    storage.put_scalars(loss_cls=1.0)
    with pytest.raises(KeyError, match="loss_cls"):
        storage.history("loss")


def test_name_scopes_nest_and_end():
    storage = EventStorage()
    with storage.name_scope("eval"):
        storage.put_scalar("x", 1.0)
        with storage.name_scope("coco"):
            storage.put_scalar("x", 2.0)
    storage.put_scalar("x", 3.0)
    assert {name: value for name, (value, _) in storage.latest().items()} == {"eval/x": 1, "coco/x": 2, "x": 3}


def test_what_lies_on_an_accelerator_is_fetched_once_when_read(monkeypatch):
    """Stand-ins that claim to lie elsewhere: no value may be fetched before somebody reads."""

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda")

    fetched = []
    stack = torch.stack
    monkeypatch.setattr(events.torch, "stack", lambda tensors: fetched.append(len(tensors)) or stack(tensors))
    storage = EventStorage()
    value = torch.tensor(1.0).as_subclass(Elsewhere)
    storage.put_scalar("x", value)
    value.fill_(7.0)
    storage.put_scalar("time", 0.5)
    storage.put_scalar("x", value)
    assert fetched == []
    assert storage.history("x").values() == [(1.0, 0), (7.0, 0)]
    assert storage.latest()["time"] == (0.5, 0)
    assert fetched == [2]


def test_scalars_that_nobody_reads_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(events, "MAX_UNREAD_SCALARS", 10)
    storage = EventStorage()
    for i in range(25):
        storage.put_scalar("x", float(i))
    assert len(storage._unread) < 10
    assert len(storage.history("x").values()) == 25


def test_json_holds_each_value_once_and_what_came_late_in_a_row_of_its_own(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path))
        storage.put_scalars(loss=1.0, lr=0.1)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalars(loss=3.0)
        storage.put_scalar("eval/AP", 40.0, cur_iter=0, smoothing_hint=False)
        writer.write()
        writer.close()
    assert read_lines(path) == [
        {"iteration": 0, "loss": 1.0, "lr": 0.1},
        {"iteration": 0, "eval/AP": 40.0},
        {"iteration": 1, "loss": 2.0},
    ]


def test_a_writer_that_was_closed_writes_the_next_run_from_its_first_iteration(tmp_path):
    writer = JSONWriter(str(tmp_path / "metrics.json"))
    for value in (1.0, 2.0):
        with EventStorage(3) as storage:
            storage.put_scalar("a", value)
            writer.write()
            writer.close()
    assert read_lines(tmp_path / "metrics.json") == [{"a": 1.0, "iteration": 3}, {"a": 2.0, "iteration": 3}]


def test_what_an_earlier_run_has_written_is_not_repeated(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"a": NaN, "b": 2.0, "iteration": 5}\nno row\n[1]\n{"iteration": [1]}\n{"a": 3.0, "itera')
    before = path.read_text()
    for iteration, values, row in (
        (5, {"a": float("nan")}, ""),
        (5, {"b": 2.0, "a": float("nan")}, ""),
        (5, {"b": 2.5}, '{"b": 2.5, "iteration": 5}\n'),
        (5, {"b": 2.0, "c": 1.0}, '{"b": 2.0, "c": 1.0, "iteration": 5}\n'),
        (6, {"b": 2.0}, '{"b": 2.0, "iteration": 6}\n'),
    ):
        path.write_text(before)
        writer = JSONWriter(str(path))
        with EventStorage(iteration) as storage:
            storage.put_scalars(**values)
            writer.write()
        writer.close()
        assert path.read_text() == f"{before}\n{row}"


def test_a_resumed_run_appends_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0, "lo')
    with EventStorage(7) as storage:
        writer = JSONWriter(str(path))
        storage.put_scalars(loss=1.0)
        writer.write()
        writer.close()
    first, second = path.read_text().splitlines()
    assert first == '{"iteration": 0, "lo' and json.loads(second) == {"iteration": 7, "loss": 1.0}


def test_the_console_line_holds_what_a_person_watches(caplog):
    caplog.set_level(logging.INFO)
    logging.getLogger("detlab").propagate = True
    with EventStorage(19) as storage:
        storage.put_scalars(total_loss=2.5, loss_cls=1.5, time=2.0, data_time=0.25, accuracy=0.5)
        storage.put_scalar("lr", 0.02, smoothing_hint=False)
        CommonMetricPrinter(max_iter=100).write()
        assert storage.latest()["eta_seconds"] == (160.0, 19)
    line = caplog.records[-1].getMessage()
    for part in ["eta: 0:02:40", "iter: 19", "total_loss: 2.5", "loss_cls: 1.5", "time: 2.0000", "last_time: 2.0000"]:
        assert part in line
    assert "data_time: 0.2500" in line and "lr: 0.02" in line and "accuracy" not in line
    assert ("max_mem" in line) == torch.cuda.is_available()


def test_the_console_works_for_loops_that_measure_nothing_and_is_silent_after_the_end(caplog):
    caplog.set_level(logging.INFO)
    logging.getLogger("detlab").propagate = True
    with EventStorage() as storage:
        printer = CommonMetricPrinter(max_iter=2)
        printer.write()
        assert "eta: N/A  iter: 0" in caplog.text
        storage.step()
        printer.write()
        assert storage.latest()["eta_seconds"] == (0.0, 1)
        storage.step()
        caplog.clear()
        printer.write()
    assert not caplog.records


def test_a_histogram_counts_every_value():
    storage = EventStorage()
    storage.put_histogram("weights", torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=4)
    (histogram,) = storage._histograms
    assert histogram["bucket_counts"] == [1, 2, 0, 1] and histogram["bucket_limits"] == [1, 2, 3, 4]
    assert (histogram["min"], histogram["max"], histogram["sum"], histogram["sum_squares"]) == (0, 4, 6, 18)
    storage.clear_histograms()
    assert not storage._histograms


def test_tensorboard_gets_scalars_images_and_histograms(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage(3) as storage:
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_scalars(loss=1.0)
        storage.put_image("sample", np.zeros((3, 4, 4), dtype=np.uint8))
        storage.put_histogram("weights", torch.arange(5.0))
        writer.write()
        writer.close()
        assert not storage._vis_data and not storage._histograms
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(3, 1.0)]
    assert read.Tags()["images"] == ["sample"] and read.Tags()["histograms"] == ["weights"]


def test_files_of_metrics_that_are_gone_are_begun_anew(tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    folder.mkdir()
    writers = [JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))]
    with EventStorage() as storage:
        for iteration in range(2):
            storage.iter = iteration
            storage.put_scalar("loss", float(iteration))
            for writer in writers:
                writer.write()
            if iteration == 0:
                shutil.rmtree(folder)
                folder.mkdir()
                assert reopen_files(str(folder.resolve())) == ["events.out.tfevents", "metrics.json"]
                assert reopen_files(str(folder.resolve())) == []
    for writer in writers:
        writer.close()
    assert json.loads((folder / "metrics.json").read_text())["iteration"] == 1
    (events,) = folder.glob("events.out.tfevents.*")
    # With the head that readers look for, not the scalar alone.
    assert b"brain.Event:2" in events.read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()
    assert reopen_files(str(folder.resolve())) == []
