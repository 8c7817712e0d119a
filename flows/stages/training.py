"""The stages that train classifiers: early, and again on what was made. No Prefect in here."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from latebloom.data.images import LabeledImages
from latebloom.data.store import digest_json, write_arrays, write_json
from latebloom.flows.config.arms import Arm, parse_arm
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, Stage
from latebloom.flows.run.processes import leads
from latebloom.flows.run.progress import say
from latebloom.flows.run.records import EARLY, EarlyFacts, RetrainFacts, StrongFacts, retrain_key
from latebloom.flows.stages.classifiers import classifier_seeds, early_folder, new_classifiers
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.fitting import Logs, classifier_key, fit_all, fit_config_of, fit_key, redraw_key, strong_key
from latebloom.flows.stages.given import take_given
from latebloom.flows.stages.knee import KneeSearch
from latebloom.flows.stages.loaders import device_of
from latebloom.flows.stages.rounds import keep_rounds, write_rounds
from latebloom.flows.stages.scout import scout_weights, train_scouts
from latebloom.flows.stages.training_sets import Images, TrainingSet, images_for, training_set
from latebloom.train.evaluate import logits_of, losses_of
from latebloom.train.loop.checkpoint import save_model
from latebloom.train.loop.fit import FitConfig, History
from latebloom.train.loop.validation import Validation

__all__ = ["arm_is_done", "follow", "retrain_arm", "train_early"]


# Early training looks for its knee within this share of the run; published separating epochs lie at 4 to 10 %.
AUTO_HORIZON = 0.25


def train_early(folder: RunFolder, config: CompareConfig) -> None:
    """Train every seed's classifier to the separating epoch; keep its weights, its outputs and the error curve.

    The knee is that of the mean error of the seeds that are trained first: all where they are trained side by side,
    else the first alone, and the others are trained to the epoch it found. No epoch is trained twice. Where outputs or
    the slow images are given, nothing is trained.
    """
    if config.slow.given:
        take_given(folder, config)
        return
    run = RunContext(folder, config)
    train = run.splits.train
    fit_config = fit_config_of(config.train, "sgd")
    seeds = classifier_seeds(config)
    asked = config.slow.separating_epoch
    inputs: dict[str, Any] = {
        "data": train.digest,
        "classifier": classifier_key(config.classifier),
        "train": fit_key(fit_config),
        "separating_epoch": asked or {"patience": config.slow.patience},
        "seeds": seeds,
    }
    stage = folder.stage(EARLY, 3, inputs)
    if record := stage.done():
        say(f"early training: done before, to epoch {record.facts.separating_epoch}")
        return
    epochs = fit_config.total_epochs(len(train))
    horizon = asked or min(epochs, max(5, round(AUTO_HORIZON * epochs)))
    with stage.making() as outcome:
        models = [model.to(device_of(config.device)) for model in new_classifiers(config, train)]
        search = None if asked else KneeSearch(run.path / "early", horizon, config.slow.patience)
        histories = fit_all(
            models,
            train,
            [np.arange(len(train))] * len(models),
            fit_config,
            config.classifier,
            seeds,
            "early training",
            run.path / "early",
            [fit_config.total_steps(len(train))] * len(models),
            stop_epoch=horizon,
            search=search,
        )
        chosen = asked or (search.found if search else 0)
        if search:
            search.restore(models)
        outcome.facts = EarlyFacts(
            separating_epoch=chosen,
            by_knee=not asked,
            errors=[history.error for history in histories],
            losses=[history.loss for history in histories],
            epochs_of_training=epochs,
        )
        for number, (model, seed) in enumerate(zip(models, seeds, strict=True)):
            place = early_folder(folder, number)
            logits = logits_of(model, train)
            losses = losses_of(logits, train.labels).astype(np.float32)
            save_model(place / "model.safetensors", model)
            write_arrays(place / "outputs.npz", logits=logits, labels=train.labels, losses=losses)
            write_json(place / "config.json", {**inputs, "separating_epoch": chosen, "seed": seed})
            outcome.outputs += [place / name for name in ("model.safetensors", "outputs.npz", "config.json")]
        if search:
            search.clean()


@dataclasses.dataclass(frozen=True)
class _Job:
    """What training one arm with one optimizer takes; `steps` are by seed."""

    arm: Arm
    optimizer: str
    images: Images
    training: TrainingSet
    steps: list[int]
    fit_config: FitConfig
    inputs: dict[str, Any]
    stage: Stage[RetrainFacts]


def _job(run: RunContext, arm_name: str, optimizer: str) -> _Job:
    config, arm = run.config, parse_arm(arm_name)
    fit_config = fit_config_of(config.train, optimizer)
    images = images_for(run, {arm_name, arm.equal_steps_of} - {""})
    training = training_set(run, arm, images)
    timed = training_set(run, parse_arm(arm.equal_steps_of), images) if arm.equal_steps_of else training
    steps = [fit_config.total_steps(length) for length in timed.lengths]
    inputs: dict[str, Any] = {
        "train": run.splits.train.digest,
        "test": run.splits.test.digest,
        "examples": [digest_json([images.tokens[row] for row in rows]) for rows in training.rows],
        "steps": steps,
        "classifier": classifier_key(config.classifier),
        "fit": fit_key(fit_config),
        "seeds": classifier_seeds(config),
    }
    if training.mixers:
        inputs["strong"] = strong_key(config.strong_of(arm))
    else:
        inputs |= redraw_key(config.strong)
    if run.splits.validation:
        inputs["validation"] = run.splits.validation.digest
    stage = run.folder.stage(retrain_key(arm_name, optimizer), 3, inputs)
    return _Job(arm, optimizer, images, training, steps, fit_config, inputs, stage)


def arm_is_done(folder: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> bool:
    """Whether an arm needs no training, by its digest."""
    return _job(RunContext(folder, config), arm_name, optimizer).stage.done() is not None


def retrain_arm(folder: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> None:
    """Train one arm with one optimizer for all seeds, from fresh weights, and measure the test error once.

    Of several processes that train together each calls it; the one that leads writes.
    """
    run = RunContext(folder, config)
    job = _job(run, arm_name, optimizer)
    if job.stage.done(mark=leads()):
        return
    place = run.path / "retrained" / f"{arm_name}-{optimizer}"
    validation = Validation(run.splits.validation) if run.splits.validation else None
    if not leads():
        _fit_arm(run, job, place, None, validation)
        return
    classifier = job.inputs["classifier"]
    parameters = [
        {"arm": arm_name, "optimizer": optimizer, "seed": seed, **classifier} for seed in classifier_seeds(config)
    ]
    logs = Logs([place / "log" / f"seed-{number}" for number in range(config.seeds)], parameters)
    test = run.splits.test
    with job.stage.making() as outcome, logs:
        spent: list[float] = []
        models, histories = _fit_arm(run, job, place, logs, validation, spent)
        seconds = (sum(spent) - (validation.seconds if validation else 0.0)) / config.seeds
        predictions = {"test": _predicted(models, test)}
        errors = (predictions["test"] != test.labels).mean(1).tolist()
        validation_errors = []
        if validation:
            predictions["validation"] = _predicted(models, validation.data)
            validation_errors = (predictions["validation"] != validation.data.labels).mean(1).tolist()
        for number, model in enumerate(models):
            logs.end(number, test_error=errors[number])
            save_model(place / f"seed-{number}.safetensors", model)
            outcome.outputs.append(place / f"seed-{number}.safetensors")
        write_arrays(place / "predictions.npz", **predictions)
        write_json(place / "config.json", job.inputs)
        outcome.outputs += [place / "predictions.npz", place / "config.json"]
        outcome.outputs += write_rounds(job.training.mixers or [], place, job.stage.digest)
        outcome.facts = RetrainFacts(
            seconds=seconds,
            errors=errors,
            images_added=[len(rows) - len(run.splits.train) for rows in job.training.rows],
            denoiser_calls=_denoiser_calls(run, job.arm),
            steps=job.steps,
            train_error=histories[0].error,
            validation_errors=validation_errors,
            validation_by_epoch=[history.validation_error for history in histories] if validation else [],
            epoch_seconds=[history.seconds for history in histories],
            synthetic=run.synthetic.manifest()["digest"] if job.arm.kind == "synthetic" else "",
            strong=_strong_facts(job) if job.training.mixers else None,
            scouts=scout_weights(folder, config.seeds) if config.strong_of(job.arm).scout.model else [],
        )


def _predicted(models: list[nn.Module], data: LabeledImages) -> np.ndarray:
    """The classes that the models predict, int32 (seeds, N)."""
    return np.stack([logits_of(model, data).argmax(1).astype(np.int32) for model in models])


def _fit_arm(
    run: RunContext,
    job: _Job,
    place: Path,
    logs: Logs | None,
    validation: Validation | None,
    spent: list[float] | None = None,
) -> tuple[list[nn.Module], list[History]]:
    config = run.config
    models = [model.to(device_of(config.device)) for model in new_classifiers(config, run.splits.train)]
    if leads():
        keep_rounds(job.training.mixers or [], place, job.stage.digest)
    histories = fit_all(
        models,
        job.images.data,
        job.training.rows,
        job.fit_config,
        config.classifier,
        classifier_seeds(config),
        f"{job.arm.name} {job.optimizer}",
        place,
        job.steps,
        mixers=job.training.mixers,
        redraw=config.strong,
        validation=validation,
        logs=logs,
        spent=spent,
    )
    return models, histories


def _denoiser_calls(run: RunContext, arm: Arm) -> list[int]:
    """What the images of an arm took, by seed."""
    if arm.kind != "synthetic":
        return [0] * run.config.seeds
    calls = run.calls_of(arm)
    return [len(run.selected(arm.method, number)) * calls for number in range(run.config.seeds)]


def follow(folder: RunFolder, config: CompareConfig) -> None:
    """Take part in the training of scouts and arms, in the order of the flow, in a process that does not lead."""
    if config.wants_scout:
        train_scouts(folder, config)
    for arm in config.arms:
        for optimizer in config.optimizers:
            retrain_arm(folder, config, arm, optimizer)


def _strong_facts(job: _Job) -> StrongFacts:
    """What was selected and copied, means over seeds."""
    assert job.training.mixers
    n_real = job.images.pool.n_real
    sizes, copies, synthetic, of_pool = [], [], [], []
    for mixer, rows, steps in zip(job.training.mixers, job.training.rows, job.steps, strict=True):
        selected, synthetic_rows = mixer.times_selected.sum(), rows >= n_real
        epochs = steps / job.fit_config.steps_per_epoch(mixer.length)
        copies_each = {"append": mixer.config.copies, "in_place": 1, "in_place_twice": 2}[mixer.config.where]
        sizes.append(float(selected / max(1, mixer.selections)))
        copies.append(copies_each * sizes[-1] * max(0.0, epochs - mixer.config.warm_epochs))
        synthetic += [float(mixer.times_selected[synthetic_rows].sum() / selected)] if selected else []
        of_pool.append(float(np.mean(synthetic_rows)))
    any_synthetic = len(job.images.data) > n_real and bool(synthetic)
    return StrongFacts(
        selected=float(np.mean(sizes)),
        selections=float(np.mean([mixer.selections for mixer in job.training.mixers])),
        selection_seconds=float(np.mean([mixer.seconds for mixer in job.training.mixers])),
        strong_copies=float(np.mean(copies)),
        selected_synthetic=float(np.mean(synthetic)) if any_synthetic else None,
        pool_synthetic=float(np.mean(of_pool)) if any_synthetic else None,
    )
