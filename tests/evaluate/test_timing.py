import time
from itertools import count

import pytest
import torch

from pipeline.evaluate import timing
from pipeline.evaluate.timing import cuda_events, measure, wall


def test_on_a_quiet_machine_exactly_the_samples_asked_for_count(monkeypatch):
    monkeypatch.setattr(timing, "_busy", lambda: (0.0, 2))
    calls = []
    result = measure(lambda: calls.append(1), warmup=3, runs=5, max_foreign_load=0.1)
    assert len(calls) == 8
    assert (result.samples, result.guarded, result.foreign_load) == (5, True, 0.0)


def test_on_a_busy_machine_measuring_ends_and_says_so(monkeypatch):
    ticks = count(step=1000.0)
    monkeypatch.setattr(timing, "_busy", lambda: (next(ticks), 2))
    calls = []
    result = measure(lambda: calls.append(1), warmup=0, runs=5, max_foreign_load=0.5)
    assert not result.guarded
    assert result.samples == len(calls) == 20
    assert result.foreign_load == 1.0


def test_busy_windows_are_thrown_away_and_measured_again(monkeypatch):
    readings = iter([0.0, 1000.0, 1000.0, 1000.0])
    monkeypatch.setattr(timing, "_busy", lambda: (next(readings), 2))
    calls = []
    result = measure(lambda: calls.append(1), warmup=0, runs=5, max_foreign_load=0.1)
    assert (len(calls), result.samples, result.guarded) == (10, 5, True)


def test_own_work_is_not_foreign_and_that_of_others_is(monkeypatch):
    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    before, own = timing._busy(), time.process_time()
    if before is None:
        pytest.skip("there is no /proc/stat")
    work()
    after, own = timing._busy(), time.process_time() - own
    assert after[0] - before[0] >= own - 0.04  # the processors were busy at least with us, to a few ticks
    monkeypatch.setattr(timing, "_busy", lambda: (time.process_time(), 2))
    assert measure(work, warmup=0, runs=2, max_foreign_load=0.01).guarded
    monkeypatch.setattr(timing, "_busy", lambda: (time.process_time() + 0.5 * time.perf_counter(), 2))
    result = measure(work, warmup=0, runs=2, max_foreign_load=0.2)
    assert not result.guarded
    assert result.foreign_load == pytest.approx(0.25, abs=0.02)


def test_without_proc_stat_everything_counts_unguarded(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "_STAT", tmp_path / "absent")
    result = measure(lambda: None, warmup=0, runs=3, max_foreign_load=1.0)
    assert (result.guarded, result.foreign_load) == (False, None)


def test_percentiles_are_in_order():
    durations = iter([0.001, 0.002, 0.003, 0.004])
    result = measure(lambda: time.sleep(next(durations)), warmup=0, runs=4, max_foreign_load=1.0)
    assert result.median_ms <= result.p90_ms <= result.p95_ms
    assert result.spread_ms >= 0


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="at least 1 run"):
        measure(lambda: None, warmup=0, runs=0, max_foreign_load=1.0)


def test_durations_are_those_of_the_clock(monkeypatch):
    monkeypatch.setattr(timing, "_busy", lambda: (0.0, 2))
    calls = []

    def clock(function):
        function()
        return 0.25 * len(calls)

    result = measure(lambda: calls.append(1), warmup=0, runs=3, max_foreign_load=0.1, clock=clock)
    assert (len(calls), result.median_ms, result.samples) == (3, 500.0, 3)


@pytest.mark.gpu
def test_events_see_work_that_goes_on_after_the_call_has_returned():
    square = torch.randn(8192, 8192, device="cuda")
    square @ square
    torch.cuda.synchronize()
    begin = time.perf_counter()
    alone = cuda_events(lambda: square @ square)
    assert 0.5 * alone < time.perf_counter() - begin
    torch.cuda.synchronize()
    assert wall(lambda: square @ square) < 0.1 * alone
    torch.cuda.synchronize()
