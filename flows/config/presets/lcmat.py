"""LCMat: "Loss-Curvature Matching for Dataset Selection and Condensation" (arXiv 2303.04449)."""

from typing import Any

from latebloom.flows.config.merge import merge
from latebloom.flows.config.presets.rows import Preset, against, on, only, row

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
    **against("random", "craig", "gradmatch", "glister", "adacore", "lcmat", plain=False),
}


def _lcmat(fraction: float) -> dict[str, Any]:
    """Selected once: never again within the run. The baselines use the last layer's gradients too."""
    last = {"strong": {"coreset": {"gradient": "last_layer", "lcmat_k": 100}}}
    return merge(only("lcmat", fraction, 100_000, "equal", warm_epochs=10), last)


PRESETS: dict[str, Preset] = {
    "lcmat-cifar10": row(
        "LCMat Table 1, D.1: ResNet18 (3x3 stem) on 0.1 to 30 % (here 10) selected once; Nesterov and cosine of the "
        "released code; crop pads with zeros, not by reflection; the network selects for itself after 10 epochs of "
        "as many random examples; in the paper another one selects after 10 epochs of all (as latebloom coreset does)",
        _LCMAT,
        on("cifar10"),
        _lcmat(0.1),
    ),
    "lcmat-cifar100": row(
        "LCMat Table 1, D.1: as lcmat-cifar10 on 0.5 to 30 % (here 10)", _LCMAT, on("cifar100"), _lcmat(0.1)
    ),
    "lcmat-tiny-imagenet": row(
        "LCMat Table 3: ResNet18 on 0.5 or 1 % (here 1); the rest not given, as lcmat-cifar10",
        _LCMAT,
        on("tiny-imagenet"),
        _lcmat(0.01),
    ),
}
