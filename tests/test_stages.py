"""Where the time of a run goes: stages that interrupt each other, threads, and what is printed."""

import threading
import time

import pytest

from cba_fast.stages import beside, open_profile, profiled, stage, staged


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by what is added to its list."""
    passed = []
    monkeypatch.setattr(time, "perf_counter", lambda: float(sum(passed)))
    return passed


def test_a_stage_interrupts_the_one_around_it(clock):
    with profiled() as found:
        clock.append(1)
        with stage("model"):
            clock.append(2)
            with stage("map"):
                clock.append(4)
            clock.append(8)
        for _ in staged("read", (clock.append(32) for _ in range(2))):
            clock.append(64)
    stages = {"other": 129.0, "read": 64.0, "model": 10.0, "map": 4.0}
    assert found.to_json() == {"seconds": 207.0, "stages": stages, "beside": {}}
    assert found.lines() == [
        "Time         : 207.00 s: other 62.3%, read 30.9%, model 4.8%, map 1.9%"
    ]


def test_an_error_ends_its_stages(clock):
    with profiled() as found:
        with pytest.raises(ZeroDivisionError), stage("model"), stage("map"):
            clock.append(1 / len(clock))
        clock.append(2)
    assert found.to_json()["stages"] == {"other": 2.0, "model": 0.0, "map": 0.0}


def test_other_threads_and_processes_are_counted_apart():
    def work() -> None:
        with stage("write"):
            time.sleep(0.02)

    with profiled() as found:
        thread = threading.Thread(target=work)
        thread.start()
        with stage("waiting"):
            thread.join()
        beside("decode", 1.5)
    told = found.to_json()
    assert set(told["stages"]) == {"other", "waiting"}
    assert told["beside"]["decode"] == 1.5
    assert 0.02 <= told["beside"]["write"] < 1
    assert "decode 1.50 s, write 0.0" in found.lines()[1]


def test_the_stages_add_up_to_the_wall_time():
    start = time.perf_counter()
    with profiled() as found:
        for _ in range(20):
            with stage("a"), stage("b"):
                time.sleep(0.001)
    told, wall = found.to_json(), time.perf_counter() - start
    assert sum(told["stages"].values()) == pytest.approx(told["seconds"], abs=1e-4)
    assert told["seconds"] == pytest.approx(wall, abs=0.01)


def test_nothing_is_counted_without_a_profile():
    assert open_profile() is None
    with stage("model"):
        pass
    beside("decode", 1.0)
    with profiled() as found:
        assert open_profile() is found
    assert open_profile() is None
    assert not found.beside
