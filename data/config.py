"""What can be set of the data. Light to import: pydantic alone."""

import json
from typing import Literal

import pydantic
from pydantic import Field

__all__ = ["FOLDERS", "MIN_SIDE", "NAMED", "NAMES", "TORCHVISION", "DataConfig", "PerturbConfig"]


TORCHVISION = ("cifar10", "cifar100", "flowers102", "fgvc-aircraft")


FOLDERS = ("tiny-imagenet", "caltech256", "svhn", "stanford-cars")


NAMED = TORCHVISION + FOLDERS


NAMES = ("digits", *NAMED)


MIN_SIDE = 8


class DataConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Which images to learn from."""

    source: str = Field(
        "digits",
        min_length=1,
        description=f"A name ({', '.join(NAMES)}) or the path or URL of a folder of images, "
        "parquet, tables or shards, or of one such file or an .npz (docs/layouts.md). For a folder that is "
        "called like one of the names, write ./name.",
    )
    root: str = Field(
        "~/.cache/latebloom",
        min_length=1,
        description="The local folder where data sets with a name are looked for, and those that can be are "
        f"downloaded to; {', '.join(FOLDERS)} may also be given by the path of their folder.",
    )
    image_size: int = Field(
        0,
        ge=0,
        le=2048,
        description="0 leaves images as they are; 8 to 2048 resizes the shorter side to it and cuts out the centre "
        "square.",
    )
    train_limit: int = Field(
        0,
        ge=0,
        description="0 keeps all training images; else exactly this many, a random subset stratified by class: from "
        "the number of classes to the size of the split.",
    )
    test_limit: int = Field(
        0,
        ge=0,
        description="0 keeps all test images; else exactly this many, a random subset stratified by class: at most "
        "the size of the split.",
    )
    validation_fraction: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="0: no validation split but what the data set has; else this share of each class of the training "
        "images, after the limit, that no classifier is trained on: errors on it are for choosing, so that nothing is "
        "chosen on the test split.",
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        le=0.5,
        description="Where a data set has no test part: this share of each class of the training images is the test "
        "split. Where it has one, it is not read.",
    )
    train: str = Field(
        "",
        description="Name of the training part, a folder, split or array, or . for all there is; empty: train, "
        "training, or the only part.",
    )
    test: str = Field(
        "",
        description="Name of the test part, such as val to test on what is called so, or none to hold it out of "
        "train; empty: test or testing.",
    )
    validation: str = Field(
        "",
        description="Name of the validation part, or none to leave it out; empty: val, valid, validation or dev, "
        "where it is there.",
    )
    image: str = Field("", description="Name of the image column of a table; empty: found by type and usual names.")
    label: str = Field("", description="Name of the label column of a table; empty: found by type and usual names.")
    background: Literal["white", "black", "grey"] = Field("white", description="What transparent pixels are laid on.")
    depth: Literal["refuse", "type", "data"] = Field(
        "refuse",
        description="Images of more than 8 bits. refuse: by name; type: the whole range of the type becomes 0 to 255 "
        "(65,535 of 16-bit images, 1 of floats); data: from the least to the greatest value of the training images.",
    )
    animated: Literal["refuse", "first"] = Field(
        "refuse", description="Files of several frames or pages. refuse: by name; first: the first of them is taken."
    )
    subset_seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="The seed that draws the subsets of the two limits, the test and the validation split, 0 to "
        "2147483647.",
    )

    @pydantic.field_validator("train", "test", "validation", "image", "label", mode="before")
    @classmethod
    def _text(cls, name: object) -> object:
        # A folder or column may be called 2021, which --set and a settings file read as a number.
        return json.dumps(name) if isinstance(name, int | float) else name

    @pydantic.field_validator("image_size")
    @classmethod
    def _not_tiny(cls, size: int) -> int:
        if 0 < size < MIN_SIDE:
            raise ValueError(f"image size {size} is too small; give {MIN_SIDE} to 2048, or 0 to leave images as are")
        return size


class PerturbConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How the training set is made harder: first classes lose images, then labels are changed."""

    noise: Literal["none", "symmetric", "asymmetric"] = Field(
        "none",
        description="Label noise. symmetric: images of any class get one of the other classes, each as likely; "
        "asymmetric: CIFAR-10's look-alikes (truck to automobile, bird to airplane, deer to horse, cat and dog to each "
        "other), or with other classes the next one, the last to the first",
    )
    noise_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of labels that become wrong, 0 to 1: of all images when symmetric, of each affected class "
        "when asymmetric; without noise it is not read",
    )
    imbalance: Literal["none", "long_tailed", "linear"] = Field(
        "none",
        description="Class imbalance. long_tailed: sizes fall by a constant factor from the first class to the last; "
        "linear: class c of C keeps the share c/C",
    )
    imbalance_factor: float = Field(
        100.0, ge=1, le=1e6, description="Of long_tailed: size of the first class over that of the last, from 1"
    )
    linear_least: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Of linear: the share that every class keeps at least, 0 to 1; with 0, as published, the first "
        "class has no training image left",
    )
