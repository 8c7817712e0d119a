import pytest

from latebloom.flows.run.budget import Deadline
from latebloom.flows.runners.queue import PartQueue


def test_parts_are_given_out_one_at_a_time_in_order() -> None:
    queue = PartQueue([4, 2, 9])
    assert [queue.take() for _ in range(4)] == [[2], [4], [9], []]
    assert queue.left == []


def test_blocks_begin_at_the_same_numbers_whatever_is_left() -> None:
    queue = PartQueue([1, 2, 3, 4, 5, 9])
    assert [queue.take(4) for _ in range(4)] == [[1, 2, 3], [4, 5], [9], []]
    assert [PartQueue([3, 4]).take(4), PartQueue([2, 3]).take(4)] == [[3], [2, 3]]


def test_what_is_given_back_is_given_out_again() -> None:
    queue = PartQueue([1, 2, 3])
    queue.give_back(queue.take(2))
    assert queue.left == [1, 2, 3]


@pytest.mark.parametrize(("now", "given"), [(0, [0]), (89, [0]), (90, []), (200, [])])
def test_no_part_begins_that_would_end_after_the_deadline(now: float, given: list[int]) -> None:
    queue = PartQueue([0, 1], Deadline(100, lambda: now))
    queue.took(10)
    queue.took(3)  # the longest counts
    assert queue.is_over == (given == [])
    assert queue.take() == given
    assert queue.left == ([1] if given else [0, 1])


def test_the_time_until_the_deadline_is_known_where_there_is_one() -> None:
    assert PartQueue([0], Deadline(100, lambda: 40.0)).seconds_left == 60
    assert [PartQueue([0]).seconds_left, PartQueue([0], Deadline(float("inf"))).seconds_left] == [None, None]


def test_the_first_part_is_begun_while_there_is_any_time() -> None:
    assert PartQueue([0], Deadline(100, lambda: 99.9)).take() == [0]
    assert PartQueue([0], Deadline(100, lambda: 100.0)).take() == []
