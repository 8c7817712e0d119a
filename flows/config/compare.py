"""The configs of a run and of a comparison, composed of those of the packages; what a data source starts from."""

from typing import Any, Literal

import pydantic
from pydantic import Field

from latebloom.data.config import DataConfig, PerturbConfig
from latebloom.data.states import State
from latebloom.flows.config.arms import METHODS, Arm, parse_arm
from latebloom.synth.config import (
    DiffuseMixConfig,
    GenerateConfig,
    PlanConfig,
    PromptConfig,
    QualityConfig,
    SampleConfig,
    ScoreConfig,
    SizeConfig,
)
from latebloom.train.config import FitConfig, ScoutConfig, SlowConfig, StrongConfig

__all__ = [
    "SAMPLING",
    "ClassifierConfig",
    "CompareConfig",
    "PartsConfig",
    "RunConfig",
    "demo_config",
    "one_setting",
    "preset",
    "setting_of",
]


class ClassifierConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Which network is trained."""

    model: str = Field(
        "preact-resnet18",
        description="small-cnn, preact-resnet18, resnet18, resnet20, resnet32, wrn-28-10 or vit-s4, for small images; "
        "torchvision:NAME or timm:NAME. resnet50 alone is torchvision:resnet50",
    )
    width: int = Field(
        0, ge=0, le=4096, description="Channels of the first layer of our own, tokens' width of vit-s4; 0: as published"
    )
    weights: str = Field(
        "", description="Pretrained weights to start from: path of a .safetensors or torchvision's .pth; empty: fresh"
    )


class PartsConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Who makes the parts of the synthetic data set. Changes no image."""

    runner: Literal["auto", "threads", "processes", "dask", "ray", "runs"] = Field(
        "auto",
        description="auto: a process a GPU, or this one; threads: this process, one part after the other; processes: "
        "others; dask, ray: the workers of a cluster; runs: runs of a deployment, by the workers of its work pool. How "
        "many at a time: generate.processes",
    )
    address: str = Field(
        "",
        description="Of the Dask scheduler, such as tcp://host:8786, or the Ray cluster, such as ray://host:10001; "
        "empty: a cluster on this host for the time of the job",
    )
    parts_a_run: int = Field(4, ge=1, le=10_000, description="Parts that one run makes, 1 to 10,000; for runs")
    deployment: str = Field(
        "generate-part/generate-part", pattern="^[^/]+/[^/]+$", description="Flow/name of the deployment; for runs"
    )
    limit: str = Field(
        "",
        description="Prefect's concurrency limit that a host holds while it generates, a slot a process, such as "
        "gpu:{host}, where {host} stands for the host's name; empty: none",
    )

    @pydantic.model_validator(mode="after")
    def _address_has_a_cluster(self) -> "PartsConfig":
        if self.address and self.runner not in ("dask", "ray"):
            raise ValueError(f"parts.address is for the runners dask and ray, not for {self.runner}; leave it empty")
        return self


class RunConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One setting of the whole pipeline: data, slow selection, generation, retraining."""

    data: DataConfig = DataConfig()
    perturb: PerturbConfig = PerturbConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    train: FitConfig = FitConfig()
    strong: StrongConfig = StrongConfig()
    slow: SlowConfig = SlowConfig()
    plan: PlanConfig = PlanConfig()
    sample: SampleConfig = SampleConfig()
    generate: GenerateConfig = GenerateConfig()
    sizes: SizeConfig = SizeConfig()
    prompts: PromptConfig = PromptConfig()
    diffusemix: DiffuseMixConfig = DiffuseMixConfig()
    parts: PartsConfig = PartsConfig()
    scores: ScoreConfig = ScoreConfig()
    quality: QualityConfig = QualityConfig()
    train_states: tuple[State, ...] = Field(
        ("ok",), min_length=1, description="States of the synthetic images that classifiers are retrained on"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Root of every random stream, 0 to 2147483647")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")

    @pydantic.model_validator(mode="after")
    def _levels_on_grid(self) -> "RunConfig":
        self.plan.steps(self.sample.grid)
        return self


class CompareConfig(RunConfig, frozen=True, extra="forbid"):
    """Arms times optimizers times seeds of one setting."""

    arms: tuple[str, ...] = Field(
        ("original", "original@ours-5", "upsample-2", "random-5", "all-5", "ours-2", "ours-5"),
        min_length=1,
        description="original; upsample-K; ours-K (clustered slow examples); random-K, high_loss-K, "
        "misclassified_matched-K (as many as ours); misclassified-K (all wrong ones); all-K; noise-K (ours from pure "
        "noise); ARM:L50-70 is ARM at these K - 1 levels of the grid, such as ours-2:L50; ARM+SELECTOR is ARM with "
        "strong copies as `strong` says of what the selector selects, such as ours-5+craig or original+all; "
        "ARM+SELECTOR:BUDGET with a budget of its own, such as original+max_loss:none; original+file those of "
        "`strong.file`; ARM@OTHER is ARM at the optimizer steps of OTHER",
    )
    optimizers: tuple[Literal["sgd", "sam", "adahessian"], ...] = Field(
        ("sgd", "sam"), min_length=1, description="sgd, sam, adahessian, or several of them"
    )
    seeds: int = Field(
        5,
        ge=1,
        le=1000,
        description="Classifiers an arm, each with its own seed, 1 to 1000. Below 5 the report makes no verdict",
    )
    named: tuple[str, ...] = Field(
        (),
        description="With a validation split: the arms whose test error is reported whatever it is. Of the others only "
        "the one with the least validation error has its test error in the report, for each optimizer; empty: all",
    )
    workers: int = Field(1, ge=1, le=256, description="Processes that train classifiers side by side, 1 to 256")

    @pydantic.field_validator("arms", "optimizers", "named")
    @classmethod
    def _each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"each may be named once, got {', '.join(values)}")
        return values

    @pydantic.model_validator(mode="after")
    def _arms_exist(self) -> "CompareConfig":
        for name in self.arms:
            arm = parse_arm(name)
            if arm.equal_steps_of and arm.equal_steps_of not in self.arms:
                raise ValueError(
                    f"arm {name!r} takes its steps from {arm.equal_steps_of!r}, which is not among the arms"
                )
            self.levels(arm)
            self.strong_of(arm)
        missing = [name for name in self.named if name not in self.arms]
        if missing:
            raise ValueError(f"named has {', '.join(missing)}, which is not among the arms; name some of the arms")
        for optimizer in self.optimizers:
            try:
                FitConfig(**{**dict(self.train), "optimizer": optimizer})
            except pydantic.ValidationError as error:  # what suits the optimizer of `train` may not suit another
                raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @property
    def parsed_arms(self) -> list["Arm"]:
        """The arms as `parse_arm` reads them, in order."""
        return [parse_arm(name) for name in self.arms]

    @property
    def wants_synthetic(self) -> bool:
        """Whether any arm trains on generated images."""
        return any(arm.kind == "synthetic" for arm in self.parsed_arms)

    @property
    def wants_slow(self) -> bool:
        """Whether any arm needs to know which images are slow; original, with or without strong copies, does not."""
        return any(arm.kind != "original" for arm in self.parsed_arms)

    @property
    def wants_file(self) -> bool:
        """Whether any arm trains on the coreset that `strong.file` names."""
        return any(arm.selector == "file" for arm in self.parsed_arms)

    @property
    def wants_scout(self) -> bool:
        """Whether a scout selects for any arm."""
        return any(self.strong_of(arm).scout.model for arm in self.parsed_arms)

    def strong_of(self, arm: "Arm") -> StrongConfig:
        """The strong augmentation of an arm: its own selector and budget, all else as `strong` says."""
        file = self.strong.file if arm.selector == "file" else ""  # another file is nothing to the other arms
        coreset = self.strong.coreset.model_copy(update={"budget": arm.budget} if arm.budget else {})
        own = {"selector": arm.selector, "file": file, "coreset": coreset}
        if arm.selector in ("none", "all", "file"):  # for these, nobody needs to select
            own["scout"] = ScoutConfig()
        return StrongConfig(**{**dict(self.strong), **own})

    def levels(self, arm: "Arm") -> tuple[int, ...]:
        """The levels of an arm in steps of the grid; none for arms without synthetic images."""
        if arm.kind != "synthetic":
            return ()
        if arm.from_noise:
            return (self.sample.grid,) * (arm.k - 1)
        levels = arm.levels or (self.plan.levels if arm.k == self.plan.k else ())
        return PlanConfig(k=arm.k, levels=levels).steps(self.sample.grid)


def one_setting(config: RunConfig) -> CompareConfig:
    """The comparison that one setting makes: it, and the original at equal epochs and at equal steps.

    With strong augmentation also the same images without it, and with strong copies of as many random ones: only what
    beats both was gained by the selector. How many a file names is not known here, so no random arm is beside it. The
    methods are paired on one seed, which shows the path and no significance.
    """
    ours = next(word for word, method in METHODS.items() if method == config.slow.method) + f"-{config.plan.k}"
    selector = config.strong.selector
    final = ours if selector == "none" else f"{ours}+{selector}"
    random = [] if selector in ("none", "all", "random", "file") else [f"{ours}+random"]
    arms = tuple(dict.fromkeys(("original", f"original@{final}", ours, *random, final)))
    return CompareConfig(**dict(config), arms=arms, optimizers=(config.train.optimizer,), seeds=1)


def setting_of(config: CompareConfig) -> RunConfig | None:
    """The setting that `one_setting` made this comparison of; None where it is another comparison."""
    setting = RunConfig(**{name: getattr(config, name) for name in RunConfig.model_fields})
    same = one_setting(setting).model_copy(update={"workers": config.workers}) == config
    return setting if same else None


# Chosen on splits of the 1,000 images that are no test images: tests/benchmarks/tune_digits.md has the record.
_DIGITS: dict[str, Any] = {
    "data": {"source": "digits"},
    "classifier": {"model": "small-cnn", "width": 8},
    "train": {"epochs": 30, "batch_size": 32, "lr": 0.05, "rho": 0.05, "crop_padding": 0, "flip": False},
    "slow": {"separating_epoch": 2},
    # The grid that levels are defined on, in a fifth of its calls: level 50 is the paper's 50 of 100.
    "sample": {"grid": 100, "steps": 20, "guidance_scale": 1.0},
    "generate": {"generator": "digits"},
}
# How images are sampled. docs/benchmarks.md has what balanced costs and how far from paper it ends.
SAMPLING: dict[str, dict[str, Any]] = {
    "paper": {"sampler": "ddpm", "grid": 100, "steps": 0, "guidance_scale": 3.0},
    "balanced": {"sampler": "dpm++2m", "grid": 100, "steps": 25, "guidance_scale": 3.0},
    "fast": {"sampler": "lcm", "grid": 100, "steps": 8, "guidance_scale": 1.0},
}
_PAPER: dict[str, Any] = {}  # every default is the papers' CIFAR setting


def preset(source: str) -> dict[str, Any]:
    """The settings a source starts from, as nested keys: those of the demo for `digits`, the papers' for the rest."""
    return _DIGITS if source == "digits" else _PAPER


def demo_config() -> CompareConfig:
    """What `latebloom demo` runs."""
    return CompareConfig(**_DIGITS, seeds=10, workers=2)
