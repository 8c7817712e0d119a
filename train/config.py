"""What can be set of training and selection. Light to import: pydantic alone."""

from typing import Literal, get_args

import pydantic
from pydantic import Field

__all__ = [
    "SCORED",
    "Budget",
    "CoresetConfig",
    "CoresetMethod",
    "FitConfig",
    "PolicyConfig",
    "PolicyName",
    "ScoutConfig",
    "SelectionConfig",
    "Selector",
    "SlowConfig",
    "SlowMethod",
    "StrongConfig",
]


class FitConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How a classifier is trained. The defaults are the papers' CIFAR setting (2505.21574, App. F.1)."""

    optimizer: Literal["sgd", "sam", "adahessian"] = Field(
        "sgd", description="sgd: SGD with momentum; sam: the same after SAM's ascent; adahessian: AdaHessian"
    )
    epochs: int = Field(200, ge=1, le=100_000, description="Passes over the training set, 1 to 100,000")
    steps: int = Field(0, ge=0, description="Optimizer steps in all instead of epochs; 0 counts epochs")
    batch_size: int = Field(128, ge=1, le=65_536, description="Images a step, 1 to 65,536")
    last_batch: Literal["keep", "drop"] = Field(
        "keep",
        description="The last batch of an epoch where it is short. keep: it is trained on, its gradient the mean over "
        "its own images, so each image is trained on once an epoch; drop: it is left out, other images each epoch",
    )
    accumulate: int = Field(
        1, ge=1, le=1024, description="Micro-batches that a step's images are split into, to save memory: 1 to 1,024"
    )
    lr: float = Field(0.1, gt=0, le=100, description="Peak learning rate, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD, first beta of AdaHessian; 0 to below 1")
    nesterov: bool = Field(False, description="Nesterov's momentum in SGD and SAM")
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="Weight decay, 0 to 1: L2 in SGD and SAM; decoupled in AdaHessian"
    )
    rho: float = Field(0.1, ge=0, le=10, description="Radius of SAM's ascent, 0 to 10; SGD ignores it")
    sam_batchnorm: Literal["first_pass", "both"] = Field(
        "first_pass", description="In which of SAM's two passes BatchNorm's running statistics move"
    )
    sam_decay: Literal["optimizer", "ascent"] = Field(
        "optimizer",
        description="Where SAM's weight decay is. optimizer: in the step after the ascent only; ascent: L2 is a part "
        "of the loss, and so of both gradients",
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
        description="Random resized crop instead of crop_padding: smallest share of the area that it shows; 0: none",
    )
    flip: bool = Field(True, description="Random horizontal flip; wrong for digits and letters")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of activations and products, in training and in the forward pass before a selection; weights, "
        "gradients and optimizer stay in float32",
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
        """Batches of n examples, with the short last one where it is kept; a set smaller than a batch is one batch."""
        return max(1, n // self.batch_size if self.last_batch == "drop" else -(-n // self.batch_size))

    def total_steps(self, n: int) -> int:
        """Optimizer steps of the whole run on n examples."""
        return self.steps or self.epochs * self.steps_per_epoch(n)

    def total_epochs(self, n: int) -> int:
        """Whole epochs of the whole run on n examples, at least one."""
        return max(1, self.total_steps(n) // self.steps_per_epoch(n))


SlowMethod = Literal["cluster", "high_loss", "misclassified", "misclassified_matched", "random", "all"]


class SlowConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How the slow-learnable examples are found."""

    method: SlowMethod = Field(
        "cluster",
        description="cluster is the paper's; its baselines: misclassified takes all that the early classifier gets "
        "wrong; high_loss, misclassified_matched and random take as many of each class as cluster; all takes all",
    )
    space: Literal["softmax", "logits"] = Field(
        "softmax",
        description="What cluster runs 2-means on: the paper says model outputs, code of its lab (SPARE) has softmax",
    )
    shared: bool = Field(
        False,
        description="One selection for all seeds, from the mean of their early classifiers' outputs in that space; "
        "generation then serves one set of images instead of the union over seeds",
    )
    separating_epoch: int = Field(
        0, ge=0, le=100_000, description="Epoch of early training whose outputs are used; 0 finds the knee of the error"
    )
    patience: int = Field(
        4,
        ge=1,
        le=1000,
        description="Where the knee is looked for: epochs of early training after it, which show that it was one",
    )
    outputs: str = Field(
        "",
        description="Outputs of an early classifier of your own, on the training images: .npz with logits or "
        "probabilities (N, C), or (seeds, N, C), and labels (N,) or names (N,); or with losses (N,) or (seeds, N) "
        "alone. No early classifier is trained then; empty: it is",
    )
    indices: str = Field(
        "",
        description="The slow images themselves, chosen by you: .npz (indices), .npy, .txt or .csv with a row number "
        "or a file name of a training image a line. No early classifier is trained then; empty: they are selected",
    )

    @property
    def given(self) -> bool:
        """Whether outputs or the choice itself were given, so that no early classifier is trained."""
        return bool(self.outputs or self.indices)


CoresetMethod = Literal[
    "random",
    "max_loss",
    "least_confidence",
    "entropy",
    "margin",
    "forgetting",
    "el2n",
    "grand",
    "herding",
    "k_center",
    "contextual_diversity",
    "craig",
    "dea",
    "adacore",
    "lcmat",
    "gradmatch",
    "glister",
]


# What one number per example decides: only these can go without class budgets.
SCORED: tuple[CoresetMethod, ...] = get_args(CoresetMethod)[: get_args(CoresetMethod).index("herding")]


Budget = Literal["equal", "proportional", "none"]


class SelectionConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How many examples are selected, and what each method takes."""

    fraction: float = Field(0.1, gt=0, le=1, description="Share of all examples to select, above 0 to 1")
    per_class: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Examples to select per class on average, instead of the fraction; 0: the fraction",
    )
    budget: Budget = Field(
        "equal",
        description="Shares of the classes. equal: as many of each class; proportional: in proportion to its size; "
        "none: the highest scores of all (only methods with one score per example)",
    )
    gradient: Literal["logits", "last_layer"] = Field(
        "logits",
        description="Gradients that craig, dea, adacore, gradmatch and glister use; lcmat always has the last layer's",
    )
    dea_similarity: Literal["distance", "exp"] = Field(
        "distance",
        description="dea: a constant minus the distance d as in the paper, or exp(-d / width) as in its code",
    )
    lcmat_rho: float = Field(0.02, ge=0, le=1e6, description="lcmat: weight of curvature, rho of the paper; 0: craig")
    lcmat_k: float = Field(
        100,
        gt=0,
        le=1e9,
        description="lcmat: dimensions of the Hessian compared: a whole number from 2 (all, if there are fewer), or a "
        "share of them below 1",
    )
    adacore_damping: float = Field(0.01, gt=0, le=1e6, description="adacore: added to curvature before dividing by it")
    adacore_curvature: Literal["example", "pool"] = Field(
        "example",
        description="adacore: each example's exact Hessian diagonal, or the mean of those of all examples",
    )
    adacore_gradient_decay: float = Field(0.9, ge=0, lt=1, description="adacore: decay of averaged gradients, b1")
    adacore_curvature_decay: float = Field(0.999, ge=0, lt=1, description="adacore: decay of averaged curvature, b2")
    gradmatch_ridge: float = Field(0.5, ge=0, le=1e6, description="gradmatch: penalty on squared weights, lambda")
    glister_lr: float = Field(
        0.01, gt=0, le=100, description="glister: size of the gradient step after each selection, eta"
    )

    @pydantic.field_validator("lcmat_k")
    @classmethod
    def _number_or_share(cls, k: float) -> float:
        if k >= 1 and (k < 2 or k != int(k)):
            raise ValueError(
                f"lcmat_k is {k:g}, expected a whole number of dimensions from 2, or a share of them below 1; give a "
                "larger number than there are for all"
            )
        return k


class CoresetConfig(SelectionConfig, frozen=True, extra="forbid"):
    """How many examples are selected, and by which method."""

    method: CoresetMethod = Field("craig", description="What the examples are selected by")


PolicyName = Literal[
    "autoaugment_cifar10",
    "autoaugment_imagenet",
    "autoaugment_svhn",
    "randaugment",
    "trivialaugment",
    "augmix",
    "cutout",
    "perturb",
    "wu2020",
]


class PolicyConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A strong augmentation and its parameters, by default as published; each policy reads those with its name."""

    policy: PolicyName = Field("trivialaugment", description="Which strong augmentation")
    randaugment_operations: int = Field(2, ge=1, le=16, description="randaugment: operations one after the other")
    randaugment_magnitude: int = Field(9, ge=0, le=30, description="randaugment: magnitude of all operations, 0 to 30")
    augmix_severity: int = Field(
        3,
        ge=1,
        le=10,
        description="augmix: how many of 10 magnitudes are used, lowest first; torchvision has 3, arXiv 2210.08363 1",
    )
    augmix_width: int = Field(3, ge=1, le=16, description="augmix: chains of operations that are mixed")
    augmix_alpha: float = Field(1.0, gt=0, le=100, description="augmix: parameter of the Dirichlet and Beta weights")
    cutout_holes: int = Field(1, ge=1, le=64, description="cutout: squares")
    cutout_length: int = Field(16, ge=1, le=4096, description="cutout: their side in pixels; 16 for CIFAR-10")
    perturb_brightness: float = Field(0.2, ge=0, le=1, description="perturb: brightness times 1 - this to 1 + this")
    perturb_kernel: Literal[3, 5, 7, 9] = Field(5, description="perturb: width of the Gaussian blur in pixels")
    wu2020_candidates: int = Field(4, ge=1, le=64, description="wu2020: compositions to choose from for each image")
    wu2020_operations: int = Field(2, ge=1, le=8, description="wu2020: random operations in a composition")
    choose: Literal["top", "proportional"] = Field(
        "top",
        description="wu2020: the candidate of highest loss (the paper), or at random in proportion to loss (its code)",
    )


Selector = Literal["none", "all", CoresetMethod, "file"]


class ScoutConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A network that is trained only to select by, with SGD and the settings of `train` but for these.

    The defaults are those of the code of LCMat (arXiv 2303.04449).
    """

    model: str = Field(
        "",
        description="Network that selects once, as classifier.model; its width and weights are the classifier's where "
        "it is the same network; empty: the trained network selects for itself, every `every` epochs",
    )
    epochs: int = Field(10, ge=1, le=100_000, description="Passes over all real training images, 1 to 100,000")
    schedule: Literal["milestones", "cosine", "constant"] = Field(
        "constant", description="Shape of the learning rate in these epochs"
    )
    augment: bool = Field(False, description="Crops and flips, as `train` says")


class StrongConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Strong augmentation of selected examples, mixed into training (arXiv 2210.08363, Alg. 1 and section 6)."""

    selector: Selector = Field(
        "none",
        description="Who gets strong copies: none, all, the examples that a coreset method selects, or those of a file",
    )
    file: str = Field(
        "",
        description="For selector=file: path or URL of a coreset-METHOD.npz that latebloom coreset wrote, or of a "
        ".csv with a column file of image names, and weight if they differ",
    )
    policy: PolicyConfig = Field(PolicyConfig(), description="The strong augmentation")
    coreset: SelectionConfig = Field(
        SelectionConfig(), description="How many examples are selected, and what each selector takes"
    )
    copies: int = Field(
        1,
        ge=0,
        le=64,
        description="Strong copies of each selected example, 1 to 64; 0 with main=coreset: the selected examples alone",
    )
    every: int = Field(
        1, ge=1, le=100_000, description="Epochs between two selections, 1 to 100,000; a file is the same in all"
    )
    where: Literal["append", "in_place", "in_place_twice"] = Field(
        "append",
        description="append: strong copies beside the main set; in_place: selected ones are strong instead of weak; "
        "in_place_twice: the same with every row twice",
    )
    main: Literal["full", "coreset", "random"] = Field(
        "full", description="Main set: all examples, the selected ones alone, or as many random ones"
    )
    weights: Literal["none", "normalised", "gamma_over_r"] = Field(
        "none",
        description="Factors of losses. normalised: the coreset's gamma over its mean, on a main set that is the "
        "coreset; gamma_over_r: gamma / copies on strong copies, and gamma on a main set that is the coreset, where it "
        "makes a step about n / B times as large, so lower lr",
    )
    weigh_strong: bool = Field(False, description="normalised weights on strong copies as well")
    redraw: Literal["epoch", "round"] = Field(
        "epoch",
        description="Whether augmentations are drawn each epoch, or kept from one selection to the next; in an arm "
        "without selection too, so that arms differ in nothing else",
    )
    warm_epochs: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Epochs on all examples with weak augmentation only, before the first selection; 0 with a scout",
    )
    scout: ScoutConfig = Field(
        ScoutConfig(), description="A network of its own that selects once, before the weights of an arm are drawn"
    )

    def drawn(self, epoch: int) -> int:
        """The epoch (from 0) whose augmentation an epoch has: its own, or the first of its round."""
        if self.redraw == "epoch" or epoch < self.warm_epochs:
            return epoch
        return epoch - (epoch - self.warm_epochs) % self.every

    @pydantic.model_validator(mode="after")
    def _together(self) -> "StrongConfig":
        if self.where != "append" and self.copies != 1:
            raise ValueError(f"copies={self.copies} needs where=append; an image changed in place has no copies")
        if self.copies == 0 and self.main != "coreset":
            raise ValueError(f"copies=0 trains on the selected examples alone: give main=coreset, not {self.main}")
        if self.where != "append" and self.main == "random":
            raise ValueError(f"where={self.where} changes the main set's images; give main=full or coreset, not random")
        if self.selector == "file" and not self.file:
            raise ValueError("selector file needs a coreset, and strong.file is empty; give a coreset-METHOD.npz there")
        if self.scout.model and self.warm_epochs:
            raise ValueError(
                f"warm_epochs={self.warm_epochs} with a scout, which selects before training begins; give warm_epochs=0"
            )
        if self.selector == "file" and self.main == "coreset" and self.warm_epochs:
            raise ValueError(
                f"warm_epochs={self.warm_epochs} would train on examples outside the file's; give warm_epochs=0"
            )
        if self.selector == "forgetting" and not self.warm_epochs and not self.scout.model:
            raise ValueError(
                "warm_epochs is 0, but forgetting counts what training forgets; give at least 1, or a scout"
            )
        if self.weigh_strong and self.weights != "normalised":
            raise ValueError(f"weigh_strong is for weights=normalised, not {self.weights}")
        if self.weights == "normalised" and self.main != "coreset" and not self.weigh_strong:
            raise ValueError(
                f"weights=normalised has no effect with main={self.main}; give main=coreset, weigh_strong=true or "
                "weights=none"
            )
        return self
