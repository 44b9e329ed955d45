import logging

import pytest

from detlab.data.benchmark import DataLoaderBenchmark, iter_benchmark

ENTRIES = [{"n": n, "width": 4, "height": 4} for n in range(10)]


def test_an_iterator_is_timed_step_by_step():
    taken = []
    mean, times = iter_benchmark((taken.append(n) for n in range(100)), 7, warmup=3)
    assert len(taken) == 10 and len(times) == 7 and mean == pytest.approx(sum(times) / 7)


def test_timing_stops_early_when_time_is_up():
    assert len(iter_benchmark(iter(range(100)), 50, warmup=0, max_time_seconds=-1)[1]) == 1


@pytest.mark.parametrize("part", ["dataset", "mapper", "workers", "IPC", "distributed"])
def test_every_part_of_a_loader_can_be_timed(part, caplog):
    benchmark = DataLoaderBenchmark(ENTRIES, mapper=lambda e: e["n"], total_batch_size=2, num_workers=1)
    with caplog.at_level(logging.INFO):
        getattr(benchmark, f"benchmark_{part}")(3, warmup=1)
    assert "samples/s" in caplog.text
