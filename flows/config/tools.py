"""The configs of the flows beside the comparison: selecting a coreset, fitting a generator."""

from typing import Literal

import pydantic
from pydantic import Field

from latebloom.data.config import DataConfig, PerturbConfig
from latebloom.data.states import State
from latebloom.flows.config.compare import ClassifierConfig, CompareConfig
from latebloom.synth.config import GeneratorConfig
from latebloom.train.config import CoresetConfig, FitConfig

__all__ = ["ENSEMBLES", "CoresetRunConfig", "FitGeneratorConfig"]

ENSEMBLES = ("el2n", "grand")  # scores that are means over several classifiers


class CoresetRunConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What is selected from, by what classifier, and how."""

    data: DataConfig = DataConfig()
    perturb: PerturbConfig = PerturbConfig()
    coreset: CoresetConfig = CoresetConfig()
    run: str = Field(
        "",
        description="Run folder whose early classifiers are asked, and whose synthetic images can be selected; empty: "
        "none",
    )
    with_synthetic: bool = Field(False, description="Select from the real and the usable synthetic images of the run")
    states: tuple[State, ...] = Field(("ok",), min_length=1, description="States of synthetic images that are usable")
    classifier: ClassifierConfig = ClassifierConfig()
    checkpoint: str = Field(
        "", description="Weights of the classifier, a .safetensors that a run wrote; empty: the run's, or trained here"
    )
    train: FitConfig = Field(FitConfig(epochs=10), description="How a classifier is trained that has no weights yet")
    seeds: int = Field(1, ge=1, le=100, description="Classifiers that el2n and grand take the mean of, 1 to 100")
    seed: int = Field(0, ge=0, lt=2**31, description="Root of every random stream, 0 to 2147483647")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")

    @pydantic.model_validator(mode="after")
    def _together(self) -> "CoresetRunConfig":
        method = self.coreset.method
        if self.seeds > 1 and method not in ENSEMBLES:
            raise ValueError(
                f"{method} asks one classifier, got {self.seeds} seeds; several are for {' and '.join(ENSEMBLES)}"
            )
        if self.checkpoint and self.seeds > 1:
            raise ValueError("a checkpoint is one classifier; give seeds 1, or no checkpoint")
        if self.checkpoint and method == "forgetting":
            raise ValueError("forgetting counts what is forgotten in a training of its own; give no checkpoint")
        if self.with_synthetic and not self.run:
            raise ValueError("only a run folder has synthetic images; give one with --out, and no source")
        return self

    @property
    def as_run(self) -> CompareConfig:
        """The same data and classifiers as a comparison has them."""
        same = {name: getattr(self, name) for name in ("data", "perturb", "classifier", "seeds", "seed", "device")}
        return CompareConfig(arms=("original",), optimizers=("sgd",), **same)

    @property
    def trains(self) -> bool:
        """Whether the classifiers have to be trained first."""
        return self.coreset.method == "forgetting" or not (self.checkpoint or self.run)


class FitGeneratorConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A generator and the images it is trained on."""

    data: DataConfig = DataConfig()
    split: Literal["generator", "train"] = Field(
        "generator",
        description="generator: images kept apart for it, which only digits has; train: those of the classifier",
    )
    generator: GeneratorConfig = GeneratorConfig()
    seed: int = Field(0, ge=0, lt=2**31, description="Of its weights and of every draw, 0 to 2147483647")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
