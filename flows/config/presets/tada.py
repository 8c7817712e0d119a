"""TADA: "Do We Need All the Synthetic Data? Targeted Image Augmentation via Diffusion Models" (arXiv 2505.21574)."""

from typing import Any

from latebloom.flows.config.presets.rows import RESNET18, Preset, net, on, pretrained, row

__all__ = ["PRESETS"]


def _ours(k: int) -> dict[str, Any]:
    """k images a slow example beside the paper's baselines, and the original at as many steps."""
    return {"plan": {"k": k}, "arms": ["original", f"original@ours-{k}", "upsample-2", f"ours-{k}"]}


def _arms(*names: str, optimizers: tuple[str, ...] = ("sgd", "sam")) -> dict[str, Any]:
    return {"arms": list(names), "optimizers": list(optimizers)}


# App. F.1 and, where it says nothing, the code that it follows (Andriushchenko & Flammarion 2022, their repository
# tml-epfl/understanding-sam): a short last batch is dropped, the L2 term is part of SAM's ascent, and both passes move
# BatchNorm's statistics. Our own defaults differ in these three.
_TADA: dict[str, Any] = {
    "classifier": {"model": "preact-resnet18"},
    "train": {
        "epochs": 200,
        "batch_size": 128,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "rho": 0.1,
        "last_batch": "drop",
        "sam_decay": "ascent",
        "sam_batchnorm": "both",
    },
    "seeds": 5,  # not given; below five there is no verdict
    # Every image that the generator makes is trained on; only what is not finite cannot be.
    "quality": {"min_contrast": 0, "min_label_ratio": 0, "max_distance_ratio": 0, "min_distance": 0},
}
_CIFAR10 = {**on("cifar10"), "slow": {"separating_epoch": 8}}  # of USEFUL (arXiv 2404.17768), whose values it takes
_DIFFUSEMIX: dict[str, Any] = {
    "plan": {"k": 2},
    "train": {"last_batch": "keep"},  # small sets: nothing of them is left out
    "generate": {"generator": "timbrooks/instruct-pix2pix", "kind": "diffusemix"},
    "diffusemix": {"prompts": ["Autumn"]},
    "sizes": {"stretch": True},
    "arms": ["original", "all-2", "ours-2"],
}
_LEVELS = tuple(range(10, 101, 10))
_TRIVIAL = {"strong": {"selector": "all", "where": "in_place", "policy": {"policy": "trivialaugment"}}}

PRESETS: dict[str, Preset] = {
    "tada-cifar10": row("TADA Fig. 2, Table 4: PreAct-ResNet18, k = 5; separating epoch 8", _TADA, _CIFAR10, _ours(5)),
    "tada-cifar100": row(
        "TADA Fig. 2, Table 4: as tada-cifar10; separating epoch not given, the knee", _TADA, on("cifar100"), _ours(5)
    ),
    "tada-tiny-imagenet": row(
        "TADA Fig. 2, Table 4: k = 4; separating epoch not given, the knee; crop at 64 px not given, padding 4",
        _TADA,
        on("tiny-imagenet"),
        _ours(4),
    ),
    "tada-vgg19": row(
        "TADA Fig. 3, App. F.1: VGG19 as torchvision has it; change of stem not given, none",
        _TADA,
        _CIFAR10,
        net("torchvision:vgg19"),
        _ours(5),
    ),
    "tada-densenet121": row(
        "TADA Fig. 3, App. F.1: DenseNet121 as torchvision has it; change of stem not given, none",
        _TADA,
        _CIFAR10,
        net("torchvision:densenet121"),
        _ours(5),
    ),
    "tada-vit-s": row(
        "TADA Fig. 3, App. F.1: ViT-S with patches of 4, lr and rho 0.01; width of heads not given, vit-pytorch's 64",
        _TADA,
        _CIFAR10,
        net("vit-s4", lr=0.01, rho=0.01),
        _ours(5),
    ),
    "tada-convnext-t": row(
        "TADA Table 1, App. F.1: ConvNeXt-T, lr 0.1, rho 0.05; stochastic depth not given, torchvision's 0.1",
        _TADA,
        _CIFAR10,
        net("torchvision:convnext_tiny", lr=0.1, rho=0.05),
        _ours(2),
    ),
    "tada-swin-t": row(
        "TADA Table 1, App. F.1: Swin-T, lr 0.01, rho 0.001; stochastic depth not given, torchvision's 0.2",
        _TADA,
        _CIFAR10,
        net("torchvision:swin_t", lr=0.01, rho=0.001),
        _ours(2),
    ),
    "tada-flowers": row(
        "TADA Table 2, App. F.1: pretrained ResNet18, DiffuseMix; not given: batch 128, decay 5e-4, 224 px, crop 28",
        _TADA,
        on("flowers102"),
        pretrained("resnet18", RESNET18, epochs=200, lr=0.001),
        _DIFFUSEMIX,
    ),
    "tada-aircraft": row(
        "TADA Table 2, App. F.1: pretrained ResNet18, DiffuseMix; not given: batch 128, decay 5e-4, 224 px, crop 28",
        _TADA,
        on("fgvc-aircraft"),
        pretrained("resnet18", RESNET18, epochs=100, lr=0.01),
        _DIFFUSEMIX,
    ),
    "tada-cars": row(
        "TADA Table 2, App. F.1: pretrained ResNet18, DiffuseMix; not given: batch 128, decay 5e-4, 224 px, crop 28",
        _TADA,
        on("stanford-cars"),
        pretrained("resnet18", RESNET18, epochs=100, lr=0.01),
        _DIFFUSEMIX,
    ),
    **{
        f"tada-fig4-{source}": row(
            f"TADA Fig. 4: as many random images, all and ours at k = 2, as {like}",
            _TADA,
            data,
            {"plan": {"k": 2}},
            _arms("original", "random-2", "all-2", "ours-2"),
        )
        for source, like, data in [
            ("cifar10", "tada-cifar10", _CIFAR10),
            ("cifar100", "tada-cifar100", on("cifar100")),
        ]
    },
    **{
        f"tada-fig4-trivialaugment{suffix}": row(
            f"TADA Fig. 4 (right), section 5.2: ours with TrivialAugment on every image after the weak augmentation; "
            f"k = {k}, as {like}",
            _TADA,
            data,
            _TRIVIAL,
            {"plan": {"k": k}},
            _arms("original", "original+all", f"ours-{k}", f"ours-{k}+all"),
        )
        for suffix, like, k, data in [
            ("", "tada-cifar10", 5, _CIFAR10),
            ("-cifar100", "tada-cifar100", 5, on("cifar100")),
            ("-tiny-imagenet", "tada-tiny-imagenet", 4, on("tiny-imagenet")),
        ]
    },
    "tada-fig5b": row(
        "TADA Fig. 5 (b): variants of the slow images against images of their classes from pure noise; k not given, 2",
        _TADA,
        _CIFAR10,
        {"plan": {"k": 2}},
        _arms("original", "noise-2", "ours-2"),
    ),
    **{
        f"tada-table5-{source}": row(
            f"TADA Table 5{figure}: k from 2 to 5; levels of k = 3 not given, 50 and 70 of 100; as {like}",
            _TADA,
            data,
            _arms("original", *upsample, *(f"ours-{k}" for k in range(2, 6)), optimizers=("sgd",)),
        )
        for source, like, figure, upsample, data in [
            ("cifar10", "tada-cifar10", ", Fig. 5 (a)", tuple(f"upsample-{k}" for k in range(2, 6)), _CIFAR10),
            ("cifar100", "tada-cifar100", "", (), on("cifar100")),
            ("tiny-imagenet", "tada-tiny-imagenet", "", (), on("tiny-imagenet")),
        ]
    },
    "tada-table6": row(
        "TADA Table 6, Fig. 5 (c): k = 2, each level from 10 to 100 of 100, with their Frechet distances",
        _TADA,
        _CIFAR10,
        {"plan": {"k": 2}},
        _arms("original", *(f"ours-2:L{level}" for level in _LEVELS)),
    ),
    "tada-table7": row(
        "TADA Table 7: k = 5 by misclassification, high loss and clusters; misclassified ones are all that are wrong, "
        "and once as many as ours (sizes not given)",
        _TADA,
        _CIFAR10,
        _arms("original", "misclassified-5", "misclassified_matched-5", "high_loss-5", "ours-5", optimizers=("sgd",)),
    ),
}
