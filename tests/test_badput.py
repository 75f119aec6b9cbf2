"""Where the time went: every second in one part, the device's before the host's. The clock is a fake one."""

import pytest

from editjax.badput import PARTS, Badput, described


class Clock:
    """Stands still until it is moved."""

    def __init__(self, at: float = 100.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def parts(spent: Badput) -> dict[str, float]:
    """What is not zero."""
    return {name: seconds for name, seconds in spent.seconds().items() if seconds}


def test_time_is_that_of_what_the_host_is_at():
    clock = Clock()
    spent = Badput(clock)
    clock.at += 3
    spent.turn_to("other")
    clock.at += 1
    with spent.on("validation"):
        clock.at += 2
        with spent.on("save"):
            clock.at += 4
        clock.at += 5
    clock.at += 1
    assert parts(spent) == {"init": 3, "other": 2, "validation": 7, "save": 4}


def test_while_the_device_works_the_time_is_the_steps_whatever_the_host_does():
    """Data come at 110, but only from 107 to 110 does the device wait for them."""
    clock = Clock()
    spent = Badput(clock)
    spent.turn_to("other")
    clock.at = 104
    with spent.on("data"):
        clock.at = 110
    spent.ran(101, 107)
    clock.at = 120
    spent.ran(111, 118, "redo")
    assert parts(spent) == {"other": 1 + 1 + 2, "steps": 6, "data": 3, "redo": 7}


def test_a_step_begins_when_the_one_before_it_has_ended():
    clock = Clock()
    spent = Badput(clock)
    spent.turn_to("other")
    clock.at = 110
    spent.ran(100, 105)
    spent.ran(101, 110)
    assert parts(spent) == {"steps": 10}


def test_a_part_is_left_by_an_error_too():
    clock = Clock()
    spent = Badput(clock)
    with pytest.raises(OSError), spent.on("save"):
        clock.at += 1
        raise OSError
    clock.at += 1
    assert parts(spent) == {"save": 1, "init": 1}


def test_parts_add_up_to_the_time_whatever_happens_and_however_often_they_are_asked_for():
    """Steps that end anywhere among the host's turns."""
    clock = Clock(0.0)
    spent = Badput(clock)
    handed = ended = 0.0
    for turn in range(300):
        with spent.on(PARTS[2 + turn % 5]):
            clock.at += (turn * 7 % 11) / 8
        if turn % 3 == 0:
            handed = clock.at
        if turn % 3 == 2:
            ended = max(ended, min(clock.at, handed + turn % 7))
            spent.ran(handed, ended)
        if turn % 50 == 49:
            assert sum(spent.seconds().values()) == clock.at
    assert all(spent.seconds()[name] for name in PARTS if name not in ("redo", "other"))


def test_the_line_has_the_whole_time_and_every_share():
    seconds = {**dict.fromkeys(PARTS, 0.0), "steps": 3000.0, "save": 1000.0, "redo": 605.0}
    assert described(seconds) == (
        "1:16:45 h: steps 65.1 %, redo 13.1 %, init 0.0 %, compile 0.0 %, data 0.0 %, save 21.7 %, "
        "validation 0.0 %, other 0.0 %"
    )
