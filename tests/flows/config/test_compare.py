import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest

from latebloom.flows.config.arms import Arm, parse_arm
from latebloom.flows.config.compare import (
    SAMPLING,
    CompareConfig,
    RunConfig,
    demo_config,
    one_setting,
    preset,
    setting_of,
)
from latebloom.flows.config.tools import CoresetRunConfig, FitGeneratorConfig
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.stages.training_sets import Pool, arm_rows
from latebloom.synth.config import SampleConfig
from latebloom.synth.sampling.levels import glide_log_snr
from latebloom.train.config import FitConfig

Tiny = Callable[..., CompareConfig]


def compare(**changes: Any) -> CompareConfig:
    return CompareConfig(**changes)


# ------------------------------------------------------------------------------------------------- arms by name


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("original", {"kind": "original"}),
        ("upsample-2", {"kind": "upsample", "k": 2}),
        ("ours-5", {"kind": "synthetic", "k": 5}),
        ("random-3", {"kind": "synthetic", "k": 3, "method": "random"}),
        ("high_loss-2", {"kind": "synthetic", "k": 2, "method": "high_loss"}),
        ("misclassified-2", {"kind": "synthetic", "k": 2, "method": "misclassified"}),
        ("misclassified_matched-2", {"kind": "synthetic", "k": 2, "method": "misclassified_matched"}),
        ("all-5", {"kind": "synthetic", "k": 5, "method": "all"}),
        ("noise-4", {"kind": "synthetic", "k": 4, "from_noise": True}),
        ("original@ours-5", {"kind": "original", "equal_steps_of": "ours-5"}),
        ("upsample-2@original", {"kind": "upsample", "k": 2, "equal_steps_of": "original"}),
        ("ours-1000", {"kind": "synthetic", "k": 1000}),
        ("original+craig", {"kind": "original", "selector": "craig"}),
        ("original+all", {"kind": "original", "selector": "all"}),
        ("original+max_loss:none", {"kind": "original", "selector": "max_loss", "budget": "none"}),
        ("ours-5+dea:equal", {"kind": "synthetic", "k": 5, "selector": "dea", "budget": "equal"}),
        (
            "original+el2n:proportional@ours-5+dea:equal",
            {"kind": "original", "selector": "el2n", "budget": "proportional", "equal_steps_of": "ours-5+dea:equal"},
        ),
        ("ours-5+el2n", {"kind": "synthetic", "k": 5, "selector": "el2n"}),
        ("upsample-2+max_loss", {"kind": "upsample", "k": 2, "selector": "max_loss"}),
        ("original@ours-5+dea", {"kind": "original", "equal_steps_of": "ours-5+dea"}),
        ("original+dea@ours-5", {"kind": "original", "selector": "dea", "equal_steps_of": "ours-5"}),
        (
            "ours-5+random@ours-5+dea",
            {"kind": "synthetic", "k": 5, "selector": "random", "equal_steps_of": "ours-5+dea"},
        ),
        ("ours-3:L70-50+dea", {"kind": "synthetic", "k": 3, "levels": (70, 50), "selector": "dea"}),
    ],
)
def test_an_arm_is_read_from_its_name(name: str, arm: dict[str, Any]) -> None:
    # Method cluster, k 1 and no other arm's steps where the name says nothing else.
    assert parse_arm(name) == Arm(name=name, **arm)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ours",
        "ours-",
        "ours-1",
        "ours-0",
        "ours--2",
        "ours-2.5",
        "ours-02",
        "ours-1001",
        "OURS-2",
        "theirs-2",
        "original-2",
        " ours-2",
        "ours-2 ",
        "cluster-2",
        "@ours-2",
        "original@",
        "original@ours-5@ours-2",
        "ours-2:50",
        "ours-2:L",
        "ours-2:L0",
        "ours-3:L50-",
        "original:L50",
    ],
)
def test_a_name_that_is_no_arm_is_refused_with_the_forms(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"no arm is called .*upsample-K, .* from 2 to 1000, ARM:L50-70 .*, ARM\+SELECTOR .*, or ARM@"
    ):
        parse_arm(name)


@pytest.mark.parametrize(
    "name", ["original+", "original+none", "ours-5+crag", "original+craig+dea", "original@ours-5@+"]
)
def test_a_selector_that_is_none_is_refused_with_the_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"no selector is called .*all, random, .*craig, dea|no arm is called"):
        parse_arm(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ours-2:L50-70", r"names 2 levels, and k = 2 needs 1: k counts the real image"),
        ("upsample-2:L50", r"upsample has no levels; leave :L50 out"),
        ("noise-2:L50", r"noise has no levels; leave :L50 out"),
    ],
)
def test_levels_that_an_arm_cannot_have_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arm(name)


def test_a_selector_has_a_budget_of_its_own() -> None:
    config = compare(arms=("original+max_loss:none", "original+dea"), strong={"coreset": {"fraction": 0.2}})
    own, other = (config.strong_of(arm).coreset for arm in config.parsed_arms)
    assert (own.budget, own.fraction, other.budget) == ("none", 0.2, "equal")
    for name in ("original+dea:most", "original+dea:", "original+all:none", "original+file:equal"):
        with pytest.raises(ValueError, match="is no budget of"):
            parse_arm(name)


def test_an_arms_strong_augmentation_is_the_configs_with_the_arms_selector() -> None:
    config = compare(arms=("original", "original+dea"), strong={"selector": "none", "every": 20, "copies": 2})
    strong = config.strong_of(parse_arm("original+dea"))
    assert (strong.selector, strong.every, strong.copies) == ("dea", 20, 2)
    assert config.strong_of(parse_arm("original")).selector == "none"
    with pytest.raises(ValueError, match="warm_epochs"):  # what the selector needs is checked with the arm's
        compare(arms=("original+forgetting",))


@pytest.mark.parametrize(
    ("arms", "slow"),
    [(("original", "original+craig"), False), (("original", "upsample-2"), True), (("ours-5+craig",), True)],
)
def test_only_arms_of_real_images_alone_need_no_slow_examples(arms: tuple[str, ...], slow: bool) -> None:
    assert compare(arms=arms).wants_slow == slow


@pytest.mark.parametrize(
    ("selector", "arms"),
    [
        ("none", ("original", "original@ours-5", "ours-5")),
        ("all", ("original", "original@ours-5+all", "ours-5", "ours-5+all")),
        ("random", ("original", "original@ours-5+random", "ours-5", "ours-5+random")),
        ("dea", ("original", "original@ours-5+dea", "ours-5", "ours-5+random", "ours-5+dea")),
        ("file", ("original", "original@ours-5+file", "ours-5", "ours-5+file")),
    ],
)
def test_one_setting_with_strong_copies_stands_beside_what_could_beat_it(selector: str, arms: tuple[str, ...]) -> None:
    setting = RunConfig(strong={"selector": selector, "file": "picked.npz"})
    assert one_setting(setting).arms == arms
    assert setting_of(one_setting(setting)) == setting


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (("ours-5", "ours-5"), "each may be named once, got ours-5, ours-5"),
        (("original@ours-5",), "takes its steps from 'ours-5', which is not among the arms"),
        (("original@ours-5", "ours-2"), "takes its steps from 'ours-5', which is not among the arms"),
        (("mine-5",), "no arm is called 'mine-5'"),
        (("ours-2:L101",), "level 101 of 100 does not exist"),
        ((), "at least 1 item"),
    ],
)
def test_arms_that_do_not_go_together_are_refused(arms: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(arms=arms)


@pytest.mark.parametrize(
    ("arm", "grid", "levels"),
    [
        ("original", 100, ()),
        ("upsample-2", 100, ()),
        ("ours-2", 100, (50,)),
        ("ours-4", 100, (50, 70, 80)),
        ("ours-5", 100, (40, 50, 70, 80)),
        ("random-5", 20, (8, 10, 14, 16)),
        ("all-2", 20, (10,)),
        ("noise-2", 20, (20,)),
        ("noise-3", 100, (100, 100)),  # two draws from pure noise
        ("ours-3", 100, (50, 70)),
        ("ours-2:L60", 100, (60,)),
        ("random-4:L9-9-20", 20, (9, 9, 20)),
    ],
)
def test_levels_of_an_arm_are_the_papers_on_the_grid(arm: str, grid: int, levels: tuple[int, ...]) -> None:
    config = compare(arms=(arm,), sample={"grid": grid})
    assert config.levels(parse_arm(arm)) == levels


def test_the_levels_that_are_given_are_those_of_the_arms_with_their_k_only() -> None:
    config = compare(arms=("ours-3", "random-3", "ours-2", "noise-3"), plan={"k": 3, "levels": (30, 60)})
    levels = {name: config.levels(parse_arm(name)) for name in config.arms}
    assert levels == {"ours-3": (30, 60), "random-3": (30, 60), "ours-2": (50,), "noise-3": (100, 100)}


def test_only_synthetic_arms_want_images() -> None:
    assert not compare(arms=("original", "upsample-2", "original@upsample-2")).wants_synthetic
    assert compare(arms=("original", "noise-2")).wants_synthetic


# ------------------------------------------------------------------------------------------------- rows of an arm


@pytest.fixture
def pool() -> Pool:
    """Ten real images; of rows 2 and 7 variants at levels 3, 3 again and 5, but one of row 7 is not usable."""
    made = [(2, 3, 0), (2, 3, 1), (2, 5, 0), (7, 3, 0), (7, 5, 0)]
    columns = zip(*made, strict=True)
    items = [f"item-{place}" for place in range(len(made))]
    names = ["item_id", "source_index", "level_steps", "variant"]
    return Pool.of(10, pa.table([items, *columns], names=names))


def rows(name: str, levels: tuple[int, ...], pool: Pool) -> list[int]:
    return arm_rows(parse_arm(name), np.array([2, 7]), levels, pool).tolist()


def test_every_arm_has_all_real_images_first(pool: Pool) -> None:
    real = list(range(10))
    assert rows("original", (), pool) == real
    assert rows("upsample-3", (), pool) == [*real, 2, 2, 7, 7]  # k - 1 copies beside the real one
    assert rows("ours-2", (5,), pool) == [*real, 12, 14]
    assert rows("ours-3", (3, 5), pool) == [*real, 10, 12, 13, 14]


def test_a_repeated_level_is_another_variant_and_what_is_not_usable_is_left_out(pool: Pool) -> None:
    assert rows("ours-3", (3, 3), pool) == [*range(10), 10, 11, 13]


def test_an_arm_without_selected_examples_is_the_original(pool: Pool) -> None:
    nothing = np.empty(0, np.int64)
    chosen = arm_rows(parse_arm("ours-3"), nothing, (3, 5), pool)
    assert chosen.tolist() == list(range(10))
    assert chosen.dtype == np.int64


# ------------------------------------------------------------------------------------------------- one setting


def test_one_setting_stands_beside_the_original_at_equal_epochs_and_at_equal_steps() -> None:
    config = one_setting(RunConfig(train={"optimizer": "sam"}, plan={"k": 2}, seed=3))
    assert config.arms == ("original", "original@ours-2", "ours-2")
    assert (config.optimizers, config.seeds, config.workers) == (("sam",), 1, 1)
    assert (config.plan.k, config.seed) == (2, 3)


@pytest.mark.parametrize(
    ("method", "arm"),
    [
        ("cluster", "ours-5"),
        ("random", "random-5"),
        ("all", "all-5"),
        ("high_loss", "high_loss-5"),
        ("misclassified", "misclassified-5"),
        ("misclassified_matched", "misclassified_matched-5"),
    ],
)
def test_one_setting_has_the_arm_of_its_method(method: str, arm: str) -> None:
    assert one_setting(RunConfig(slow={"method": method})).arms == ("original", f"original@{arm}", arm)


def test_the_setting_of_a_comparison_is_found_again_where_it_is_one() -> None:
    setting = RunConfig(plan={"k": 2}, train={"optimizer": "sam"}, seed=5)
    assert setting_of(one_setting(setting)) == setting
    assert setting_of(one_setting(setting).model_copy(update={"workers": 4})) == setting
    for changes in ({"seeds": 2}, {"optimizers": ("sgd",)}, {"arms": ("original", "ours-2")}):
        assert setting_of(one_setting(setting).model_copy(update=changes)) is None


# ------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("source", ["digits", "cifar10", "/some/folder"])
def test_a_preset_is_a_whole_config(source: str) -> None:
    CompareConfig(**preset(source))
    one_setting(RunConfig(**preset(source)))


def test_what_is_not_digits_starts_from_the_papers_setting() -> None:
    # 2505.21574, App. F.1: PreAct-ResNet18, 200 epochs, batch 128, lr 0.1, x0.1 at 50 and 75 %, wd 5e-4, SAM rho 0.1;
    # section 5: 100 steps, k = 5 at levels 40, 50, 70 and 80.
    config = RunConfig(**preset("cifar10"))
    assert config.classifier.model == "preact-resnet18"
    train = config.train
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay, train.rho) == (200, 128, 0.1, 5e-4, 0.1)
    assert (train.milestones, train.lr_decay, train.momentum) == ((0.5, 0.75), 0.1, 0.9)
    assert (config.plan.k, config.plan.steps(config.sample.grid)) == (5, (40, 50, 70, 80))


def test_samplings_are_what_their_names_say() -> None:
    made = {name: SampleConfig(**settings) for name, settings in SAMPLING.items()}
    assert made["paper"] == SampleConfig()  # 2505.21574, section 5: 100 ancestral steps, guidance 3
    calls = {name: (sample.calls(50), sample.calls(100), sample.calls_a_step) for name, sample in made.items()}
    assert calls == {"paper": (50, 100, 2), "balanced": (13, 25, 2), "fast": (4, 8, 1)}


def test_digits_are_never_mirrored() -> None:
    assert not RunConfig(**preset("digits")).train.flip


def test_the_demo_compares_the_arms_that_could_embarrass_us() -> None:
    config = demo_config()
    assert config.data.source == "digits"
    assert config.optimizers == ("sgd", "sam")
    assert config.seeds >= 3
    assert {"original", "original@ours-5", "upsample-2", "random-5", "all-5", "ours-5"} <= set(config.arms)


def test_levels_of_the_demo_have_the_noise_of_the_papers_levels_of_100() -> None:
    config = demo_config()
    levels = config.levels(parse_arm("ours-5"))
    assert levels == (40, 50, 70, 80)
    log_snr = glide_log_snr(config.sample.grid)[np.array(levels) - 1]
    # By hand from the signal's share of the variance on GLIDE's grid: .6549, .5016, .2069, .0959.
    np.testing.assert_allclose(log_snr, [0.641, 0.007, -1.344, -2.244], atol=0.001)
    assert [config.sample.calls(level) for level in levels] == [8, 10, 14, 16]  # a fifth of the paper's


# ------------------------------------------------------------------------------------------------- the models


def models(model: type[pydantic.BaseModel]) -> Iterator[type[pydantic.BaseModel]]:
    """A model and those it is composed of."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from models(field.annotation)


ALL = {*models(CompareConfig), *models(CoresetRunConfig), *models(FitGeneratorConfig)}


def test_the_walk_reaches_the_configs_of_all_packages() -> None:
    names = {model.__name__ for model in ALL}
    assert {"CompareConfig", "DataConfig", "FitConfig", "SlowConfig", "PlanConfig", "SampleConfig"} <= names
    assert {"GenerateConfig", "QualityConfig", "ClassifierConfig", "FitGeneratorConfig", "GeneratorConfig"} <= names
    assert {"SizeConfig", "PromptConfig", "DiffuseMixConfig", "ScoreConfig"} <= names


def test_every_setting_has_a_description_and_a_valid_default_and_configs_refuse_unknown_names() -> None:
    for model in ALL:
        assert model.__doc__
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"
        default = model()
        assert model.model_validate(default.model_dump(mode="json")) == default
        for name, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)
            assert nested or field.description, f"{model.__name__}.{name} has no description"


def test_configs_are_read_without_what_they_configure() -> None:
    code = """
import sys, latebloom.flows.config.presets, latebloom.flows.config.tools, latebloom.flows.run.resolve
heavy = {"torch", "numpy", "pyarrow", "prefect", "diffusers", "typer"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"plan": {"k": 3, "levels": (10,)}}, r"k = 3 needs 2 levels \(k counts the real image\), got 1"),
        ({"plan": {"k": 2, "levels": (0,)}}, "level 0 of 100 does not exist: levels go from 1 to 100"),
        ({"plan": {"k": 2, "levels": (101,)}}, "level 101 of 100 does not exist"),
        ({"plan": {"k": 2, "levels": (11,)}, "sample": {"grid": 10}}, "level 11 of 10 does not exist"),
        ({"sample": {"grid": 15}}, "do not fall on a grid of 15 steps"),
        ({"sample": {"steps": 101}}, "101 steps are more than the 100 of the grid"),
        ({"sizes": {"work_size": 7}}, "work size 7 is too small; give 8 to 4096, or 0"),
        ({"prompts": {"templates": ("a cat",)}}, "template 'a cat' must have {name}"),
        ({"train": {"milestones": (0.75, 0.5)}}, "milestones are ascending fractions"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig(**settings)


# ------------------------------------------------------------------------------------------------- from a run folder


def test_a_run_folder_says_what_was_asked(pristine: RunFolder, tiny: Tiny) -> None:
    assert read_config(pristine.path) == tiny()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.json; name a data source"):
        read_config(tmp_path)


@pytest.mark.parametrize("setting", [{"accumulate": 2}, {"compile": True}])
def test_what_one_of_the_optimizers_cannot_do_is_refused(setting: dict[str, Any]) -> None:
    """`train` names one optimizer, a comparison several: each is checked with the settings it will train with."""
    train = FitConfig(**setting)
    CompareConfig(train=train, optimizers=("sgd", "sam"))
    with pytest.raises(pydantic.ValidationError, match="adahessian") as caught:
        CompareConfig(train=train, optimizers=("sgd", "adahessian"))
    assert len(caught.value.errors()) == 1
