"""Which examples an epoch shows strongly, how often and how much they weigh; the mixer without a network."""

import itertools
from collections.abc import Callable

import numpy as np
import pydantic
import pytest
import torch

from latebloom.train.augment.mixing import EpochRows, Mixer, StrongConfig
from latebloom.train.augment.policies import PolicyConfig
from latebloom.train.config import ScoutConfig
from latebloom.train.evaluate import losses_of
from latebloom.train.selection.coreset import Coreset, CoresetConfig, Evidence

LABELS = np.arange(40) % 4  # ten of each class
HALF = CoresetConfig(fraction=0.5)  # five of each class: B = 20
CUTOUT = PolicyConfig(policy="cutout")
WU = PolicyConfig(policy="wu2020")


def mixer(labels: np.ndarray = LABELS, seed: int = 3, **settings: object) -> Mixer:
    """Max-loss with half of the images, unless told otherwise."""
    values = {"selector": "max_loss", "coreset": HALF, "policy": CUTOUT} | settings
    return Mixer(StrongConfig(**values), labels, 4, (8, 8, 3), seed)  # type: ignore[arg-type]


class Model:
    """Stands for a network: other outputs in each forward pass, and a count of passes."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        self.passes += 1
        rng = np.random.default_rng(self.passes)
        return rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(40, 6)).astype(np.float32)


def no_losses(plan: EpochRows) -> np.ndarray:
    raise AssertionError("only the loss-driven policy needs losses")


def epochs(mixer: Mixer, count: int, model: Model | None = None) -> list[EpochRows]:
    model = model or Model()
    return [mixer.epoch(number, model, no_losses) for number in range(count)]


def same(first: EpochRows, second: EpochRows) -> bool:
    return (
        np.array_equal(first.rows, second.rows)
        and np.array_equal(first.strong, second.strong)
        and (first.weights is second.weights is None or np.array_equal(first.weights, second.weights))  # type: ignore[arg-type]
        and first.drawn == second.drawn
        and first.copies.keys() == second.copies.keys()
        and all(torch.equal(value, second.copies[name]) for name, value in first.copies.items())
    )


# --- how long, and what is in it -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "length", "strong"),
    [
        ({"selector": "none"}, 40, 0),  # |main| + r |S| in general
        ({"main": "full", "copies": 3}, 100, 60),
        ({"main": "coreset", "copies": 4}, 100, 80),
        ({"main": "random", "copies": 2}, 60, 40),
        ({"where": "in_place"}, 40, 20),  # in place keeps the length
        ({"where": "in_place", "main": "coreset"}, 20, 20),
        ({"where": "in_place_twice"}, 80, 40),
        ({"selector": "all", "where": "in_place"}, 40, 40),
        ({"selector": "random", "coreset": CoresetConfig(fraction=0.1)}, 44, 4),
    ],
)
def test_the_length_of_an_epoch_is_known_before_training(settings: dict[str, object], length: int, strong: int) -> None:
    mixing = mixer(**settings)
    assert mixing.length == length
    for plan in epochs(mixing, 2):
        assert len(plan.rows) == len(plan.strong) == length
        assert plan.strong.sum() == strong
        assert all(len(values) == strong for values in plan.copies.values())


def test_appended_copies_stand_beside_all_examples() -> None:
    (plan,) = epochs(mixer(copies=2), 1)
    assert np.array_equal(np.sort(plan.rows[~plan.strong]), np.arange(40))
    rows, counts = np.unique(plan.rows[plan.strong], return_counts=True)
    assert len(rows) == 20
    assert set(counts) == {2}


def test_in_place_shows_picked_examples_strongly_and_not_weakly() -> None:
    for where, times in (("in_place", 1), ("in_place_twice", 2)):
        (plan,) = epochs(mixer(where=where), 1)
        assert set(np.bincount(plan.rows)) == {times}  # each example as often
        assert not set(plan.rows[plan.strong]) & set(plan.rows[~plan.strong])


def test_on_the_coreset_alone_only_its_rows_are_seen() -> None:
    mixing = mixer(main="coreset")
    (plan,) = epochs(mixing, 1)
    assert mixing.selection
    epoch, selected, gamma = mixing.selection
    assert epoch == 0
    assert len(selected) == len(gamma) == 20
    assert set(plan.rows[~plan.strong]) == set(plan.rows[plan.strong]) == set(selected)


def test_a_random_main_set_has_the_coresets_size_and_is_not_it() -> None:
    mixing = mixer(main="random", every=2)
    model = Model()
    first, second = epochs(mixing, 2, model)
    assert mixing.selection
    selected = mixing.selection[1]
    third = mixing.epoch(2, model, no_losses)
    main = first.rows[~first.strong]
    assert len(set(main)) == 20
    assert set(main) != set(selected)
    assert np.array_equal(second.rows[~second.strong], main)  # the same for the round
    assert not np.array_equal(third.rows[~third.strong], main)


def test_max_loss_is_the_top_by_cross_entropy() -> None:
    mixing = mixer(coreset=CoresetConfig(fraction=0.25, budget="none"))
    epochs(mixing, 1)
    losses = losses_of(Model()()[0], LABELS)
    assert mixing.selection
    assert set(mixing.selection[1]) == set(np.argsort(-losses)[:10])


# --- when ------------------------------------------------------------------------------------------------------------


def test_it_selects_every_so_many_epochs_after_the_warm_up_and_looks_at_no_other_time() -> None:
    model, mixing = Model(), mixer(every=3, warm_epochs=2)
    passes, selected = [], set()
    for number in range(10):
        mixing.epoch(number, model, no_losses)
        passes.append(model.passes)
        selected |= {mixing.selection[0]} if mixing.selection else set()
    assert passes == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert selected == {2, 5, 8}
    assert mixing.selections == 3
    assert mixing.seconds > 0


def test_what_needs_no_outputs_runs_no_forward_pass() -> None:
    model = Model()
    for selector in ("none", "all", "random"):
        epochs(mixer(selector=selector), 3, model)
    assert model.passes == 0


def test_epochs_before_the_first_selection_are_weak_and_as_long() -> None:
    warm, _ = epochs(mixer(copies=3, warm_epochs=1), 2)
    assert len(warm.rows) == 100
    assert not warm.strong.any()
    assert warm.weights is None
    assert set(np.bincount(warm.rows)) == {2, 3}  # whole passes, and the rest at random without repetition
    short, _ = epochs(mixer(main="coreset", where="in_place", warm_epochs=1), 2)
    assert len(set(short.rows)) == 20


def test_random_picks_others_each_round_and_for_each_seed() -> None:
    first, again, other = mixer(selector="random"), mixer(selector="random"), mixer(selector="random", seed=4)
    found: list[list[np.ndarray]] = []
    for mixing in (first, again, other):
        found.append([])
        for number in range(2):
            mixing.epoch(number, Model(), no_losses)
            assert mixing.selection
            found[-1].append(mixing.selection[1])
    (one, two), same_again, others = found
    assert set(one) != set(two)
    assert np.array_equal(same_again, [one, two])
    assert set(others[0]) != set(one)


def test_a_mixer_keeps_its_last_selection_and_counts_the_picks_so_that_checkpoints_do_not_grow() -> None:
    mixing, model, seen = mixer(), Model(), []
    sizes = set()
    for number in range(6):
        mixing.epoch(number, model, no_losses)
        assert mixing.selection
        seen.append(mixing.selection[1])
        assert np.array_equal(mixing.times_selected, np.bincount(np.concatenate(seen), minlength=40))
        assert mixing.selections == number + 1
        sizes.add(sum(value.nbytes for value in mixing.state().values()))
    assert len(sizes) == 1
    assert mixing.times_selected.sum() == 120


def test_augmentation_is_drawn_anew_each_epoch() -> None:
    first, second = epochs(mixer(every=2), 2)
    assert np.array_equal(first.rows, second.rows)
    assert (first.drawn, second.drawn) == (0, 1)
    assert any(not torch.equal(value, second.copies[name]) for name, value in first.copies.items())


def test_augmentation_can_be_kept_for_the_round() -> None:
    """As in Table 4 of arXiv 2210.08363: between two selections the same tensors are seen, the weak ones too."""
    plans = epochs(mixer(every=3, redraw="round", warm_epochs=1), 7)
    assert [plan.drawn for plan in plans] == [0, 1, 1, 1, 4, 4, 4]
    assert same(plans[1], plans[2])
    assert same(plans[1], plans[3])
    assert same(plans[4], plans[6])
    assert not same(plans[3], plans[4])


# --- weights ---------------------------------------------------------------------------------------------------------


def weighted(**settings: object) -> tuple[EpochRows, np.ndarray]:
    """An epoch, and the coreset's gamma for each of its rows (1 for those not selected)."""
    mixing = mixer(selector="craig", **settings)
    (plan,) = epochs(mixing, 1)
    assert mixing.selection
    _, selected, gamma = mixing.selection
    of_row = np.ones(40)
    of_row[selected] = gamma
    assert gamma.sum() == 40
    assert len(set(gamma)) > 1
    return plan, of_row[plan.rows]


def test_without_weights_there_are_none() -> None:
    assert weighted()[0].weights is None


@pytest.mark.parametrize("weigh_strong", [False, True])
def test_normalised_weights_are_gamma_by_its_mean_on_a_main_set_that_is_the_coreset(weigh_strong: bool) -> None:
    plan, gamma = weighted(main="coreset", weights="normalised", weigh_strong=weigh_strong, copies=2)
    assert plan.weights is not None
    np.testing.assert_allclose(plan.weights[~plan.strong], gamma[~plan.strong] / 2)  # mean of gamma: 40 / 20
    assert plan.weights[~plan.strong].mean() == pytest.approx(1)
    expected = gamma[plan.strong] / 2 if weigh_strong else 1
    np.testing.assert_allclose(plan.weights[plan.strong], np.broadcast_to(expected, 40))
    assert plan.weights.mean() == pytest.approx(1)


def test_a_full_main_set_is_not_weighted() -> None:
    plan, gamma = weighted(weights="normalised", weigh_strong=True)
    assert plan.weights is not None
    assert (plan.weights[~plan.strong] == 1).all()
    np.testing.assert_allclose(plan.weights[plan.strong], gamma[plan.strong] / 2)


def test_gamma_over_r_makes_the_copies_of_all_picked_weigh_as_much_as_the_training_set() -> None:
    for main in ("full", "coreset", "random"):
        plan, gamma = weighted(main=main, weights="gamma_over_r", copies=4)
        assert plan.weights is not None
        np.testing.assert_allclose(plan.weights[plan.strong], gamma[plan.strong] / 4)
        assert plan.weights[plan.strong].sum() == pytest.approx(40)
        expected = gamma[~plan.strong] if main == "coreset" else 1
        np.testing.assert_allclose(plan.weights[~plan.strong], np.broadcast_to(expected, (~plan.strong).sum()))


def test_in_place_on_the_coreset_every_row_has_its_weight() -> None:
    plan, gamma = weighted(main="coreset", where="in_place", weights="normalised")
    assert plan.weights is not None
    np.testing.assert_allclose(plan.weights, gamma / 2)


# --- a coreset from a file ------------------------------------------------------------------------------------------

GIVEN = Coreset(np.array([8, 0, 5, 2, 3]), np.array([3, 1, 2, 0, 4], np.float32))  # of classes 0, 0, 1, 2, 3


def given(coreset: Coreset | None = GIVEN, **settings: object) -> Mixer:
    values = {"selector": "file", "file": "selected.npz", "policy": CUTOUT} | settings
    return Mixer(StrongConfig(**values), LABELS, 4, (8, 8, 3), 3, coreset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "length", "strong"),
    [
        ({"main": "coreset", "copies": 0}, 5, 0),
        ({"main": "coreset", "copies": 3}, 20, 15),
        ({"main": "random"}, 10, 5),
        ({"where": "in_place"}, 40, 5),
    ],
)
def test_a_given_coreset_is_selected_once_and_its_size_is_the_budget(
    settings: dict[str, object], length: int, strong: int
) -> None:
    warm = 0 if settings.get("main") == "coreset" else 1  # with which something else would be trained on
    model, mixing = Model(), given(coreset=GIVEN, **settings, warm_epochs=warm)
    plans = epochs(mixing, 5, model)
    assert mixing.length == length
    expected = [*[(length, 0)] * warm, *[(length, strong)] * (5 - warm)]
    assert [(len(plan.rows), int(plan.strong.sum())) for plan in plans] == expected
    assert mixing.selections == 1
    assert mixing.selection
    epoch, selected, gamma = mixing.selection
    assert (epoch, selected.tolist(), gamma.tolist()) == (warm, GIVEN.indices.tolist(), GIVEN.weights.tolist())
    assert all(set(plan.rows[plan.strong]) <= set(GIVEN.indices) for plan in plans[1:])
    assert model.passes == 0


@pytest.mark.parametrize("selector", ["craig", "adacore", "forgetting", "random"])
def test_a_scout_selects_once_before_the_first_epoch_and_the_network_is_not_asked(selector: str) -> None:
    outputs, calls = Model()(), list[int]()

    def scout() -> Evidence:
        calls.append(1)
        return Evidence(outputs[0], LABELS, outputs[1], forgotten=np.arange(40.0))

    config = StrongConfig(
        selector=selector,  # type: ignore[arg-type]
        coreset=HALF,
        main="coreset",
        copies=0,
        every=2,
        scout=ScoutConfig(model="small-cnn"),
    )
    model, mixing = Model(), Mixer(config, LABELS, 4, (8, 8, 3), 3, scout=scout)
    assert not mixing.counts
    plans = epochs(mixing, 5, model)
    assert (model.passes, len(calls), mixing.selections) == (0, 0 if selector == "random" else 1, 1)
    assert all(np.array_equal(plan.rows, plans[0].rows) for plan in plans)
    assert len(plans[0].rows) == 20
    if selector == "forgetting":  # the five of each class that were forgotten most often
        assert set(plans[0].rows) == set(range(20, 40))


def test_each_selection_is_handed_on_when_it_is_made_and_once_more_after_a_resume() -> None:
    made: list[tuple[int, Coreset]] = []

    def noted(mixing: Mixer) -> Mixer:
        mixing.on_selection = lambda epoch, coreset: made.append((epoch, coreset))
        return mixing

    first = noted(mixer(every=2, selector="craig"))
    model = Model()
    saved = None
    for number in range(5):
        first.epoch(number, model, no_losses)
        saved = first.state() if number == 1 else saved
    assert [epoch for epoch, _ in made] == [0, 2, 4]
    assert first.selection
    np.testing.assert_array_equal(made[-1][1].indices, first.selection[1])
    assert saved
    assert not any(len(value.shape) and len(value) > 40 for value in saved.values())  # of one selection, not of all
    second, model = noted(mixer(every=2, selector="craig")), Model()
    second.restore(saved)
    model.passes = 1
    for number in (2, 3, 4):
        second.epoch(number, model, no_losses)
    again = made[3:]
    assert [epoch for epoch, _ in again] == [2, 4]
    for (_, one), (_, other) in zip(made[1:3], again, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.owner, other.owner)  # type: ignore[arg-type]


def test_training_on_the_picks_alone_shows_them_and_nothing_else_with_their_weights() -> None:
    (plan,) = epochs(given(main="coreset", copies=0, weights="normalised"), 1)
    assert plan.rows.tolist() == GIVEN.indices.tolist()
    assert plan.weights is not None
    np.testing.assert_allclose(plan.weights, [1.5, 0.5, 1, 0, 2])  # by a mean of 2
    (plan,) = epochs(given(main="coreset", copies=2, weights="gamma_over_r"), 1)
    assert plan.weights is not None
    np.testing.assert_allclose(plan.weights, [3, 1, 2, 0, 4, *[1.5, 0.5, 1, 0, 2] * 2])


def test_a_random_main_set_beside_a_given_coreset_has_as_many_of_each_class() -> None:
    plan, later = epochs(given(main="random"), 2)
    main = plan.rows[~plan.strong]
    assert LABELS[main].tolist() == [0, 0, 1, 2, 3]
    assert len(set(main)) == 5
    assert set(main) != set(GIVEN.indices)
    assert np.array_equal(main, later.rows[~later.strong])


def test_a_restored_mixer_goes_on_with_a_given_coreset() -> None:
    settings = {"main": "random", "warm_epochs": 1, "every": 2, "redraw": "round"}
    whole = epochs(given(**settings), 5)
    for stop in range(1, 5):
        part, rest = given(**settings), given(**settings)
        epochs(part, stop)
        rest.restore(part.state())
        for number in range(stop, 5):
            assert same(rest.epoch(number, Model(), no_losses), whole[number])


def test_states_of_mixers_that_were_given_one_coreset_share_no_memory() -> None:
    """One checkpoint holds them all, and safetensors refuses tensors that share memory."""
    pair = [given(main="coreset") for _ in range(2)]
    for mixing in pair:
        epochs(mixing, 1)
    arrays = [value for mixing in pair for value in mixing.state().values() if value.size]
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(arrays, 2))


def test_a_coreset_is_given_where_the_selector_is_a_file_and_nowhere_else() -> None:
    with pytest.raises(ValueError, match="selector is file; a coreset is given for selector=file and for no other"):
        given(None)
    with pytest.raises(ValueError, match="selector is craig; a coreset is given for selector=file and for no other"):
        given(GIVEN, selector="craig")
    for row in (-1, 40):
        with pytest.raises(ValueError, match=r"rows outside 0\.\.39"):
            given(Coreset(np.array([0, row]), np.ones(2, np.float32)))


# --- forgetting ------------------------------------------------------------------------------------------------------


def test_forgetting_counts_right_to_wrong_and_takes_what_was_never_learned_for_endless() -> None:
    """Never learned is infinite: DeepCore counts zero there and so drops the hardest examples."""
    mixing = mixer(
        selector="forgetting", warm_epochs=1, coreset=CoresetConfig(fraction=0.5, budget="none"), labels=LABELS[:6]
    )
    rows = np.arange(6)
    history = [  # by epoch, right or not
        [1, 1, 1, 0, 0, 1],
        [1, 0, 1, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
        [1, 0, 1, 0, 1, 1],
    ]  # events: 0, 2, 1, never learned, 0, 1
    for right in history:
        mixing.count(rows, np.array(right, bool))
    mixing.count(np.array([5]), np.array([False]))  # an epoch that saw only the last: 2 events
    mixing.epoch(1, Model(), no_losses)
    assert mixing.selection
    assert set(mixing.selection[1]) == {3, 1, 5}
    restored = mixer(
        selector="forgetting", warm_epochs=1, coreset=CoresetConfig(fraction=0.5, budget="none"), labels=LABELS[:6]
    )
    restored.restore(mixing.state())
    restored.count(np.array([4, 5]), np.array([False, True]))
    restored.count(np.array([5]), np.array([False]))
    restored.epoch(2, Model(), no_losses)
    assert restored.selection
    assert set(restored.selection[1]) == {3, 1, 5}
    assert mixing.counts
    assert not mixer().counts


# --- the loss-driven policy ------------------------------------------------------------------------------------------


class Losses:
    """Gives the i-th strong copy its highest loss at its candidate i modulo their number."""

    def __init__(self) -> None:
        self.calls: list[EpochRows] = []

    def __call__(self, plan: EpochRows) -> np.ndarray:
        self.calls.append(plan)
        return np.full(int(plan.strong.sum()), 1.0, np.float32)


def test_candidates_are_judged_at_the_start_of_an_epoch_or_of_a_round() -> None:
    for redraw, computed in (("epoch", [1, 2, 3, 4]), ("round", [1, 1, 2, 2])):
        losses, mixing, model = Losses(), mixer(policy=WU, every=2, redraw=redraw), Model()
        counts = []
        for number in range(4):
            mixing.epoch(number, model, losses)
            counts.append(len(losses.calls) / mixing.policy.candidates)
        assert counts == computed


def test_each_strong_copy_gets_the_candidate_of_the_highest_loss() -> None:
    mixing = mixer(policy=WU.model_copy(update={"choose": "top"}), copies=2)
    table = np.random.default_rng(0).uniform(size=(40, mixing.policy.candidates)).astype(np.float32)
    seen: list[EpochRows] = []

    def losses(plan: EpochRows) -> np.ndarray:
        seen.append(plan)
        return table[:, len(seen) - 1]

    plan = mixing.epoch(0, Model(), losses)
    for copy, best in enumerate(table.argmax(1)):
        for name, values in plan.copies.items():
            assert torch.equal(values[copy], seen[best].copies[name][copy])


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 3, "redraw": "round", "main": "random"},
        {"every": 3, "main": "coreset", "weights": "normalised", "selector": "craig", "copies": 2},
        {"every": 2, "warm_epochs": 2, "selector": "adacore"},
        {"every": 3, "policy": WU, "redraw": "round"},
        {"every": 2, "policy": WU.model_copy(update={"choose": "proportional"})},
    ],
)
def test_a_restored_mixer_goes_on_as_if_nothing_had_happened(settings: dict[str, object]) -> None:
    """It makes the same epoch once more, with a network that has since changed, and all that follow."""

    def losses_of_epoch(number: int) -> Callable[[EpochRows], np.ndarray]:
        return lambda plan: np.random.default_rng(number).uniform(size=int(plan.strong.sum())).astype(np.float32)

    def outputs_of(number: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        model = Model()
        model.passes = 100 * number
        return model

    whole = mixer(**settings)
    plans = [whole.epoch(number, outputs_of(number), losses_of_epoch(number)) for number in range(7)]
    for stop in (1, 3, 4, 6):
        part, rest = mixer(**settings), mixer(**settings)
        for number in range(stop):
            part.epoch(number, outputs_of(number), losses_of_epoch(number))
        rest.restore({name: value.copy() for name, value in part.state().items()})
        assert rest.seconds == part.seconds
        for number in range(stop - 1, 7):
            late = number + 50 * (number == stop - 1)  # what is seen in the middle of an epoch must not matter
            assert same(rest.epoch(number, outputs_of(late), losses_of_epoch(late)), plans[number])
        assert rest.selections == whole.selections
        np.testing.assert_array_equal(rest.times_selected, whole.times_selected, strict=True)
        assert rest.selection
        assert whole.selection
        for value, expected in zip(rest.selection, whole.selection, strict=True):
            np.testing.assert_array_equal(value, expected, strict=True)


# --- bad settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": "in_place", "copies": 2}, "copies=2 needs where=append"),
        ({"where": "in_place_twice", "main": "random"}, "give main=full or coreset, not random"),
        ({"selector": "forgetting"}, "warm_epochs is 0, but forgetting counts what training forgets; give at least 1"),
        ({"selector": "file"}, "strong.file is empty; give a coreset-METHOD.npz there"),
        ({"weigh_strong": True}, "weigh_strong is for weights=normalised, not none"),
        ({"weights": "normalised"}, "weights=normalised has no effect with main=full; give main=coreset"),
        ({"weights": "normalised", "main": "random"}, "no effect with main=random"),
        ({"copies": 0}, "copies=0 trains on the selected examples alone"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        mixer(**settings)
