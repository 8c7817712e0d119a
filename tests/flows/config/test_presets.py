import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from latebloom.data.sources.named import NAMED
from latebloom.data.states import THRESHOLDS
from latebloom.flows.config.arms import parse_arm
from latebloom.flows.config.compare import CompareConfig, RunConfig
from latebloom.flows.config.presets import PRESETS
from latebloom.flows.run.resolve import resolve
from latebloom.train.models.build import build

TADA = [name for name in PRESETS if name.startswith("tada")]
CORESETS = [name for name in PRESETS if not name.startswith("tada")]

# By hand from the papers: data, network, epochs, batch, learning rate, epochs at which it falls by 10, weight decay.
C, R = "torchvision:", "torchvision:resnet"
TRAINING: dict[str, tuple[str, str, int, int, float, tuple[int, ...], float]] = {
    "tada-cifar10": ("cifar10", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-cifar100": ("cifar100", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-tiny-imagenet": ("tiny-imagenet", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-vgg19": ("cifar10", C + "vgg19", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-densenet121": ("cifar10", C + "densenet121", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-vit-s": ("cifar10", "vit-s4", 200, 128, 0.01, (100, 150), 5e-4),
    "tada-convnext-t": ("cifar10", C + "convnext_tiny", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-swin-t": ("cifar10", C + "swin_t", 200, 128, 0.01, (100, 150), 5e-4),
    "tada-flowers": ("flowers102", R + "18", 200, 128, 0.001, (100, 150), 5e-4),
    "tada-aircraft": ("fgvc-aircraft", R + "18", 100, 128, 0.01, (50, 75), 5e-4),
    "tada-cars": ("stanford-cars", R + "18", 100, 128, 0.01, (50, 75), 5e-4),
    "tada-fig4-cifar10": ("cifar10", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-fig4-cifar100": ("cifar100", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-fig4-trivialaugment": ("cifar10", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-fig4-trivialaugment-cifar100": ("cifar100", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-fig4-trivialaugment-tiny-imagenet": ("tiny-imagenet", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-fig5b": ("cifar10", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-table5-cifar10": ("cifar10", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-table5-cifar100": ("cifar100", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-table5-tiny-imagenet": ("tiny-imagenet", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-table6": ("cifar10", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "tada-table7": ("cifar10", "preact-resnet18", 200, 128, 0.1, (100, 150), 5e-4),
    "dea-cifar10-tiny": ("cifar10", "resnet20", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-cifar10-tiny-wrn": ("cifar10", "wrn-28-10", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-cifar10-tiny-weak": ("cifar10", "resnet20", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-cifar10-tiny-wrn-weak": ("cifar10", "wrn-28-10", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-cifar10-table4": ("cifar10", "resnet20", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-svhn-table4": ("svhn", "resnet32", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-cifar10-imbalanced": ("cifar10", "resnet32", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-cifar10-noise": ("cifar10", "resnet20", 200, 128, 0.1, (100, 150), 1e-4),
    "dea-caltech": ("caltech256", R + "18", 40, 64, 0.001, (20, 30), 1e-4),
    "dea-caltech-cutout": ("caltech256", R + "18", 40, 64, 0.001, (20, 30), 1e-4),
    "dea-caltech-augmix": ("caltech256", R + "18", 40, 64, 0.001, (20, 30), 1e-4),
    "dea-caltech-perturb": ("caltech256", R + "18", 40, 64, 0.001, (20, 30), 1e-4),
    "dea-caltech-weak": ("caltech256", R + "18", 40, 64, 0.001, (20, 30), 1e-4),
    "dea-caltech-in-place": ("caltech256", R + "18", 40, 64, 0.001, (20, 30), 1e-4),
    "dea-caltech-in-place-twice": ("caltech256", R + "18", 40, 64, 0.001, (20, 30), 1e-4),
    "dea-caltech-scratch": ("caltech256", R + "50", 400, 64, 0.05, (250, 350), 1e-4),
    "dea-tiny-imagenet": ("tiny-imagenet", R + "50", 90, 64, 0.1, (30, 60), 1e-4),
    "dea-tiny-imagenet-random": ("tiny-imagenet", R + "50", 90, 64, 0.1, (30, 60), 1e-4),
    "dea-imagenet-random": ("", R + "50", 90, 64, 0.1, (30, 60), 1e-4),
    "dea-cifar10-table13": ("cifar10", "resnet20", 200, 128, 0.1, (100, 150), 1e-4),
    "lcmat-cifar10": ("cifar10", "resnet18", 200, 128, 0.1, (), 5e-4),
    "lcmat-cifar100": ("cifar100", "resnet18", 200, 128, 0.1, (), 5e-4),
    "lcmat-cifar10-vgg16": ("cifar10", C + "vgg16_bn", 200, 128, 0.1, (), 5e-4),
    "lcmat-cifar100-vgg16": ("cifar100", C + "vgg16_bn", 200, 128, 0.1, (), 5e-4),
    "lcmat-tiny-imagenet": ("tiny-imagenet", "resnet18", 200, 128, 0.1, (), 5e-4),
    "adacore-cifar10": ("cifar10", "resnet20", 200, 256, 0.1, (100, 150), 1e-4),
    "adacore-cifar10-adahessian": ("cifar10", "resnet20", 200, 256, 0.1, (100, 150), 1e-4),
    "adacore-cifar10-r20": ("cifar10", "resnet20", 200, 256, 0.1, (100, 150), 1e-4),
    "adacore-cifar10-resnet18": ("cifar10", "resnet18", 200, 256, 0.1, (100, 150), 1e-4),
    "adacore-cifar10-imbalanced": ("cifar10", "resnet18", 200, 256, 0.1, (100, 150), 1e-4),
    "adacore-cifar100": ("cifar100", "resnet18", 200, 128, 0.1, (100, 150), 1e-4),
    "adacore-bdd100k": ("", R + "50", 100, 128, 0.1, (50, 75), 1e-4),
}
# By hand: arms, optimizers, levels of 100 of the last arm (none for DiffuseMix), SAM's radius, separating epoch or 0.
BOTH, FOUR = ("sgd", "sam"), (40, 50, 70, 80)
K5 = ("original", "original@ours-5", "upsample-2", "ours-5")
K4 = ("original", "original@ours-4", "upsample-2", "ours-4")
K2 = ("original", "original@ours-2", "upsample-2", "ours-2")
MIX = ("original", "all-2", "ours-2")
TO_5 = ("ours-2", "ours-3", "ours-4", "ours-5")
SYNTHETIC: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], float, int]] = {
    "tada-cifar10": (K5, BOTH, FOUR, 0.1, 8),
    "tada-cifar100": (K5, BOTH, FOUR, 0.1, 0),
    "tada-tiny-imagenet": (K4, BOTH, (50, 70, 80), 0.1, 0),
    "tada-vgg19": (K5, BOTH, FOUR, 0.1, 8),
    "tada-densenet121": (K5, BOTH, FOUR, 0.1, 8),
    "tada-vit-s": (K5, BOTH, FOUR, 0.01, 8),
    "tada-convnext-t": (K2, BOTH, (50,), 0.05, 8),
    "tada-swin-t": (K2, BOTH, (50,), 0.001, 8),
    "tada-flowers": (MIX, BOTH, (), 0.1, 0),
    "tada-aircraft": (MIX, BOTH, (), 0.1, 0),
    "tada-cars": (MIX, BOTH, (), 0.1, 0),
    "tada-fig4-cifar10": (("original", "random-2", "all-2", "ours-2"), BOTH, (50,), 0.1, 8),
    "tada-fig4-cifar100": (("original", "random-2", "all-2", "ours-2"), BOTH, (50,), 0.1, 0),
    "tada-fig4-trivialaugment": (("original", "original+all", "ours-5", "ours-5+all"), BOTH, FOUR, 0.1, 8),
    "tada-fig4-trivialaugment-cifar100": (("original", "original+all", "ours-5", "ours-5+all"), BOTH, FOUR, 0.1, 0),
    "tada-fig4-trivialaugment-tiny-imagenet": (
        ("original", "original+all", "ours-4", "ours-4+all"),
        BOTH,
        (50, 70, 80),
        0.1,
        0,
    ),
    "tada-fig5b": (("original", "noise-2", "ours-2"), BOTH, (50,), 0.1, 8),
    "tada-table5-cifar10": (
        ("original", "upsample-2", "upsample-3", "upsample-4", "upsample-5", *TO_5),
        ("sgd",),
        FOUR,
        0.1,
        8,
    ),
    "tada-table5-cifar100": (("original", *TO_5), ("sgd",), FOUR, 0.1, 0),
    "tada-table5-tiny-imagenet": (("original", *TO_5), ("sgd",), FOUR, 0.1, 0),
    "tada-table6": (("original", *(f"ours-2:L{level}0" for level in range(1, 11))), BOTH, (100,), 0.1, 8),
    "tada-table7": (
        ("original", "misclassified-5", "misclassified_matched-5", "high_loss-5", "ours-5"),
        ("sgd",),
        FOUR,
        0.1,
        8,
    ),
}
# By hand: who picks, share, R, main set, strong copies of a picked example, augmentation.
STRONG: dict[str, tuple[str, float, int, str, int, str]] = {
    "dea-cifar10-tiny": ("dea", 0.01, 1, "coreset", 1, "wu2020"),
    "dea-cifar10-tiny-wrn": ("dea", 0.01, 1, "coreset", 1, "wu2020"),
    "dea-cifar10-tiny-weak": ("dea", 0.01, 1, "coreset", 0, ""),
    "dea-cifar10-tiny-wrn-weak": ("dea", 0.01, 1, "coreset", 0, ""),
    "dea-cifar10-table4": ("dea", 0.3, 20, "full", 1, "wu2020"),
    "dea-svhn-table4": ("dea", 0.3, 20, "full", 1, "wu2020"),
    "dea-cifar10-imbalanced": ("dea", 0.3, 20, "full", 1, "wu2020"),
    "dea-cifar10-noise": ("dea", 0.5, 20, "full", 1, "wu2020"),
    "dea-caltech": ("dea", 0.1, 5, "coreset", 1, "autoaugment_imagenet"),
    "dea-caltech-cutout": ("dea", 0.3, 5, "coreset", 1, "cutout"),
    "dea-caltech-augmix": ("dea", 0.3, 5, "coreset", 1, "augmix"),
    "dea-caltech-perturb": ("dea", 0.3, 5, "coreset", 1, "perturb"),
    "dea-caltech-weak": ("dea", 0.1, 5, "coreset", 0, ""),
    "dea-caltech-in-place": ("dea", 0.1, 5, "coreset", 1, "autoaugment_imagenet"),
    "dea-caltech-in-place-twice": ("dea", 0.1, 5, "coreset", 1, "autoaugment_imagenet"),
    "dea-caltech-scratch": ("dea", 0.1, 40, "coreset", 1, "autoaugment_imagenet"),
    "dea-tiny-imagenet": ("dea", 0.3, 15, "full", 1, "autoaugment_imagenet"),
    "dea-tiny-imagenet-random": ("dea", 0.3, 15, "random", 1, "autoaugment_imagenet"),
    "dea-imagenet-random": ("dea", 0.5, 15, "random", 1, "autoaugment_imagenet"),
    "dea-cifar10-table13": ("dea", 0.002, 1, "full", 1, "wu2020"),
    "lcmat-cifar10": ("lcmat", 0.1, 1, "coreset", 0, ""),
    "lcmat-cifar100": ("lcmat", 0.1, 1, "coreset", 0, ""),
    "lcmat-cifar10-vgg16": ("lcmat", 0.01, 1, "coreset", 0, ""),
    "lcmat-cifar100-vgg16": ("lcmat", 0.01, 1, "coreset", 0, ""),
    "lcmat-tiny-imagenet": ("lcmat", 0.01, 1, "coreset", 0, ""),
    "adacore-cifar10": ("adacore", 0.01, 1, "coreset", 0, ""),
    "adacore-cifar10-adahessian": ("adacore", 0.01, 1, "coreset", 0, ""),
    "adacore-cifar10-r20": ("adacore", 0.3, 20, "coreset", 0, ""),
    "adacore-cifar10-resnet18": ("adacore", 0.01, 1, "coreset", 0, ""),
    "adacore-cifar10-imbalanced": ("adacore", 0.01, 20, "coreset", 0, ""),
    "adacore-cifar100": ("adacore", 0.1, 20, "coreset", 0, ""),
    "adacore-bdd100k": ("adacore", 0.1, 20, "coreset", 0, ""),
}


def config(name: str) -> CompareConfig:
    return CompareConfig(**PRESETS[name].settings)


def setting(name: str) -> RunConfig:
    settings = PRESETS[name].settings
    return RunConfig(**{key: value for key, value in settings.items() if key in RunConfig.model_fields})


def test_every_preset_is_in_the_tables() -> None:
    assert list(TRAINING) == list(PRESETS)
    assert list(SYNTHETIC) == TADA
    assert list(STRONG) == CORESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_setting_and_a_comparison(name: str) -> None:
    assert setting(name).train == config(name).train
    about = PRESETS[name].about
    assert "\n" not in about
    assert about.startswith(
        {"tada": "TADA ", "dea": "DEA ", "lcmat": "LCMat ", "adacore": "AdaCore "}[name.split("-")[0]]
    )


@pytest.mark.parametrize("name", PRESETS)
def test_training_is_that_of_the_paper(name: str) -> None:
    found = config(name)
    source, model, epochs, batch, lr, milestones, decay = TRAINING[name]
    train = found.train
    assert PRESETS[name].settings.get("data", {}).get("source", "") == source
    assert not source or source in NAMED
    assert (found.classifier.model, train.epochs, train.batch_size) == (model, epochs, batch)
    assert (train.lr, train.weight_decay, train.momentum) == (lr, decay, 0.9)
    if milestones:
        assert train.schedule == "milestones"
        assert [m * epochs for m in train.milestones] == pytest.approx(milestones)
        assert train.lr_decay == 0.1


@pytest.mark.parametrize("name", TADA)
def test_synthetic_images_are_those_of_the_paper(name: str) -> None:
    found, (arms, optimizers, levels, rho, epoch) = config(name), SYNTHETIC[name]
    assert (found.arms, found.optimizers) == (arms, optimizers)
    assert (found.train.rho, found.slow.separating_epoch) == (rho, epoch)
    # The code that the paper follows: the L2 term in SAM's ascent, and BatchNorm moved by both passes.
    assert (found.train.sam_decay, found.train.sam_batchnorm) == ("ascent", "both")
    assert found.train.last_batch == ("keep" if arms == MIX else "drop")
    # The paper filters nothing: no threshold is on, and every score passes those that have no value for off.
    thresholds = [threshold for threshold, _ in THRESHOLDS.values()]
    assert all(getattr(found.quality, each.name) == (each.off or 0) for each in thresholds)
    if levels:
        assert found.levels(parse_arm(arms[-1])) == levels
        assert (found.sample.grid, found.sample.guidance_scale) == (100, 3.0)
        assert found.strong.selector == ("all" if "trivialaugment" in name else "none")
    else:
        assert (found.generate.kind, found.diffusemix.prompts) == ("diffusemix", ("Autumn",))


def test_trivial_augmentation_is_laid_over_every_image() -> None:
    strong = config("tada-fig4-trivialaugment").strong
    assert (strong.policy.policy, strong.where, strong.main) == ("trivialaugment", "in_place", "full")


@pytest.mark.parametrize("name", CORESETS)
def test_selection_is_that_of_the_paper(name: str) -> None:
    strong, (selector, fraction, every, main, copies, policy) = config(name).strong, STRONG[name]
    assert (strong.selector, strong.coreset.fraction, strong.every) == (selector, fraction, every)
    assert (strong.main, strong.copies) == (main, copies)
    assert not policy or strong.policy.policy == policy
    assert strong.where == {"in-place": "in_place", "in-place-twice": "in_place_twice"}.get(name[12:], "append")
    assert f"original+{selector}" in config(name).arms
    assert "original+random" in config(name).arms
    assert all(arm.startswith("original") for arm in config(name).arms)  # nothing has to be generated


def test_what_only_some_rows_have() -> None:
    cached = {name for name in CORESETS if config(name).strong.redraw == "round"}
    assert cached == {"dea-cifar10-table4", "dea-svhn-table4", "dea-cifar10-imbalanced", "dea-cifar10-noise"}
    linear, tailed = config("adacore-cifar10-imbalanced").perturb, config("dea-cifar10-imbalanced").perturb
    assert (linear.imbalance, linear.linear_least) == ("linear", 0)
    assert (tailed.imbalance, tailed.imbalance_factor) == ("long_tailed", 100)
    noisy = config("dea-cifar10-noise").perturb
    assert (noisy.noise, noisy.noise_fraction) == ("symmetric", 0.5)
    assert {name for name in PRESETS if config(name).perturb.noise != "none"} == {"dea-cifar10-noise"}
    assert config("dea-caltech-cutout").strong.policy.cutout_length == 32
    assert config("dea-caltech-augmix").strong.policy.augmix_severity == 1
    blurred = config("dea-caltech-perturb").strong.policy
    assert (blurred.perturb_brightness, blurred.perturb_kernel) == (0.2, 5)
    warm = config("adacore-cifar10").train
    assert warm.warmup * warm.epochs == 20
    assert not warm.flip
    lcmat = config("lcmat-cifar10")
    assert (lcmat.train.nesterov, lcmat.train.schedule, lcmat.strong.warm_epochs) == (True, "cosine", 0)
    assert (lcmat.strong.scout.model, lcmat.strong.scout.epochs) == ("resnet18", 10)
    assert config("lcmat-cifar10-vgg16").strong.scout.model == "torchvision:vgg16_bn"
    scouts = {name for name in PRESETS if config(name).strong.scout.model}
    assert scouts == {name for name in PRESETS if name.startswith("lcmat")}
    assert (lcmat.strong.coreset.gradient, lcmat.strong.coreset.lcmat_k) == ("last_layer", 100)
    assert config("adacore-cifar10-adahessian").train.optimizer == "adahessian"
    seeds = {
        prefix: {config(n).seeds for n in PRESETS if n.startswith(prefix)}
        for prefix in ("tada", "dea", "lcmat", "adacore")
    }
    assert seeds == {"tada": {5}, "dea": {5}, "lcmat": {5}, "adacore": {3}}
    # The published max-loss policy takes the highest losses of all, whatever their class.
    assert all("original+max_loss" not in config(name).arms for name in PRESETS)
    assert "original+max_loss:none" in config("dea-cifar10-table4").arms


@pytest.mark.slow
def test_their_networks_can_be_built() -> None:
    networks = set()
    for name in PRESETS:
        found = config(name)
        side = found.data.image_size or (64 if found.data.source == "tiny-imagenet" else 32)
        networks.add((found.classifier.model, side, found.classifier.width))
    with torch.device("meta"):  # no memory is taken, no number drawn
        for model, side, width in networks:
            build(model, 10, (side, side, 3), 0, width)


def test_pretrained_rows_name_torchvisions_file_and_no_other_row_has_one() -> None:
    given = {name: config(name).classifier.weights for name in PRESETS if config(name).classifier.weights}
    transfer = ("tada-flowers", "tada-aircraft", "tada-cars")
    caltech = {name for name in PRESETS if name.startswith("dea-caltech") and name != "dea-caltech-scratch"}
    assert set(given) == {*transfer, *caltech}
    assert {file.rsplit("/", 1)[1] for file in given.values()} == {"resnet18-f37072fd.pth"}
    assert all(config(name).data.image_size == 224 for name in given)


def test_the_papers_page_names_every_preset_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "papers.md").read_text()
    named = re.findall(r"`(?:[CR] --preset )?((?:tada|dea|lcmat|adacore)-[a-z0-9-]+)", page)
    assert set(named) == set(PRESETS)


def test_presets_share_nothing_that_a_command_could_change() -> None:
    before = copy.deepcopy({name: preset.settings for name, preset in PRESETS.items()})
    for name in PRESETS:
        resolve(None, {"data": {"source": "cifar10"}, "train": {"lr": 0.5}}, "compare", None, name)
    assert {name: preset.settings for name, preset in PRESETS.items()} == before


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("compare", {}, ("cifar10", 0.1, "original+dea")),
        ("compare", {"data": {"source": "./mine"}, "train": {"lr": 0.5}}, ("./mine", 0.5, "original+dea")),
        ("run", {}, ("cifar10", 0.1, "")),
    ],
)
def test_what_is_given_goes_before_the_preset(
    kind: str, given: dict[str, Any], expected: tuple[str, float, str]
) -> None:
    found, _ = resolve(None, given, kind, None, "dea-cifar10-table4")
    assert (found.data.source, found.train.lr) == expected[:2]
    assert found.strong.selector == "dea"
    if kind == "compare":
        assert expected[2] in found.arms
        assert found.optimizers == ("sgd",)
