import pytest

from latebloom.flows.report.details import generation_sentences
from latebloom.flows.report.results import GenerationCost

OWN, ALL = GenerationCost("ours-5", 100.0, 1.0, 160, 1.6), GenerationCost("all-5", 400.0, 4.0, 400, 4.0)
RANDOM = GenerationCost("random-5", 100.0, 1.0, 320, 3.2)


def test_generation_for_all_seeds_is_their_union_and_all_images_are_held_against_both() -> None:
    first, second = generation_sentences([RANDOM, OWN, ALL], 3, shared=False)
    assert first.startswith("ours-5 takes 100 synthetic images for one seed and 160 for the 3 seeds")
    assert "1.60 times" in first
    assert "4.0 times those of ours-5 for one seed, 2.5 times for 3 seeds" in second


@pytest.mark.parametrize(
    ("costs", "seeds", "shared", "words"),
    [
        ([GenerationCost("ours-5", 100.0, 1.0, 100, 1.0)], 3, True, ["share one selection"]),
        ([GenerationCost("ours-5", 100.0, 1.0, 100, 1.0)], 1, False, []),
        ([GenerationCost("ours-5", 100.0, 1.0, 100, 1.0), ALL], 1, False, ["4.0 times those of ours-5 for one seed."]),
        ([RANDOM], 3, False, ["random-5 takes 100 synthetic images"]),
        ([ALL], 3, False, []),
        ([GenerationCost("noise-5", 0.0, 0.0, 0, 0.0)], 3, False, []),
        ([], 3, False, []),
    ],
    ids=["shared", "one seed", "all, one seed", "without ours", "all alone", "no images", "no arm"],
)
def test_generation_is_said_where_there_is_something_to_say(
    costs: list[GenerationCost], seeds: int, shared: bool, words: list[str]
) -> None:
    lines = generation_sentences(costs, seeds, shared)
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))
