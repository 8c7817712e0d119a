"""The choice of slow examples: one a seed, or one for all seeds, and what is recorded of it."""

from collections.abc import Callable

import numpy as np
import pytest

from latebloom.data.seeds import child_seed
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import SELECT
from latebloom.flows.stages import checks, select, training
from latebloom.flows.stages.context import RunContext
from latebloom.train.evaluate import softmax
from latebloom.train.selection.slow import select_slow

Tiny = Callable[..., CompareConfig]
ARMS = ("original", "ours-2", "misclassified-2", "misclassified_matched-2")


@pytest.fixture(scope="module")
def early(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    config = tiny({"arms": ARMS})
    run = checks.open_run(config, str(tmp_path_factory.mktemp("early") / "run"))
    training.train_early(run, config)
    return run


def test_each_seed_has_its_own_selection_and_the_union_is_counted(early: RunFolder, tiny: Tiny) -> None:
    config = tiny({"arms": ARMS})
    select.select_examples(early, config)
    run, facts = RunContext(early, config), early.record(SELECT).facts
    assert set(facts.sizes) == {"cluster", "misclassified", "misclassified_matched"}
    for method in ("cluster", "misclassified", "misclassified_matched"):
        first, second = (run.selected(method, number) for number in (0, 1))
        assert facts.sizes[method] == [len(first), len(second)]
        assert facts.union[method] == len(set(first) | set(second))
    assert facts.slow == facts.sizes["cluster"] == facts.sizes["misclassified_matched"]
    assert facts.union["cluster"] > max(facts.slow)  # two early classifiers do not agree
    for number in (0, 1):  # the natural size: all that are wrong
        logits, labels = run.early_arrays(number, "logits", "labels")
        np.testing.assert_array_equal(run.selected("misclassified", number), np.flatnonzero(logits.argmax(1) != labels))


def test_a_shared_selection_is_that_of_the_mean_probabilities(early: RunFolder, tiny: Tiny) -> None:
    config = tiny({"arms": ARMS, "slow.shared": True})
    select.select_examples(early, config)
    run, facts = RunContext(early, config), early.record(SELECT).facts
    arrays = [run.early_arrays(number, "logits", "labels") for number in (0, 1)]
    mean = (softmax(arrays[0][0]) + softmax(arrays[1][0])) / 2
    seed = child_seed(config.seed, "shared")  # of the starts of 2-means, which may end in another optimum
    expected = select_slow(np.log(mean), arrays[0][1], "cluster", seed).indices
    for method in ("cluster", "misclassified", "misclassified_matched"):
        np.testing.assert_array_equal(run.selected(method, 0), run.selected(method, 1))
        assert facts.union[method] == facts.sizes[method][0] == facts.sizes[method][1]
    np.testing.assert_array_equal(run.selected("cluster", 0), expected)
    np.testing.assert_array_equal(run.selected("misclassified", 0), np.flatnonzero(mean.argmax(1) != arrays[0][1]))


def test_a_method_that_chooses_nothing_is_refused(
    early: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunContext.early_arrays

    def all_right(self: RunContext, number: int, *names: str) -> list[np.ndarray]:
        logits, labels = real(self, number, "logits", "labels")
        logits[np.arange(len(labels)), labels] += 100
        return [{"logits": logits, "labels": labels}[name] for name in names]

    monkeypatch.setattr(RunContext, "early_arrays", all_right)
    with pytest.raises(ValueError, match="misclassified chose none of the images for any seed"):
        select.select_examples(early, tiny({"arms": ARMS, "slow.space": "logits"}))
