"""What the presets are made of: a row of a paper, and the parts that its settings are put together from."""

import functools
from dataclasses import dataclass
from typing import Any

from latebloom.flows.config.merge import merge

__all__ = ["RESNET18", "Preset", "against", "net", "on", "only", "pretrained", "row", "strong"]

RESNET18 = "resnet18-f37072fd.pth"  # torchvision's IMAGENET1K_V1


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


def row(about: str, *parts: dict[str, Any]) -> Preset:
    """Each part over those before it."""
    return Preset(about, functools.reduce(merge, parts, {}))


def on(source: str, **more: Any) -> dict[str, Any]:
    return {"data": {"source": source, **more}}


def net(model: str, **train: Any) -> dict[str, Any]:
    """A network, and how it is trained."""
    return {"classifier": {"model": model}, "train": train}


def pretrained(model: str, file: str, **train: Any) -> dict[str, Any]:
    """ImageNet's weights where torchvision puts them when it downloads them; 224 px, cropped by an eighth."""
    classifier = {"model": f"torchvision:{model}", "weights": f"~/.cache/torch/hub/checkpoints/{file}"}
    return {"classifier": classifier, "data": {"image_size": 224}, "train": {"crop_padding": 28, **train}}


def strong(selector: str, fraction: float, every: int, policy: str = "wu2020", **more: Any) -> dict[str, Any]:
    """Strong copies of a share of each class, selected anew every so many epochs."""
    coreset = {"fraction": fraction, "budget": "equal"}
    return {"strong": {"selector": selector, "coreset": coreset, "policy": {"policy": policy}, "every": every, **more}}


def against(*selectors: str, plain: bool = True) -> dict[str, Any]:
    """Arms on real images: without strong copies, and by selector."""
    return {"arms": ["original"] * plain + [f"original+{selector}" for selector in selectors]}


def only(selector: str, fraction: float, every: int, budget: str, **more: Any) -> dict[str, Any]:
    """Training on the selected examples alone, without strong copies."""
    coreset = {"fraction": fraction, "budget": budget}
    more = {"main": "coreset", "copies": 0, "every": every, **more}
    return {"strong": {"selector": selector, "coreset": coreset, **more}}
