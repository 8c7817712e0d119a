"""DEA: "Data-Efficient Augmentation for Training Neural Networks" (arXiv 2210.08363)."""

from typing import Any

from latebloom.flows.config.presets.rows import RESNET18, Preset, against, net, on, pretrained, row, strong

__all__ = ["PRESETS"]

_DEA: dict[str, Any] = {"train": {"optimizer": "sgd", "weight_decay": 1e-4}, "seeds": 5}
_DEA_CIFAR: dict[str, Any] = {"train": {"epochs": 200, "batch_size": 128, "lr": 0.1}}
_DEA_CALTECH = pretrained("resnet18", RESNET18, epochs=40, batch_size=64, lr=0.001)
_DEA_RESNET50 = net("torchvision:resnet50", epochs=90, batch_size=64, lr=0.1, milestones=[1 / 3, 2 / 3])
_SUBSET: dict[str, Any] = {"main": "coreset", "weights": "normalised"}
_WEAK: dict[str, Any] = {"copies": 0}  # the selected examples without strong copies
_MAX_LOSS = "max_loss:none"  # its policy takes the highest losses of all, whatever their class
_THREE = against("random", _MAX_LOSS, "dea", "all")
# Section D.9: augmentations are made when a subset is selected, and kept till the next. All arms do so.
_CACHED: dict[str, Any] = {"redraw": "round"}

PRESETS: dict[str, Preset] = {
    "dea-cifar10-tiny": row(
        "DEA Table 1: ResNet20 on 0.1, 0.2, 0.5 or 1 % (here 1), R = 1; lr, batch, decay not given: 0.1, 128, 1e-4",
        _DEA,
        _DEA_CIFAR,
        on("cifar10"),
        net("resnet20"),
        strong("dea", 0.01, 1, **_SUBSET),
        against(_MAX_LOSS, "random", "dea", plain=False),
    ),
    "dea-cifar10-tiny-wrn": row(
        "DEA Table 1: WRN-28-10 on 1 %, R = 1; lr, batch, decay not given: 0.1, 128, 1e-4",
        _DEA,
        _DEA_CIFAR,
        on("cifar10"),
        net("wrn-28-10"),
        strong("dea", 0.01, 1, **_SUBSET),
        against(_MAX_LOSS, "random", "dea", plain=False),
    ),
    **{
        f"{like}-weak": row(
            f"DEA Table 8: the columns without strong augmentation, else as {like}",
            _DEA,
            _DEA_CIFAR,
            on("cifar10"),
            net(model),
            strong("dea", 0.01, 1, **_SUBSET, **_WEAK),
            against("random", "dea", plain=False),
        )
        for like, model in [("dea-cifar10-tiny", "resnet20"), ("dea-cifar10-tiny-wrn", "wrn-28-10")]
    },
    "dea-cifar10-table4": row(
        "DEA Table 4: full data and strong copies of 5, 10 or 30 % (here 30), ResNet20, R = 20, all augmentation kept "
        "for 20 epochs (D.9); lr, batch, decay not given: 0.1, 128, 1e-4",
        _DEA,
        _DEA_CIFAR,
        on("cifar10"),
        net("resnet20"),
        strong("dea", 0.3, 20, **_CACHED),
        _THREE,
    ),
    "dea-svhn-table4": row(
        "DEA Table 4: as dea-cifar10-table4 with ResNet32; flips too, as the paper says of all its data",
        _DEA,
        _DEA_CIFAR,
        on("svhn"),
        net("resnet32"),
        strong("dea", 0.3, 20, **_CACHED),
        _THREE,
    ),
    "dea-cifar10-imbalanced": row(
        "DEA Table 4, D.1: as dea-cifar10-table4 with ResNet32, long-tailed by a factor of 100",
        _DEA,
        _DEA_CIFAR,
        on("cifar10"),
        {"perturb": {"imbalance": "long_tailed", "imbalance_factor": 100}},
        net("resnet32"),
        strong("dea", 0.3, 20, **_CACHED),
        _THREE,
    ),
    "dea-cifar10-noise": row(
        "DEA Table 5: 50 % label noise, strong copies of 10, 30 or 50 % (here 50), R = 20; kind of noise not given, "
        "symmetric; the rest as dea-cifar10-table4",
        _DEA,
        _DEA_CIFAR,
        on("cifar10"),
        {"perturb": {"noise": "symmetric", "noise_fraction": 0.5}},
        net("resnet20"),
        strong("dea", 0.5, 20, **_CACHED),
        _THREE,
    ),
    "dea-caltech": row(
        "DEA Table 1, D.1: pretrained ResNet18 on 5 to 50 % (here 10), AutoAugment, R = 5; decay and milestones of the "
        "released code, 1e-4 and epochs 20 and 30; crop not given, 28 of 224 px",
        _DEA,
        on("caltech256"),
        _DEA_CALTECH,
        strong("dea", 0.1, 5, "autoaugment_imagenet", **_SUBSET),
        against(_MAX_LOSS, "random", "dea", plain=False),
    ),
    **{
        f"dea-caltech-{policy}": row(
            f"DEA Table 2: as dea-caltech on 30, 40 or 50 % (here 30) with {policy}, {how} as in the released code",
            _DEA,
            on("caltech256"),
            _DEA_CALTECH,
            strong("dea", 0.3, 5, policy, **_SUBSET),
            {"strong": {"policy": values}},
            against("random", "dea", plain=False),
        )
        for policy, how, values in [
            ("cutout", "32 px", {"cutout_length": 32}),
            ("augmix", "severity 1", {"augmix_severity": 1}),
            ("perturb", "brightness 0.2 and blur 5", {"perturb_brightness": 0.2, "perturb_kernel": 5}),
        ]
    },
    **{
        f"dea-caltech-{name}": row(
            f"DEA Tables 8 and 9: {what}, else as dea-caltech; 5, 10 or 30 % (here 10)",
            _DEA,
            on("caltech256"),
            _DEA_CALTECH,
            strong("dea", 0.1, 5, "autoaugment_imagenet", **_SUBSET, **how),
            against("random", "dea", plain=False),
        )
        for name, what, how in [
            ("weak", "the selected images without strong augmentation", _WEAK),
            ("in-place", "the selected images strong instead of weak", {"where": "in_place"}),
            ("in-place-twice", "the same with each image twice", {"where": "in_place_twice"}),
        ]
    },
    "dea-caltech-scratch": row(
        "DEA D.8, Table 12: fresh ResNet50 on 5, 10, 30 or 50 % (here 10), R = 40; decay and milestones of the "
        "released code, 1e-4 and epochs 250 and 350; crop not given, 28 of 224 px",
        _DEA,
        on("caltech256", image_size=224),
        net("torchvision:resnet50", epochs=400, batch_size=64, lr=0.05, milestones=[0.625, 0.875], crop_padding=28),
        strong("dea", 0.1, 40, "autoaugment_imagenet", **_SUBSET),
        against("random", "dea", plain=False),
    ),
    "dea-tiny-imagenet": row(
        "DEA Table 3: full data and strong copies of 20, 30 or 50 % (here 30), ResNet50, R = 15; decay and milestones "
        "of the released code, 1e-4 and epochs 30 and 60; stem and crop not given: torchvision's, 8 of 64 px",
        _DEA,
        on("tiny-imagenet"),
        _DEA_RESNET50,
        {"train": {"crop_padding": 8}},
        strong("dea", 0.3, 15, "autoaugment_imagenet"),
        against("random", _MAX_LOSS, "dea"),
    ),
    "dea-tiny-imagenet-random": row(
        "DEA Table 6: as dea-tiny-imagenet, but a random 10, 20 or 30 % (here 30) and strong copies of as many",
        _DEA,
        on("tiny-imagenet"),
        _DEA_RESNET50,
        {"train": {"crop_padding": 8}},
        strong("dea", 0.3, 15, "autoaugment_imagenet", main="random"),
        against("random", _MAX_LOSS, "dea", plain=False),
    ),
    "dea-imagenet-random": row(
        "DEA Table 6: ImageNet from a folder, a random 10, 30 or 50 % (here 50) and strong copies of as many; the rest "
        "as dea-tiny-imagenet, crop 28 of 224 px",
        _DEA,
        {"data": {"image_size": 224}},
        _DEA_RESNET50,
        {"train": {"crop_padding": 28}},
        strong("dea", 0.5, 15, "autoaugment_imagenet", main="random"),
        against("random", _MAX_LOSS, "dea", plain=False),
    ),
    "dea-cifar10-table13": row(
        "DEA Table 13: full data and strong copies of 0.2 or 0.5 % (here 0.2), selected each epoch, augmentation drawn "
        "each epoch; the rest as dea-cifar10-table4",
        _DEA,
        _DEA_CIFAR,
        on("cifar10"),
        net("resnet20"),
        strong("dea", 0.002, 1),
        against("random", _MAX_LOSS, "dea"),
    ),
}
