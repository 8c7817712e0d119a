"""The papers' settings by row, as settings over the defaults: what `--preset NAME` takes.

The papers are TADA (arXiv 2505.21574), "Data-Efficient Augmentation for Training Neural Networks" (DEA, 2210.08363),
"Loss-Curvature Matching for Dataset Selection and Condensation" (LCMat, 2303.04449) and "Adaptive Second Order Coresets
for Data-efficient Machine Learning" (AdaCore, 2207.13887). What a paper leaves open is said in each `about`, with what
is taken instead. The generator is never set, but for DiffuseMix: TADA's GLIDE has no open weights as a folder.
"""

import functools
from dataclasses import dataclass
from typing import Any

from latebloom.flows.config.merge import merge

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A row of a paper.

    Attributes:
        about: one line: paper, table or section, and what is not given there and was taken here.
        settings: nested, over the defaults of RunConfig or, where they name arms, of CompareConfig. They include the
            data's name where it has one; the SOURCE of a command goes before it.
    """

    about: str
    settings: dict[str, Any]


def _row(about: str, *parts: dict[str, Any]) -> Preset:
    """Each part over those before it."""
    return Preset(about, functools.reduce(merge, parts, {}))


def _on(source: str, **more: Any) -> dict[str, Any]:
    return {"data": {"source": source, **more}}


def _net(model: str, **train: Any) -> dict[str, Any]:
    """A network, and how it is trained."""
    return {"classifier": {"model": model}, "train": train}


def _pretrained(model: str, file: str, **train: Any) -> dict[str, Any]:
    """ImageNet's weights where torchvision puts them when it downloads them; 224 px, cropped by an eighth."""
    classifier = {"model": f"torchvision:{model}", "weights": f"~/.cache/torch/hub/checkpoints/{file}"}
    return {"classifier": classifier, "data": {"image_size": 224}, "train": {"crop_padding": 28, **train}}


def _ours(k: int) -> dict[str, Any]:
    """k images a slow example beside the paper's baselines, and the original at as many steps."""
    return {"plan": {"k": k}, "arms": ["original", f"original@ours-{k}", "upsample-2", f"ours-{k}"]}


# Everything else of TADA's CIFAR setting (App. F.1) is a default.
_TADA = {
    "classifier": {"model": "preact-resnet18"},
    "train": {"epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "rho": 0.1},
}
_DIFFUSEMIX = {
    "plan": {"k": 2},
    "generate": {"generator": "timbrooks/instruct-pix2pix", "kind": "diffusemix"},
    "diffusemix": {"prompts": ["Autumn"]},
    "sizes": {"stretch": True},
    "arms": ["original", "all-2", "ours-2"],
}
_R18 = "resnet18-f37072fd.pth"  # torchvision's IMAGENET1K_V1


def _strong(selector: str, fraction: float, every: int, policy: str = "wu2020", **more: Any) -> dict[str, Any]:
    """Strong copies of a share of each class, selected anew every so many epochs."""
    coreset = {"fraction": fraction, "budget": "equal"}
    return {"strong": {"selector": selector, "coreset": coreset, "policy": {"policy": policy}, "every": every, **more}}


def _against(*selectors: str, plain: bool = True) -> dict[str, Any]:
    """Arms on real images: without strong copies, and by selector."""
    return {"arms": ["original"] * plain + [f"original+{selector}" for selector in selectors]}


_DEA = {"train": {"optimizer": "sgd", "weight_decay": 1e-4}, "seeds": 5}
_DEA_CIFAR = {"train": {"epochs": 200, "batch_size": 128, "lr": 0.1}}
_DEA_CALTECH = _pretrained("resnet18", _R18, epochs=40, batch_size=64, lr=0.001)
_DEA_RESNET50 = _net("torchvision:resnet50", epochs=90, batch_size=64, lr=0.1, milestones=[1 / 3, 2 / 3])
_SUBSET = {"main": "coreset", "weights": "normalised"}
_THREE = _against("random", "max_loss", "dea", "all")
_CACHED = {"redraw": "round"}  # section D.9: augmentations are made when a subset is selected, and kept till the next

_LCMAT = {
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
    **_against("random", "craig", "gradmatch", "glister", "adacore", "lcmat", plain=False),
}


def _only(selector: str, fraction: float, every: int, budget: str, **more: Any) -> dict[str, Any]:
    """Training on the selected examples alone, without strong copies."""
    coreset = {"fraction": fraction, "budget": budget}
    more = {"main": "coreset", "copies": 0, "every": every, **more}
    return {"strong": {"selector": selector, "coreset": coreset, **more}}


def _lcmat(fraction: float) -> dict[str, Any]:
    """Selected once: never again within the run. The baselines use the last layer's gradients too."""
    last = {"strong": {"coreset": {"gradient": "last_layer", "lcmat_k": 100}}}
    return merge(_only("lcmat", fraction, 100_000, "equal", warm_epochs=10), last)


_ADACORE = {
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
    **_against("random", "craig", "gradmatch", "glister", "adacore", plain=False),
}


def _adacore(fraction: float, every: int) -> dict[str, Any]:
    return _only("adacore", fraction, every, "proportional", weights="normalised")


PRESETS: dict[str, Preset] = {
    "tada-cifar10": _row("TADA App. F.1, Table 4: PreAct-ResNet18, k = 5", _TADA, _on("cifar10"), _ours(5)),
    "tada-cifar100": _row("TADA App. F.1, Table 4: as tada-cifar10", _TADA, _on("cifar100"), _ours(5)),
    "tada-tiny-imagenet": _row(
        "TADA App. F.1, Table 4: k = 4; crop at 64 px not given, padding 4", _TADA, _on("tiny-imagenet"), _ours(4)
    ),
    "tada-vgg19": _row(
        "TADA Fig. 3, App. F.1: VGG19 as torchvision has it; change of stem not given, none",
        _TADA,
        _on("cifar10"),
        _net("torchvision:vgg19"),
        _ours(5),
    ),
    "tada-densenet121": _row(
        "TADA Fig. 3, App. F.1: DenseNet121 as torchvision has it; change of stem not given, none",
        _TADA,
        _on("cifar10"),
        _net("torchvision:densenet121"),
        _ours(5),
    ),
    "tada-vit-s": _row(
        "TADA Fig. 3, App. F.1: ViT-S with patches of 4, lr and rho 0.01; width of heads not given, vit-pytorch's 64",
        _TADA,
        _on("cifar10"),
        _net("vit-s4", lr=0.01, rho=0.01),
        _ours(5),
    ),
    "tada-convnext-t": _row(
        "TADA Table 2, App. F.1: ConvNeXt-T, lr 0.1, rho 0.05; stochastic depth not given, torchvision's 0.1",
        _TADA,
        _on("cifar10"),
        _net("torchvision:convnext_tiny", lr=0.1, rho=0.05),
        _ours(2),
    ),
    "tada-swin-t": _row(
        "TADA Table 2, App. F.1: Swin-T, lr 0.01, rho 0.001; stochastic depth not given, torchvision's 0.2",
        _TADA,
        _on("cifar10"),
        _net("torchvision:swin_t", lr=0.01, rho=0.001),
        _ours(2),
    ),
    "tada-flowers": _row(
        "TADA App. F.1: pretrained ResNet18, DiffuseMix; batch, decay, size, crop not given: 128, 5e-4, 224 px, 28",
        _TADA,
        _on("flowers102"),
        _pretrained("resnet18", _R18, epochs=200, lr=0.001),
        _DIFFUSEMIX,
    ),
    "tada-aircraft": _row(
        "TADA App. F.1: pretrained ResNet18, DiffuseMix; batch, decay, size, crop not given: 128, 5e-4, 224 px, 28",
        _TADA,
        _on("fgvc-aircraft"),
        _pretrained("resnet18", _R18, epochs=100, lr=0.01),
        _DIFFUSEMIX,
    ),
    "tada-cars": _row(
        "TADA App. F.1: pretrained ResNet18, DiffuseMix; batch, decay, size, crop not given: 128, 5e-4, 224 px, 28",
        _TADA,
        _on("stanford-cars"),
        _pretrained("resnet18", _R18, epochs=100, lr=0.01),
        _DIFFUSEMIX,
    ),
    "dea-cifar10-tiny": _row(
        "DEA Table 1: ResNet20 on 0.1, 0.2, 0.5 or 1 % (here 1), R = 1; lr, batch, decay not given: 0.1, 128, 1e-4",
        _DEA,
        _DEA_CIFAR,
        _on("cifar10"),
        _net("resnet20"),
        _strong("dea", 0.01, 1, **_SUBSET),
        _against("max_loss", "random", "dea", plain=False),
    ),
    "dea-cifar10-tiny-wrn": _row(
        "DEA Table 1: WRN-28-10 on 1 %, R = 1; lr, batch, decay not given: 0.1, 128, 1e-4",
        _DEA,
        _DEA_CIFAR,
        _on("cifar10"),
        _net("wrn-28-10"),
        _strong("dea", 0.01, 1, **_SUBSET),
        _against("max_loss", "random", "dea", plain=False),
    ),
    "dea-cifar10-table4": _row(
        "DEA Table 4: full data and strong copies of 5, 10 or 30 % (here 30), ResNet20, R = 20, all augmentation kept "
        "for 20 epochs (D.9); lr, batch, decay not given: 0.1, 128, 1e-4",
        _DEA,
        _DEA_CIFAR,
        _on("cifar10"),
        _net("resnet20"),
        _strong("dea", 0.3, 20, **_CACHED),
        _THREE,
    ),
    "dea-svhn-table4": _row(
        "DEA Table 4: as dea-cifar10-table4 with ResNet32; flips too, as the paper says of all its data",
        _DEA,
        _DEA_CIFAR,
        _on("svhn"),
        _net("resnet32"),
        _strong("dea", 0.3, 20, **_CACHED),
        _THREE,
    ),
    "dea-cifar10-imbalanced": _row(
        "DEA Table 4, D.1: as dea-cifar10-table4 with ResNet32, long-tailed by a factor of 100",
        _DEA,
        _DEA_CIFAR,
        _on("cifar10"),
        {"perturb": {"imbalance": "long_tailed", "imbalance_factor": 100}},
        _net("resnet32"),
        _strong("dea", 0.3, 20, **_CACHED),
        _THREE,
    ),
    "dea-cifar10-noise": _row(
        "DEA Table 5: 50 % label noise, strong copies of 10, 30 or 50 % (here 50), R = 20; kind of noise not given, "
        "symmetric; the rest as dea-cifar10-table4",
        _DEA,
        _DEA_CIFAR,
        _on("cifar10"),
        {"perturb": {"noise": "symmetric", "noise_fraction": 0.5}},
        _net("resnet20"),
        _strong("dea", 0.5, 20, **_CACHED),
        _THREE,
    ),
    "dea-caltech": _row(
        "DEA Table 1, D.1: pretrained ResNet18 on 5 to 50 % (here 10), AutoAugment, R = 5; decay and milestones of the "
        "released code, 1e-4 and epochs 20 and 30; crop not given, 28 of 224 px",
        _DEA,
        _on("caltech256"),
        _DEA_CALTECH,
        _strong("dea", 0.1, 5, "autoaugment_imagenet", **_SUBSET),
        _against("max_loss", "random", "dea", plain=False),
    ),
    **{
        f"dea-caltech-{policy}": _row(
            f"DEA Table 2: as dea-caltech on 30, 40 or 50 % (here 30) with {policy}, {how} as in the released code",
            _DEA,
            _on("caltech256"),
            _DEA_CALTECH,
            _strong("dea", 0.3, 5, policy, **_SUBSET),
            {"strong": {"policy": values}},
            _against("random", "dea", plain=False),
        )
        for policy, how, values in [
            ("cutout", "32 px", {"cutout_length": 32}),
            ("augmix", "severity 1", {"augmix_severity": 1}),
            ("perturb", "brightness 0.2 and blur 5", {"perturb_brightness": 0.2, "perturb_kernel": 5}),
        ]
    },
    "dea-caltech-scratch": _row(
        "DEA D.8, Table 12: fresh ResNet50 on 5, 10, 30 or 50 % (here 10), R = 40; decay and milestones of the "
        "released code, 1e-4 and epochs 250 and 350; crop not given, 28 of 224 px",
        _DEA,
        _on("caltech256", image_size=224),
        _net("torchvision:resnet50", epochs=400, batch_size=64, lr=0.05, milestones=[0.625, 0.875], crop_padding=28),
        _strong("dea", 0.1, 40, "autoaugment_imagenet", **_SUBSET),
        _against("random", "dea", plain=False),
    ),
    "dea-tiny-imagenet": _row(
        "DEA Table 3: full data and strong copies of 20, 30 or 50 % (here 30), ResNet50, R = 15; decay and milestones "
        "of the released code, 1e-4 and epochs 30 and 60; stem and crop not given: torchvision's, 8 of 64 px",
        _DEA,
        _on("tiny-imagenet"),
        _DEA_RESNET50,
        {"train": {"crop_padding": 8}},
        _strong("dea", 0.3, 15, "autoaugment_imagenet"),
        _against("random", "max_loss", "dea"),
    ),
    "dea-tiny-imagenet-random": _row(
        "DEA Table 6: as dea-tiny-imagenet, but a random 10, 20 or 30 % (here 30) and strong copies of as many",
        _DEA,
        _on("tiny-imagenet"),
        _DEA_RESNET50,
        {"train": {"crop_padding": 8}},
        _strong("dea", 0.3, 15, "autoaugment_imagenet", main="random"),
        _against("random", "max_loss", "dea", plain=False),
    ),
    "dea-imagenet-random": _row(
        "DEA Table 6: ImageNet from a folder, a random 10, 30 or 50 % (here 50) and strong copies of as many; the rest "
        "as dea-tiny-imagenet, crop 28 of 224 px",
        _DEA,
        {"data": {"image_size": 224}},
        _DEA_RESNET50,
        {"train": {"crop_padding": 28}},
        _strong("dea", 0.5, 15, "autoaugment_imagenet", main="random"),
        _against("random", "max_loss", "dea", plain=False),
    ),
    "lcmat-cifar10": _row(
        "LCMat Table 1, D.1: ResNet18 (3x3 stem) on 0.1 to 30 % (here 10) selected once; Nesterov and cosine of the "
        "released code; crop pads with zeros, not by reflection; the network selects for itself after 10 epochs of "
        "as many random examples; in the paper another one selects after 10 epochs of all (as latebloom coreset does)",
        _LCMAT,
        _on("cifar10"),
        _lcmat(0.1),
    ),
    "lcmat-cifar100": _row(
        "LCMat Table 1, D.1: as lcmat-cifar10 on 0.5 to 30 % (here 10)", _LCMAT, _on("cifar100"), _lcmat(0.1)
    ),
    "lcmat-tiny-imagenet": _row(
        "LCMat Table 3: ResNet18 on 0.5 or 1 % (here 1); the rest not given, as lcmat-cifar10",
        _LCMAT,
        _on("tiny-imagenet"),
        _lcmat(0.01),
    ),
    "adacore-cifar10": _row(
        "AdaCore Table 1: ResNet20 on 1 %, R = 1; augmentation and betas not given: none, and our defaults",
        _ADACORE,
        _on("cifar10"),
        _net("resnet20"),
        _adacore(0.01, 1),
    ),
    "adacore-cifar10-adahessian": _row(
        "AdaCore Table 1: as adacore-cifar10 with AdaHessian; its lr not given, the schedule's 0.1",
        _ADACORE,
        _on("cifar10"),
        _net("resnet20", optimizer="adahessian"),
        _adacore(0.01, 1),
    ),
    "adacore-cifar10-r20": _row(
        "AdaCore Table 4: ResNet20 on 10 or 30 % (here 30), R = 20; else as adacore-cifar10",
        _ADACORE,
        _on("cifar10"),
        _net("resnet20"),
        _adacore(0.3, 20),
    ),
    "adacore-cifar10-resnet18": _row(
        "AdaCore Fig. 3, Table 3: ResNet18 on 1 %, R = 1; stem not given, 3x3; else as adacore-cifar10",
        _ADACORE,
        _on("cifar10"),
        _net("resnet18"),
        _adacore(0.01, 1),
    ),
    "adacore-cifar10-imbalanced": _row(
        "AdaCore Table 2, C.2: ResNet18 on 1 % of classes kept at 0, 10 .. 90 %, R = 5, 10 or 20 (here 20)",
        _ADACORE,
        _on("cifar10"),
        {"perturb": {"imbalance": "linear", "linear_least": 0}},
        _net("resnet18"),
        _adacore(0.01, 20),
    ),
    "adacore-cifar100": _row(
        "AdaCore Fig. 4: ResNet18 on 10 %, R = 20, batch 128; else as adacore-cifar10-resnet18",
        _ADACORE,
        _on("cifar100"),
        _net("resnet18", batch_size=128),
        _adacore(0.1, 20),
    ),
    "adacore-bdd100k": _row(
        "AdaCore C.3: weather from a folder, ResNet50 on 10 %, R = 20, 100 epochs, batch 128; size, stem, milestones, "
        "warm-up not given: 224 px, torchvision's, the same fractions",
        _ADACORE,
        {"data": {"image_size": 224}},
        _net("torchvision:resnet50", epochs=100, batch_size=128),
        _adacore(0.1, 20),
    ),
}
