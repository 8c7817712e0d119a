"""What the record of each stage says: one model of facts a stage, and the key that its record is found by."""

from typing import Any, Literal

import pydantic

from latebloom.flows.run.folder import Key
from latebloom.synth.plan import Forecast

__all__ = [
    "EARLY",
    "FRECHET",
    "GENERATE",
    "PLAN",
    "SCOUT",
    "SELECT",
    "SLOW_LIST",
    "ClassFacts",
    "ClassifierFacts",
    "CoresetFacts",
    "CoresetSeconds",
    "EarlyFacts",
    "Fit",
    "FrechetFacts",
    "GenerateFacts",
    "GeneratorFacts",
    "LabelIssueFacts",
    "PlanFacts",
    "RetrainFacts",
    "ScoutFacts",
    "SelectFacts",
    "SlowListFacts",
    "StrongFacts",
    "classifiers_key",
    "coreset_key",
    "retrain_key",
]


class _Facts(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Small values that a stage found."""


class EarlyFacts(_Facts):
    """Early training.

    Attributes:
        by_knee: whether the knee of the error curve chose the epoch; False: it was given.
        errors: by seed, training error 0..1 of each epoch that was really trained; `losses` likewise.
        epochs_of_training: of one classifier on the same images, which selection is an addition to; 0: not recorded.
        given: what was given in place of early training, and so the most that is known of the images; empty: nothing.
            The lists are empty then.
        given_seeds: of how many early classifiers outputs were given; 1 where one serves all seeds.
    """

    separating_epoch: int
    by_knee: bool
    errors: list[list[float]]
    losses: list[list[float | None]]  # None: training diverged
    epochs_of_training: int = 0
    given: Literal["", "logits", "losses", "indices"] = ""
    given_seeds: int = 0

    @property
    def epochs(self) -> list[int]:
        """Epochs that were really trained, by seed."""
        return [len(errors) for errors in self.errors]


class SelectFacts(_Facts):
    """The choice of slow examples; `slow` counts them by seed.

    Attributes:
        sizes: by method, how many examples it chose for each seed.
        union: by method, how many it chose for one seed or another: what variants are made of.
    """

    slow: list[int]
    warnings: list[str]
    sizes: dict[str, list[int]] = {}
    union: dict[str, int] = {}


class LabelIssueFacts(_Facts):
    """How many label issues are slow images.

    Attributes:
        issues: images that cleanlab names.
        slow: slow images.
        both: images that are both.
        by_chance: how many would be both if the issues were drawn at random from all images.
        jaccard: `both` over the images that are one or the other.
    """

    issues: int
    slow: int
    both: int
    by_chance: float
    jaccard: float


class SlowListFacts(_Facts):
    """slow.csv: how many images it lists, and how many of them are slow for at least half of the seeds.

    Attributes:
        label_issues: None where cleanlab is not installed, or no probabilities are known.
    """

    images: int
    slow: int
    label_issues: LabelIssueFacts | None


class GeneratorFacts(_Facts):
    """The generator that images were planned for.

    Attributes:
        trained_on: in words.
        seen: how many of the training images it was trained on; None: it does not say.
        only_these: whether it was trained on nothing but training images of this run.
        config: the settings that named it.
    """

    name: str
    digest: str
    licence: str
    trained_on: str
    seen: int | None
    only_these: bool
    config: dict[str, Any]


class PlanFacts(_Facts):
    """The plan; `calls` are denoiser calls of one image by the steps of its level."""

    forecast: Forecast
    calls: dict[int, int]
    generator: GeneratorFacts
    templates: tuple[str, ...]


class GenerateFacts(_Facts):
    """The synthetic data set; `digest` is that of its manifest."""

    denoiser_calls: int
    digest: str


class FrechetFacts(_Facts):
    """How far the usable images of each level are from the training images, as sets, in the reference classifier.

    Attributes:
        images: of each set, the same number, so that the distances compare.
        levels: Frechet distance by level, "50 of 100"; empty where a level has fewer than two usable images.
    """

    images: int
    levels: dict[str, float]


class ScoutFacts(_Facts):
    """The scouts, which only select; `errors` is the training error 0..1 of each seed's at its end."""

    model: str
    epochs: int
    errors: list[float]


class StrongFacts(_Facts):
    """Strong copies of an arm, means over seeds: the fields of `ArmResult` of these names."""

    selected: float
    selections: float
    selection_seconds: float
    strong_copies: float
    selected_synthetic: float | None
    pool_synthetic: float | None


class RetrainFacts(_Facts):
    """Retraining of one arm with one optimizer.

    Attributes:
        seconds: of one classifier, mean.
        errors: test error 0..1 of each seed; the next three lists are by seed too.
        train_error: training error 0..1 by epoch, of the first seed.
        validation_errors: error 0..1 on the validation split of each seed at its end; empty without one.
        validation_by_epoch: by seed, the same after each epoch.
        epoch_seconds: by seed, seconds of training of each epoch, without validation.
        synthetic: digest of the synthetic data set that it trained on; empty: none.
        strong: None where the arm has no strong copies.
        scouts: SHA-256 of the weights of each seed's scout, which selected; empty: no scout did.
    """

    seconds: float
    errors: list[float]
    images_added: list[int]
    denoiser_calls: list[int]
    steps: list[int]
    train_error: list[float]
    validation_errors: list[float] = []
    validation_by_epoch: list[list[float]] = []
    epoch_seconds: list[list[float]] = []
    synthetic: str = ""
    strong: StrongFacts | None = None
    scouts: list[str] = []


class ClassifierFacts(_Facts):
    """Classifiers that were trained to select by. Nothing is found but their weights."""


class ClassFacts(_Facts):
    """What a coreset has of one class."""

    name: str
    images: int
    selected: int
    selected_synthetic: int
    weight: float


class CoresetSeconds(_Facts):
    """Seconds that a coreset took."""

    training: float
    forward_pass: float
    selection: float


class Fit(_Facts):
    """How well selected examples stand for the images that they were selected from.

    Attributes:
        coverage: mean distance of an image to the nearest selected one of its class, in gradients p - y of the logits.
        gradient_error: distance of the weighted mean gradient of the selected to that of all, over the mean length of a
            gradient.
    """

    coverage: float
    gradient_error: float


class CoresetFacts(_Facts):
    """A coreset, as coreset-METHOD.json describes it."""

    method: str
    data: str
    synthetic: str
    classifier: dict[str, Any]
    weights: list[str]
    coreset: dict[str, Any]
    seed: int
    origin: str
    images: int
    synthetic_images: int
    selected: int
    selected_synthetic: int
    classes: list[ClassFacts]
    seconds: CoresetSeconds
    objective: Fit
    objective_random: Fit
    file: str


EARLY = Key("early", EarlyFacts, "run `latebloom select`")
SELECT = Key("select", SelectFacts, "run `latebloom select`")
SLOW_LIST = Key("slow-list", SlowListFacts, "run `latebloom select`")
PLAN = Key("plan", PlanFacts, "run `latebloom generate`")
SCOUT = Key("scout", ScoutFacts, "run `latebloom retrain`")
GENERATE = Key("generate", GenerateFacts, "run `latebloom generate`")
FRECHET = Key("frechet", FrechetFacts, "run `latebloom report`")


def retrain_key(arm: str, optimizer: str) -> Key[RetrainFacts]:
    """Of an arm that is trained with an optimizer."""
    return Key(f"retrain-{arm}-{optimizer}", RetrainFacts)


def coreset_key(method: str) -> Key[CoresetFacts]:
    """Of a coreset by a method."""
    return Key(f"coreset-{method}", CoresetFacts, "run `latebloom coreset`")


def classifiers_key(name: str) -> Key[ClassifierFacts]:
    """Of classifiers that are trained to select by: `classifiers`, or `forgetting`, whose training is counted too."""
    return Key(f"coreset-{name}", ClassifierFacts, "run `latebloom coreset`")
