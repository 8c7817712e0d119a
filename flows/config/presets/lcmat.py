"""LCMat: "Loss-Curvature Matching for Dataset Selection and Condensation" (arXiv 2303.04449)."""

from typing import Any

from latebloom.flows.config.merge import merge
from latebloom.flows.config.presets.rows import Preset, against, net, on, only, row

__all__ = ["PRESETS"]

_LCMAT: dict[str, Any] = {
    "train": {
        "optimizer": "sgd",
        "epochs": 200,
        "batch_size": 128,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "nesterov": True,
        "schedule": "cosine",
    },
    "classifier": {"model": "resnet18"},
    "seeds": 5,
}
_GRADIENTS = ("craig", "gradmatch", "glister", "adacore", "lcmat")
_TABLE_1 = against(
    *("random", "contextual_diversity", "herding", "k_center", "least_confidence", "entropy", "margin"),
    *_GRADIENTS,
    plain=False,
)
_TABLE_3 = against("random", "k_center", *_GRADIENTS, plain=False)


def _lcmat(fraction: float, scout: str = "resnet18") -> dict[str, Any]:
    """Selected once, by a scout that has seen all images. The baselines use the last layer's gradients too."""
    last = {"strong": {"coreset": {"gradient": "last_layer", "lcmat_k": 100}}}
    return merge(only("lcmat", fraction, 1, "equal", scout={"model": scout, "epochs": 10}), last)


PRESETS: dict[str, Preset] = {
    "lcmat-cifar10": row(
        "LCMat Table 1, D.1: ResNet18 (3x3 stem) on 0.1 to 30 % (here 10), selected once by a scout of 10 epochs on "
        "all images; Nesterov and cosine of the released code, whose scout has no augmentation and a constant rate; "
        "crop pads with zeros, not by reflection",
        _LCMAT,
        on("cifar10"),
        _lcmat(0.1),
        _TABLE_1,
    ),
    "lcmat-cifar100": row(
        "LCMat Table 1, D.1: as lcmat-cifar10 on 0.5 to 30 % (here 10)",
        _LCMAT,
        on("cifar100"),
        _lcmat(0.1),
        _TABLE_1,
    ),
    **{
        f"lcmat-{source}-vgg16": row(
            "LCMat Table 3: VGG16 selects and is trained, on 0.5 or 1 % (here 1); torchvision's VGG16 with BatchNorm, "
            "stem not given; the rest as lcmat-cifar10",
            _LCMAT,
            on(source),
            net("torchvision:vgg16_bn"),
            _lcmat(0.01, "torchvision:vgg16_bn"),
            _TABLE_3,
        )
        for source in ("cifar10", "cifar100")
    },
    "lcmat-tiny-imagenet": row(
        "LCMat Table 3: ResNet18 on 0.5 or 1 % (here 1); the rest not given, as lcmat-cifar10",
        _LCMAT,
        on("tiny-imagenet"),
        _lcmat(0.01),
        _TABLE_3,
    ),
}
