"""Reading ahead in a thread: as much as allowed, in order, and never past the end of the run."""

import os
import signal
import threading

import pytest
import torch

from gonio.pipelines.ahead import run_ahead

WAIT = 20.0  # seconds after which something that must happen has not


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("gonio-reader")]


@pytest.fixture(autouse=True)
def _no_reader_is_left():
    yield
    assert readers() == []


def double(item, following, stopped):
    return 2 * item


def test_results_and_exceptions_in_order():
    seen = []

    def read(item, following, stopped):
        seen.append((item, following))
        return 0 if item == 2 else item / (item != 1)

    found = list(run_ahead(read, lambda number: 6 / number, range(4)))
    assert [item for item, _ in found] == [0, 1, 2, 3]
    assert seen == [(0, 1), (1, 2), (2, 3), (3, None)]
    assert [type(result) for _, result in found] == [ZeroDivisionError] * 3 + [float]
    assert found[3][1] == 2
    assert list(run_ahead(double, str, [])) == []


def test_the_next_is_read_while_one_is_worked_on():
    read = [threading.Event() for _ in range(4)]

    def note(item, following, stopped):
        read[item].set()
        return item

    def work(item):  # waits for what is read only if both go on at once
        return item == 3 or read[item + 1].wait(WAIT)

    assert [result for _, result in run_ahead(note, work, range(4))] == [True] * 4


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_so_many_are_read_ahead(ahead):
    started, done, most = [], [], []

    def read(item, following, stopped):
        started.append(item)
        most.append(len(started) - len(done))
        return item

    for item, _ in run_ahead(read, lambda item: item, range(20), ahead=ahead):
        # What may have been submitted by now is started soon, and nothing more.
        allowed = min(20, item + 1 + ahead)
        clock = threading.Event()
        while len(started) < allowed:
            clock.wait(0.001)
        clock.wait(0.002)
        assert len(started) == allowed
        done.append(item)
    assert max(most) == ahead + 1


def test_ctrl_c_while_reading():
    entered = threading.Event()

    def read(item, following, stopped):
        if item < 2:
            return item
        entered.set()
        os.kill(os.getpid(), signal.SIGINT)
        ended = threading.Event()
        while not stopped():
            ended.wait(0.001)
        return item

    found = []

    def run():
        for item, _ in run_ahead(read, lambda item: item, range(5)):
            found.append(item)
            if item == 1:
                entered.wait(WAIT)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert found in ([0], [0, 1])


def test_what_is_no_exception_ends_the_run():
    def read(item, following, stopped):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(run_ahead(read, str, range(3)))


def test_closing_stops_the_reader_and_gives_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = run_ahead(double, str, range(100))
        assert next(results) == (0, "0")
        assert torch.get_num_threads() == 1
        assert len(readers()) == 1
        results.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
