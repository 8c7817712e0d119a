"""How a classifier is trained: the settings of `fit`."""

from typing import Literal

import pydantic
from pydantic import Field

__all__ = ["FitConfig"]


class FitConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How a classifier is trained. The defaults are the papers' CIFAR setting (2505.21574, App. F.1)."""

    optimizer: Literal["sgd", "sam", "adahessian"] = Field(
        "sgd", description="sgd: SGD with momentum; sam: the same after SAM's ascent; adahessian: AdaHessian"
    )
    epochs: int = Field(200, ge=1, le=100_000, description="Passes over the training set, 1 to 100,000")
    steps: int = Field(0, ge=0, description="Optimizer steps in all instead of epochs; 0 counts epochs")
    batch_size: int = Field(
        128, ge=1, le=65_536, description="Images a step, 1 to 65,536; a last short batch is dropped"
    )
    accumulate: int = Field(
        1, ge=1, le=1024, description="Micro-batches that a step's images are taken in, to save memory: 1 to 1,024"
    )
    lr: float = Field(0.1, gt=0, le=100, description="Peak learning rate, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD, first beta of AdaHessian; 0 to below 1")
    nesterov: bool = Field(False, description="Nesterov's momentum in SGD and SAM")
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="Weight decay, in the optimizer only, 0 to 1: L2; decoupled in AdaHessian"
    )
    rho: float = Field(0.1, ge=0, le=10, description="Radius of SAM's ascent, 0 to 10; SGD ignores it")
    sam_batchnorm: Literal["first_pass", "both"] = Field(
        "first_pass", description="In which of SAM's two passes BatchNorm's running statistics move"
    )
    sam_sync: Literal["local", "global"] = Field(
        "local", description="On several devices: SAM's ascent by each device's own gradient, or by that of all"
    )
    schedule: Literal["milestones", "cosine", "constant"] = Field(
        "milestones", description="Shape of the learning rate"
    )
    milestones: tuple[float, ...] = Field(
        (0.5, 0.75), description="Fractions of the run, each in 0 to 1, at which the rate is multiplied by lr_decay"
    )
    lr_decay: float = Field(0.1, gt=0, le=1, description="Factor at each milestone, above 0 to 1")
    warmup: float = Field(0.0, ge=0, lt=1, description="Fraction of the run with a linearly rising rate, 0 to below 1")
    crop_padding: int = Field(4, ge=0, le=64, description="Random crop: zero padding in pixels, 0 (none) to 64")
    resized_crop: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Random resized crop in place of crop_padding: least share of the area it shows; 0: none",
    )
    flip: bool = Field(True, description="Random horizontal flip; wrong for digits and letters")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of activations and products, in training and when looking for a selection; weights, gradients and "
        "optimizer stay in float32",
    )
    compile: bool = Field(False, description="Compile the network with torch.compile; for a model trained alone")

    @pydantic.field_validator("milestones")
    @classmethod
    def _fractions(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < m < 1 for m in milestones) or list(milestones) != sorted(milestones):
            raise ValueError(f"milestones are ascending fractions between 0 and 1, got {milestones}")
        return milestones

    @pydantic.model_validator(mode="after")
    def _together(self) -> "FitConfig":
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate} micro-batches of a batch of {self.batch_size}; give at most as many"
            )
        if self.optimizer == "adahessian" and (self.accumulate > 1 or self.compile):
            raise ValueError("adahessian takes a whole batch and derives twice; give accumulate=1 and compile=false")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum, which is 0; give a momentum, or nesterov=false")
        return self

    def steps_per_epoch(self, n: int) -> int:
        """Whole batches in n examples; a set smaller than a batch is one batch."""
        return max(1, n // self.batch_size)

    def total_steps(self, n: int) -> int:
        """Optimizer steps of the whole run on n examples."""
        return self.steps or self.epochs * self.steps_per_epoch(n)

    def total_epochs(self, n: int) -> int:
        """Whole epochs of the whole run on n examples, at least one."""
        return max(1, self.total_steps(n) // self.steps_per_epoch(n))
