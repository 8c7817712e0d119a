import pytest

from latebloom.flows.run.budget import Deadline
from latebloom.flows.runners.queue import Handout


def test_parts_are_given_out_one_at_a_time_in_order() -> None:
    handout = Handout([4, 2, 9])
    assert [handout.take() for _ in range(4)] == [[2], [4], [9], []]
    assert handout.left == []


def test_blocks_begin_at_the_same_numbers_whatever_is_left() -> None:
    handout = Handout([1, 2, 3, 4, 5, 9])
    assert [handout.take(4) for _ in range(4)] == [[1, 2, 3], [4, 5], [9], []]
    assert [Handout([3, 4]).take(4), Handout([2, 3]).take(4)] == [[3], [2, 3]]


def test_what_is_given_back_is_given_out_again() -> None:
    handout = Handout([1, 2, 3])
    handout.give_back(handout.take(2))
    assert handout.left == [1, 2, 3]


@pytest.mark.parametrize(("now", "given"), [(0, [0]), (89, [0]), (90, []), (200, [])])
def test_no_part_begins_that_would_end_after_the_deadline(now: float, given: list[int]) -> None:
    handout = Handout([0, 1], Deadline(100, lambda: now))
    handout.took(10)
    handout.took(3)  # the longest counts
    assert handout.is_over == (given == [])
    assert handout.take() == given
    assert handout.left == ([1] if given else [0, 1])


def test_the_time_until_the_deadline_is_told_where_there_is_one() -> None:
    assert Handout([0], Deadline(100, lambda: 40.0)).seconds_left == 60
    assert [Handout([0]).seconds_left, Handout([0], Deadline(float("inf"))).seconds_left] == [None, None]


def test_the_first_part_is_begun_while_there_is_any_time() -> None:
    assert Handout([0], Deadline(100, lambda: 99.9)).take() == [0]
    assert Handout([0], Deadline(100, lambda: 100.0)).take() == []
