"""Networks that are trained only to select by: one a seed, which all arms of that seed share. No Prefect in here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import child_seed
from latebloom.data.store import digest_file, local_file, write_arrays
from latebloom.flows.config.compare import ClassifierConfig, CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.processes import leads
from latebloom.flows.run.progress import say
from latebloom.flows.run.records import SCOUT, ScoutFacts
from latebloom.flows.stages.classifiers import classifier_seeds
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.fitting import classifier_key, fit_all, fit_config_of, fit_key
from latebloom.flows.stages.loaders import device_of
from latebloom.train.augment.mixing import Mixer
from latebloom.train.config import FitConfig
from latebloom.train.evaluate import features_of
from latebloom.train.loop.checkpoint import load_model, save_model
from latebloom.train.models.build import build
from latebloom.train.selection.coreset import Evidence

__all__ = ["check_scout", "scout_outputs", "scout_weights", "train_scouts"]


def check_scout(config: CompareConfig, train: LabeledImages) -> None:
    """Refuse a scout that cannot be made, and arms that it cannot select for.

    Raises:
        ValueError: no such network, or forgetting on an arm with synthetic images.
    """
    if config.wants_scout:
        one = _classifier(config)
        build(one.model, train.num_classes, train.image_shape, config.seed, one.width, one.weights)
    for arm in config.parsed_arms:
        if config.strong_of(arm).scout.model and arm.selector == "forgetting" and arm.kind == "synthetic":
            raise ValueError(
                f"arm {arm.name} selects by what a scout forgot, which is trained on real images alone; name another "
                "selector, or real images such as original+forgetting"
            )


def train_scouts(folder: RunFolder, config: CompareConfig) -> None:
    """Train every seed's scout on all real training images; keep its weights, its outputs and what it forgot.

    Of several processes that train together each calls it; the one that leads writes.
    """
    run = RunContext(folder, config)
    train, fit_config, classifier = run.splits.train, _fit_config(config), _classifier(config)
    seeds = _seeds(config)
    inputs: dict[str, Any] = {
        "data": train.digest,
        "classifier": classifier_key(classifier),
        "train": fit_key(fit_config),
        "seeds": seeds,
    }
    stage = folder.stage(SCOUT, 1, inputs)
    if stage.done(mark=leads()):
        return
    models = [_network(run, seed) for seed in seeds]
    epochs = fit_config.total_epochs(len(train)) + 1  # steps that are no whole number of epochs begin one more
    mixers = [Mixer.counting(train.labels, train.num_classes, train.image_shape, seed, epochs) for seed in seeds]

    def train_all() -> list[float]:
        histories = fit_all(
            models,
            train,
            [np.arange(len(train))] * len(models),
            fit_config,
            classifier,
            seeds,
            "scout",
            folder.path / "scout",
            [fit_config.total_steps(len(train))] * len(models),
            mixers=mixers,
        )
        return [history.error[-1] for history in histories]

    if not leads():
        train_all()
        return
    with stage.making() as outcome:
        errors = train_all()
        for number, (model, mixer) in enumerate(zip(models, mixers, strict=True)):
            logits, features = features_of(model, train)
            weights, outputs = _files(folder, number)
            save_model(weights, model)
            write_arrays(outputs, logits=logits, features=features, forgotten=mixer.forgotten)
            outcome.outputs += [weights, outputs]
        outcome.facts = ScoutFacts(model=classifier.model, epochs=config.strong.scout.epochs, errors=errors)
    say(f"scout: {classifier.model} has a training error of {np.mean(errors):.1%} after {config.strong.scout.epochs}")


def scout_outputs(run: RunContext, number: int, data: LabeledImages, rows: np.ndarray) -> Callable[[], Evidence]:
    """What the scout of seed `number` says of a training set, once it is asked.

    Args:
        data: images that arms train on, real ones first.
        rows: int64 (n,), which of them the training set has.
    """

    def outputs() -> Evidence:
        weights, file = _files(run.folder, number)
        with local_file(file) as local, np.load(local) as arrays:
            logits, features, forgotten = (arrays[name] for name in ("logits", "features", "forgotten"))
        made = np.unique(rows[rows >= len(logits)])  # synthetic, which it was not trained on
        place = np.where(rows < len(logits), rows, len(logits) + np.searchsorted(made, rows))
        if len(made):
            model = _network(run, 0)
            load_model(weights, model)
            more = features_of(model, data.subset(made))
            logits, features = (np.concatenate(pair) for pair in zip((logits, features), more, strict=True))
        counted = None if len(made) else forgotten[place]
        return Evidence(logits[place], data.labels[rows], features[place], forgotten=counted)

    return outputs


def scout_weights(folder: RunFolder, seeds: int) -> list[str]:
    """SHA-256 of the weights of each seed's scout."""
    return [digest_file(_files(folder, number)[0]) for number in range(seeds)]


def _files(folder: RunFolder, number: int) -> tuple[Path, Path]:
    """Where the weights and the outputs of a scout are."""
    return folder.path / "scout" / f"seed-{number}.safetensors", folder.path / "scout" / f"seed-{number}.npz"


def _network(run: RunContext, seed: int) -> nn.Module:
    """A fresh scout on the run's device."""
    one, train = _classifier(run.config), run.splits.train
    network = build(one.model, train.num_classes, train.image_shape, seed, one.width, one.weights)
    return network.to(device_of(run.config.device))


def _classifier(config: CompareConfig) -> ClassifierConfig:
    model = config.strong.scout.model
    return config.classifier if model == config.classifier.model else ClassifierConfig(model=model)


def _seeds(config: CompareConfig) -> list[int]:
    """Other ones than those of the classifiers, so that a scout of the same network has weights of its own."""
    return [child_seed(seed, "scout") for seed in classifier_seeds(config)]


def _fit_config(config: CompareConfig) -> FitConfig:
    scout = config.strong.scout
    changes: dict[str, Any] = {"epochs": scout.epochs, "steps": 0, "schedule": scout.schedule}
    if not scout.augment:
        changes |= {"crop_padding": 0, "resized_crop": 0.0, "flip": False}
    return fit_config_of(config.train, "sgd").model_copy(update=changes)
