"""When a generation has to stop: by the clock of a place, by seconds, at the end of a part."""

import dataclasses
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import unserved
from pydantic import ValidationError

from latebloom.flows import pipeline
from latebloom.flows.run.budget import Budget, Deadline, Unfinished
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages import synthesis

BERLIN = ZoneInfo("Europe/Berlin")


def moment(text: str, zone: str = "Europe/Berlin") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def deadline(budget: Budget, now: str, begin: datetime | None = None) -> Deadline:
    """Of a run that starts when the clocks in Berlin show `now`."""
    seconds = moment(now).timestamp()
    return Deadline.of(budget, begin, lambda: seconds)


def end(until: str, now: str, begin: str = "") -> str:
    """When a run has to stop, by the clocks of Berlin."""
    found = deadline(Budget(until=f"{until} Europe/Berlin"), now, moment(begin) if begin else None)
    return datetime.fromtimestamp(found.end, BERLIN).isoformat(" ", "minutes")


def test_without_a_budget_there_is_always_time() -> None:
    assert Deadline.of(Budget()).allows(1e9)


def test_seconds_are_counted_from_the_start_and_work_that_would_not_fit_is_not_begun() -> None:
    now = [1000.0]
    limit = Deadline.of(Budget(max_seconds=100), clock=lambda: now[0])
    assert [limit.allows(seconds) for seconds in (0, 99.9, 100)] == [True, True, False]
    now[0] = 1070
    assert [limit.allows(seconds) for seconds in (29.9, 30)] == [True, False]
    now[0] = 1100
    assert not limit.allows(0)


def test_the_seconds_that_are_left_are_never_below_none() -> None:
    assert [Deadline(100, lambda now=now: now).left() for now in (70.0, 100.0, 130.0)] == [30, 0, 0]


def test_the_earlier_of_two_ends_counts() -> None:
    late = deadline(Budget(max_seconds=7200, until="07:00 Europe/Berlin"), "2026-06-01 06:00")
    early = deadline(Budget(max_seconds=1800, until="07:00 Europe/Berlin"), "2026-06-01 06:00")
    assert late.end == moment("2026-06-01 07:00").timestamp()
    assert early.end == moment("2026-06-01 06:30").timestamp()


@pytest.mark.parametrize(
    ("now", "stop"),
    [
        ("2026-06-01 22:00", "2026-06-02 07:00+02:00"),
        ("2026-06-01 06:59", "2026-06-01 07:00+02:00"),
        ("2026-06-01 07:00", "2026-06-02 07:00+02:00"),
        ("2026-12-31 23:00", "2027-01-01 07:00+01:00"),
        ("2026-03-28 22:00", "2026-03-29 07:00+02:00"),  # 8 hours later: the clocks go forward at 2
        ("2026-10-24 22:00", "2026-10-25 07:00+01:00"),  # 10 hours later: they go back at 3
    ],
)
def test_a_time_is_the_next_one_on_the_clocks_of_its_zone(now: str, stop: str) -> None:
    assert end("07:00", now) == stop


def test_the_night_that_the_clocks_are_put_is_as_long_as_it_is() -> None:
    def hours(now: str) -> float:
        return (deadline(Budget(until="07:00 Europe/Berlin"), now).end - moment(now).timestamp()) / 3600

    assert [hours(f"2026-{day} 22:00") for day in ("03-27", "03-28", "10-24")] == [9, 8, 10]


def test_a_time_that_the_clocks_skip_or_show_twice() -> None:
    assert end("02:30", "2026-03-28 22:00") == "2026-03-29 03:30+02:00"
    assert end("02:30", "2026-10-24 22:00") == "2026-10-25 02:30+02:00"
    between = datetime(2026, 10, 25, 2, 40, tzinfo=BERLIN).timestamp()  # the first 02:40 of that night
    again = Deadline.of(Budget(until="02:30 Europe/Berlin"), clock=lambda: between)
    assert again.end - between == 50 * 60


def test_the_time_after_the_scheduled_start_counts() -> None:
    assert end("07:00", "2026-06-02 06:00", begin="2026-06-01 22:00") == "2026-06-02 07:00+02:00"
    assert end("07:00", "2026-06-02 07:10", begin="2026-06-01 22:00") == "2026-06-02 07:00+02:00"
    waited = deadline(Budget(until="07:00 Europe/Berlin"), "2026-06-02 07:10", moment("2026-06-01 22:00"))
    assert not waited.allows(0)
    utc = deadline(Budget(until="07:00 Europe/Berlin"), "2026-06-02 06:00", moment("2026-06-01 20:00", "UTC"))
    assert utc.end == moment("2026-06-02 07:00").timestamp()


@pytest.mark.parametrize(
    ("hours", "now", "stop"),
    [
        ("22:00-07:00", "2026-06-01 22:00", "2026-06-02 07:00+02:00"),
        ("22:00-07:00", "2026-06-02 06:59", "2026-06-02 07:00+02:00"),
        ("22:00-07:00", "2026-06-02 07:00", "2026-06-02 07:00+02:00"),
        ("22:00-07:00", "2026-06-02 21:59", "2026-06-02 21:59+02:00"),
        ("9:00 - 17:30", "2026-06-01 09:00", "2026-06-01 17:30+02:00"),
        ("9:00 - 17:30", "2026-06-01 08:59", "2026-06-01 08:59+02:00"),
        ("9:00 - 17:30", "2026-06-01 17:30", "2026-06-01 17:30+02:00"),
        ("22:00-07:00", "2026-03-28 23:00", "2026-03-29 07:00+02:00"),
    ],
)
def test_hours_end_at_their_end_and_outside_of_them_there_is_no_time(hours: str, now: str, stop: str) -> None:
    assert end(hours, now) == stop
    assert deadline(Budget(until=f"{hours} Europe/Berlin"), now).allows(0) == (stop[:16] != now)


def test_hours_count_when_work_begins_and_not_when_it_should_have() -> None:
    assert end("22:00-07:00", "2026-06-01 22:10", begin="2026-06-01 21:00") == "2026-06-02 07:00+02:00"
    assert end("22:00-07:00", "2026-06-02 08:00", begin="2026-06-01 22:00") == "2026-06-02 08:00+02:00"


def test_hours_of_a_zone_are_not_those_of_another() -> None:
    assert deadline(Budget(until="22:00-07:00 Asia/Tokyo"), "2026-06-01 16:00").allows(0)  # 23:00 there
    assert not deadline(Budget(until="22:00-07:00 Europe/Berlin"), "2026-06-01 16:00").allows(0)


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_without_a_zone_the_clocks_of_the_machine_count(in_new_york: None) -> None:
    now = moment("2026-03-07 22:00", "America/New_York").timestamp()  # they go forward that night
    there = Deadline.of(Budget(until="07:00"), clock=lambda: now)
    assert there.end - now == 8 * 3600
    assert Deadline.of(Budget(until="22:00-07:00"), clock=lambda: now).end == there.end
    assert not Deadline.of(Budget(until="23:00-07:00"), clock=lambda: now).allows(0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("7", "got '7'"),
        ("until 07:00", "got 'until 07:00'"),
        ("07:00-", "got '07:00-'"),
        ("07:00 Europe/Berlin please", "got '07:00 Europe/Berlin please'"),
        ("24:00", "there is no time 24:00"),
        ("22:00-07:60", "there is no time 07:60"),
        ("07:00-07:00", "the hours of '07:00-07:00' end when they begin"),
        ("07:00 Mars/Base", "there is no time zone Mars/Base"),
        ("07:00 Europe", "there is no time zone Europe"),
        ("07:00 ../../etc/passwd", "there is no time zone ../../etc/passwd"),
    ],
)
def test_what_is_no_time_is_refused_in_one_line_with_examples(text: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Budget(until=text)
    (error,) = caught.value.errors()
    assert words in error["msg"]
    assert "expected a time such as 07:00, or hours such as 22:00-07:00 or 22:00-07:00 Europe/Berlin" in error["msg"]
    assert "\n" not in error["msg"]


def test_seconds_below_zero_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Budget(max_seconds=-1)


# ----------------------------------------------------------------------------------------------- generation


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flows without Prefect."""
    unserved.unserve(monkeypatch.setattr)


def test_a_generation_stops_at_a_parts_end_and_the_next_one_ends_with_the_same_data_set(
    plain: None,
    tiny: Any,
    pristine: RunFolder,
    finished: RunFolder,
    story: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in (2, 3, 5, 7):
        (finished.path / f"synthetic/part-{number:05d}.parquet").unlink()
    now, durations, made = [0.0], iter([30.0, 40.0, 30.0, 30.0]), []
    real = synthesis.make_one_part

    def timed(run: RunFolder, config: Any, number: int, on_images: Any) -> Any:
        made.append(number)
        seconds = next(durations)
        now[0] += seconds
        return dataclasses.replace(real(run, config, number, on_images), seconds=seconds)

    monkeypatch.setattr(synthesis, "make_one_part", timed)
    monkeypatch.setattr(Deadline, "of", lambda *_: Deadline(100.0, lambda: now[0]))
    # Begun at 0, at 30 (+30 < 100), not at 70: the longest took 40, and 110 > 100.
    with pytest.raises(Unfinished, match="2 of 4 missing parts"):
        pipeline.generate(tiny(), str(finished.path), Budget(max_seconds=100))
    assert made == [2, 3]
    whole = story.data_set(pristine)
    assert whole.keys() - story.data_set(finished).keys() == {
        "part-00005.parquet",
        "part-00007.parquet",
        "manifest.json",
    }
    monkeypatch.undo()
    unserved.unserve(monkeypatch.setattr)
    pipeline.generate(tiny(), str(finished.path))
    assert story.data_set(finished) == whole


def test_a_run_outside_of_its_hours_ends_before_anything_is_done(plain: None, tiny: Any, tmp_path: Path) -> None:
    here = time.localtime()
    hours = f"{(here.tm_hour + 2) % 24:02d}:00-{(here.tm_hour + 3) % 24:02d}:00"
    with pytest.raises(Unfinished, match=rf"no time to work \(until: {hours}\), so nothing was begun"):
        pipeline.generate(tiny(), str(tmp_path / "run"), Budget(until=hours))
    assert not (tmp_path / "run").exists()


def test_a_budget_on_the_command_line(run_command: Any, fake_flows: Any, generator: Path, tmp_path: Path) -> None:
    asked = []

    def generate(config: Any, out: str, budget: Budget) -> None:
        asked.append(budget)
        raise Unfinished("2 of 4 missing parts were made in the time; the same again makes the rest")

    fake_flows.generate = generate
    words = ("generate", "digits", "--generator", generator, "--out", tmp_path / "run")
    outcome = run_command(*words, "--max-seconds", "100", "--until", "07:00 Europe/Berlin")
    assert (outcome.code, outcome.out) == (3, "")
    assert asked == [Budget(max_seconds=100, until="07:00 Europe/Berlin")]
    assert outcome.err.splitlines()[1:] == [
        "partial: 2 of 4 missing parts were made in the time; the same again makes the rest",
        f"make the rest: latebloom generate digits --generator {generator} --out {tmp_path}/run --max-seconds 100 "
        "--until '07:00 Europe/Berlin'",
    ]
    outcome = run_command(*words, "--until", "soon")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: until: expected a time such as 07:00")
    assert run_command("select", "digits", "--until", "07:00").code == 2  # only what makes images can be unfinished
