"""Progress in lines: a stage that lasts has one, and whatever lasts longer says that it goes on."""

import threading

from calibrant.system.progress import LASTING, PERIOD, ProgressLines


class Timeline:
    """Lines, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.said: list[str] = []
        self.lines = ProgressLines(self.said.append, lambda: self.now)

    def after(self, seconds: float) -> list[str]:
        """What is said when so much time has passed."""
        self.now += seconds
        self.said.clear()
        self.lines.look()
        return list(self.said)


def test_a_stage_that_lasts_has_one_line_and_a_short_one_none():
    timeline = Timeline()
    timeline.lines.update("short", 0, 3)
    assert timeline.after(LASTING / 2) == []
    timeline.lines.update("short", 3, 3)
    timeline.lines.update("long", 1, 1200)
    assert timeline.after(LASTING - 0.1) == []
    timeline.lines.update("long", 40, 1200)
    assert timeline.after(0.1) == ["[0:04] long 40/1,200"]
    assert timeline.after(LASTING) == []
    timeline.lines.update("long", 1200, 1200)
    timeline.lines.update("long", 1, 8)
    assert len(timeline.after(LASTING)) == 1, "it has begun again"


def test_what_goes_on_says_so_every_half_minute_even_where_nothing_moves():
    timeline = Timeline()
    assert timeline.after(PERIOD - 1) == []
    (idle,) = timeline.after(1)
    assert idle.startswith("[0:30] ")
    timeline.lines.update("study", 4, 90)
    timeline.lines.update("wanda 0.5", 29, 30)
    assert timeline.after(LASTING) == ["[0:33] study 4/90, wanda 0.5 29/30"]
    timeline.lines.update("wanda 0.5", 30, 30)
    assert timeline.after(PERIOD - 1) == []
    assert timeline.after(1) == ["[1:03] study 4/90"]
    timeline.lines.update("study", 90, 90)
    (after,) = timeline.after(3600)
    assert after.startswith("[1:01:03] ")
    assert after.endswith("study")


def test_how_a_stage_stands_is_said_and_is_no_new_stage():
    timeline = Timeline()
    timeline.lines.update("evop blocks 0.2; best 4.25", 1, 16)
    timeline.lines.update("evop blocks 0.2; best 3.5", 2, 16)
    assert timeline.after(LASTING) == ["[0:03] evop blocks 0.2 2/16; best 3.5"]
    assert timeline.after(PERIOD - 1) == []
    timeline.lines.update("evop blocks 0.2; best 3.25", 16, 16)
    (after,) = timeline.after(PERIOD)
    assert after.endswith("evop blocks 0.2")


def test_somebody_looks_at_the_clock_while_nothing_is_reported():
    """The line comes from a thread, which ends with the work: until it comes, the work waits for
    it.
    """
    said = threading.Event()
    seconds = iter(range(0, 10**9, 60))
    with ProgressLines(lambda _: said.set(), lambda: float(next(seconds))).watching():
        assert said.wait(600)
    assert "calibrant-progress" not in {thread.name for thread in threading.enumerate()}
