import io
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from latebloom.flows.run import progress
from latebloom.flows.run.progress import Meter, duration, meter, say, shown_by


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves a clock that stands still otherwise."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (4.2, "4.2 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (12600, "3.5 h"),
    ],
)
def test_a_duration_has_the_unit_that_people_would_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_line_says_how_much_is_done_how_fast_and_how_long_it_will_take(wait: Callable[[float], None]) -> None:
    bar = Meter("generate", 800, "images")
    wait(2)
    bar.add(512, {"ok": 510, "off_label": 2})
    # 512 in 2 s are 256 a second; the other 288 take 1.125 s.
    assert bar.line() == "generate  512/800 images  64%  256 images/s  1.1 s to go  ok 510, off_label 2"


def test_work_in_parts_is_a_share_until_its_end_and_a_first_step_has_no_rate(wait: Callable[[float], None]) -> None:
    bar = Meter("generate", 128, "images", in_parts=True)
    wait(30)  # loading
    bar.add(0.25)
    assert bar.line() == "generate  0% of 128 images"
    wait(10)
    bar.add(31.75)  # 32 of 128 are a quarter; 31.75 in 10 s leave 96 for 30 s
    assert bar.line() == "generate  25% of 128 images  3.17 images/s  30 s to go"
    bar.add(96, {"ok": 128})
    assert bar.line().startswith("generate  128/128 images  100%")


def test_a_line_at_the_end_says_how_long_it_took(wait: Callable[[float], None]) -> None:
    bar = Meter("train", 1500, "steps")
    wait(100)
    bar.add(1500)
    assert bar.line() == "train  1,500/1,500 steps  100%  15 steps/s  in 2 min"


def test_a_slow_rate_has_two_decimals(wait: Callable[[float], None]) -> None:
    bar = Meter("train", 12, "steps")
    wait(8)
    bar.add(2)
    assert bar.line() == "train  2/12 steps  17%  0.25 steps/s  40 s to go"


def test_what_was_done_before_counts_for_the_share_but_not_for_the_rate(wait: Callable[[float], None]) -> None:
    bar = Meter("generate", 100, "images", done=80)
    assert bar.line() == "generate  80/100 images  80%"
    wait(1)
    bar.add(10)
    assert bar.line() == "generate  90/100 images  90%  10 images/s  1.0 s to go"


def test_the_time_to_go_leaves_out_what_comes_before_the_first_count(wait: Callable[[float], None]) -> None:
    bar = Meter("generate", 100, "images")
    wait(60)  # it loads and compiles
    bar.add(10)
    wait(10)
    bar.add(10)
    assert bar.line() == "generate  20/100 images  20%  1.00 images/s  80 s to go"
    for _ in range(40):
        wait(10)
        bar.add(1)  # deeper levels: of the last two minutes
    assert bar.line() == "generate  60/100 images  60%  0.10 images/s  7 min to go"


def test_a_part_of_an_image_counts_and_shows_as_whole_ones(wait: Callable[[float], None]) -> None:
    bar = Meter("generate", 4, "images")
    for _ in range(10):
        wait(1)
        bar.add(0.4)
    assert bar.line().startswith("generate  4/4 images  100%")
    bar.add(1)  # made once more, since a process died
    assert bar.line().startswith("generate  4/4 images  100%")


def test_what_others_are_at_is_shown_until_it_ends(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with meter("retrain", 14, "arms") as bar:
        wait(6)
        bar.note("ours-5 sgd", "90/300 steps")
        bar.note("random-5 sgd", "10/300 steps")
        assert capsys.readouterr().err == "retrain  0/14 arms  0%  ours-5 sgd 90/300 steps\n"
        bar.note("ours-5 sgd", "")
        bar.add(1)
    assert capsys.readouterr().err == "retrain  1/14 arms  7%  0.17 arms/s  78 s to go  random-5 sgd 10/300 steps\n"


def test_an_empty_piece_of_work_has_a_line(wait: Callable[[float], None]) -> None:
    assert Meter("generate", 0, "images").line() == "generate  0/0 images  0%"


def test_counts_add_up_by_name(wait: Callable[[float], None]) -> None:
    bar = Meter("generate", 10, "images")
    bar.add(3, {"ok": 3})
    bar.add(0, {"ok": 1, "flat": 2})
    assert bar.line().endswith("ok 4, flat 2")


def test_a_plain_line_comes_every_five_seconds_at_most(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with meter("train", 100, "steps") as bar:
        said = []
        for _ in range(6):
            wait(2)
            bar.add(10)
            said.append(capsys.readouterr().err.count("\n"))
    # After 6 s and, 6 s later, after 12 s.
    assert said == [0, 0, 1, 0, 0, 1]
    assert capsys.readouterr().err == "train  60/100 steps  60%  5.00 steps/s  8.0 s to go\n"


def test_the_last_line_comes_even_where_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with meter("train", 4, "steps") as bar:
            bar.done = 3
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        work()
    assert capsys.readouterr().err.startswith("train  3/4 steps  75%")


def test_where_there_is_no_terminal_there_is_no_bar_and_no_escape_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("train", 2, "steps") as bar:
        assert type(bar) is Meter
        bar.add(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert "\r" not in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_and_its_last_line_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with meter("train", 2, "steps") as bar:
        assert type(bar) is not Meter
        bar.add(2)
    assert "━" in terminal.getvalue()
    last = terminal.getvalue().splitlines()[-1]
    assert "train  2/2 steps  100%" in last
    assert "━" not in last


def test_a_process_beside_others_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress.multiprocessing, "parent_process", lambda: object())
    with meter("train", 2, "steps") as bar:
        assert type(bar) is Meter


def test_a_meter_counts_from_several_threads(wait: Callable[[float], None]) -> None:
    bar = Meter("generate", 4000, "images")

    def work() -> None:
        for _ in range(1000):
            bar.add(1, {"ok": 1})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (bar.done, bar.counts) == (4000, {"ok": 4000})


def test_say_leaves_standard_output_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_warning_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress.warn.cache_clear()
    for text in ("mind the step", "mind the gap", "mind the step"):
        progress.warn(text)
    assert capsys.readouterr().err == "warning: mind the step\nwarning: mind the gap\n"


class Silent(Meter):
    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_within_a_block_meters_can_be_shown_in_another_way(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_by(Silent), meter("generate", 2, "images", in_parts=True) as bar:
        assert type(bar) is Silent
        assert bar.in_parts
        bar.add(2)
    assert capsys.readouterr().err == ""
    with meter("generate", 2, "images") as bar:
        assert type(bar) is Meter
        assert not bar.in_parts


def test_on_a_terminal_there_is_a_bar_however_meters_are_shown_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with shown_by(Silent), meter("train", 2, "steps") as bar:
        assert not isinstance(bar, Silent)


def test_a_line_that_nobody_reads_any_more_ends_nothing() -> None:
    script = "import os, sys; os.read(0, 1); from latebloom.flows.run.progress import say; say('a line'); os._exit(7)"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stderr
    assert child.stdin
    child.stderr.close()
    child.stdin.write(b".")
    child.stdin.close()
    assert child.wait(60) == 7
