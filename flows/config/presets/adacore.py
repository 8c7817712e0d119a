"""AdaCore: "Adaptive Second Order Coresets for Data-efficient Machine Learning" (arXiv 2207.13887)."""

from typing import Any

from latebloom.flows.config.presets.rows import Preset, against, net, on, only, row

__all__ = ["PRESETS"]

_ADACORE: dict[str, Any] = {
    "train": {
        "optimizer": "sgd",
        "epochs": 200,
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "warmup": 0.1,
        "crop_padding": 0,
        "flip": False,
    },
    "seeds": 3,
    **against("random", "craig", "gradmatch", "glister", "adacore", plain=False),
}


def _adacore(fraction: float, every: int) -> dict[str, Any]:
    return only("adacore", fraction, every, "proportional", weights="normalised")


PRESETS: dict[str, Preset] = {
    "adacore-cifar10": row(
        "AdaCore Table 1: ResNet20 on 1 %, R = 1; augmentation and betas not given: none, and our defaults",
        _ADACORE,
        on("cifar10"),
        net("resnet20"),
        _adacore(0.01, 1),
    ),
    "adacore-cifar10-adahessian": row(
        "AdaCore Table 1: as adacore-cifar10 with AdaHessian; its lr not given, the schedule's 0.1",
        _ADACORE,
        on("cifar10"),
        net("resnet20", optimizer="adahessian"),
        _adacore(0.01, 1),
    ),
    "adacore-cifar10-r20": row(
        "AdaCore Table 4: ResNet20 on 10 or 30 % (here 30), R = 20; else as adacore-cifar10",
        _ADACORE,
        on("cifar10"),
        net("resnet20"),
        _adacore(0.3, 20),
    ),
    "adacore-cifar10-resnet18": row(
        "AdaCore Fig. 3, Table 3: ResNet18 on 1 %, R = 1; stem not given, 3x3; else as adacore-cifar10",
        _ADACORE,
        on("cifar10"),
        net("resnet18"),
        _adacore(0.01, 1),
    ),
    "adacore-cifar10-imbalanced": row(
        "AdaCore Table 2, C.2: ResNet18 on 1 % of classes kept at 0, 10 .. 90 %, R = 5, 10 or 20 (here 20)",
        _ADACORE,
        on("cifar10"),
        {"perturb": {"imbalance": "linear", "linear_least": 0}},
        net("resnet18"),
        _adacore(0.01, 20),
    ),
    "adacore-cifar100": row(
        "AdaCore Fig. 4: ResNet18 on 10 %, R = 20, batch 128; else as adacore-cifar10-resnet18",
        _ADACORE,
        on("cifar100"),
        net("resnet18", batch_size=128),
        _adacore(0.1, 20),
    ),
    "adacore-bdd100k": row(
        "AdaCore C.3: weather from a folder, ResNet50 on 10 %, R = 20, 100 epochs, batch 128; size, stem, milestones, "
        "warm-up not given: 224 px, torchvision's, the same fractions",
        _ADACORE,
        {"data": {"image_size": 224}},
        net("torchvision:resnet50", epochs=100, batch_size=128),
        _adacore(0.1, 20),
    ),
}
