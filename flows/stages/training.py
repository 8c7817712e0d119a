"""The stages that train classifiers: early, and again on what was made. No Prefect in here."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from latebloom.data.images import LabeledImages, concat
from latebloom.data.store import digest_bytes, digest_json, write_arrays, write_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.arms import parse_arm
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, Stage
from latebloom.flows.run.processes import leads
from latebloom.flows.run.progress import say
from latebloom.flows.stages.arm_rows import Pool, arm_rows
from latebloom.flows.stages.coreset_file import given_to, read_picks
from latebloom.flows.stages.fitting import Logs, classifier_key, fit_all, fit_config_of, fit_key, strong_key
from latebloom.flows.stages.loaders import (
    classifier_seeds,
    device_of,
    early_folder,
    images_of,
    new_classifiers,
    selected,
    usable_rows,
)
from latebloom.synth.plan import item_id, requests
from latebloom.train.augment.mixing import Mixer
from latebloom.train.evaluate import error_rate, logits_of, losses_of
from latebloom.train.loop.checkpoint import save_model
from latebloom.train.loop.fit import FitConfig, History
from latebloom.train.selection.slow import separating_epoch

__all__ = ["arm_is_done", "check_picks", "follow", "retrain_arm", "train_early"]


# Early training looks for its knee within this share of the run; published separating epochs lie at 4 to 10 %.
AUTO_HORIZON = 0.25


def train_early(run: RunFolder, config: CompareConfig) -> None:
    """Train every seed's classifier to the separating epoch; keep its weights, its outputs and the error curve."""
    train = images_of(config).train
    fit_config = fit_config_of(config.train, "sgd")
    inputs: dict[str, Any] = {
        "data": train.digest,
        "classifier": classifier_key(config.classifier),
        "train": fit_key(fit_config),
        "separating_epoch": config.slow.separating_epoch,
        "seeds": classifier_seeds(config),
    }
    stage = run.stage("early", 2, inputs)
    if stage.is_done():
        say(f"early training: done before, to epoch {run.record('early')['facts']['separating_epoch']}")
        return
    epochs = fit_config.total_epochs(len(train))
    asked = config.slow.separating_epoch
    horizon = asked or min(epochs, max(5, round(AUTO_HORIZON * epochs)))
    outputs: list[Path] = []
    facts: dict[str, Any] = {}
    with stage.making(outputs, facts):
        models, histories = _train_to(run, config, fit_config, horizon)
        chosen = asked or separating_epoch(np.mean([history.error for history in histories], 0).tolist())
        if chosen < horizon:
            # The same seeds give the same weights: training again to the knee is simpler than keeping every epoch.
            models, _ = _train_to(run, config, fit_config, chosen)
        facts["separating_epoch"] = chosen
        facts["by_knee"] = not asked
        facts["errors"] = [history.error for history in histories]
        facts["losses"] = [history.loss for history in histories]
        for number, model in enumerate(models):
            folder = early_folder(run, number)
            logits = logits_of(model, train)
            losses = losses_of(logits, train.labels).astype(np.float32)
            save_model(folder / "model.safetensors", model)
            write_arrays(folder / "outputs.npz", logits=logits, labels=train.labels, losses=losses)
            write_json(folder / "config.json", {**inputs, "separating_epoch": chosen, "seed": inputs["seeds"][number]})
            outputs += [folder / name for name in ("model.safetensors", "outputs.npz", "config.json")]


def _train_to(
    run: RunFolder, config: CompareConfig, fit_config: FitConfig, epoch: int
) -> tuple[list[nn.Module], list[History]]:
    train = images_of(config).train
    models = [model.to(device_of(config.device)) for model in new_classifiers(config, train)]
    rows = [np.arange(len(train))] * len(models)
    steps = [fit_config.total_steps(len(train))] * len(models)
    histories = fit_all(
        models,
        train,
        rows,
        fit_config,
        config.classifier,
        classifier_seeds(config),
        f"early training to {epoch}",
        run.path / "early",
        steps,
        stop_epoch=epoch,
    )
    return models, histories


@dataclasses.dataclass(frozen=True)
class _Job:
    """What training one arm with one optimizer takes."""

    data: LabeledImages  # real images, then the usable synthetic ones
    rows: list[np.ndarray]  # by seed, rows of `data`
    steps: list[int]  # by seed
    mixers: list[Mixer] | None  # by seed, where the arm has strong copies
    fit_config: FitConfig
    inputs: dict[str, Any]
    stage: Stage


def _job(run: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> _Job:
    arm = parse_arm(arm_name)
    splits = images_of(config)
    fit_config = fit_config_of(config.train, optimizer)
    data, pool, tokens = _pool(run, config, {arm_name, arm.equal_steps_of} - {""})
    rows = [_rows(run, config, arm_name, number, pool) for number in range(config.seeds)]
    mixers = _mixers(config, arm_name, data, rows, pool)
    lengths = [mixer.length for mixer in mixers] if mixers else [len(r) for r in rows]
    if other := arm.equal_steps_of:
        others = [_rows(run, config, other, number, pool) for number in range(config.seeds)]
        mixed = _mixers(config, other, data, others, pool)
        lengths = [mixer.length for mixer in mixed] if mixed else [len(r) for r in others]
    steps = [fit_config.total_steps(length) for length in lengths]
    inputs: dict[str, Any] = {
        "train": splits.train.digest,
        "test": splits.test.digest,
        "examples": [digest_json([tokens[row] for row in r]) for r in rows],
        "steps": steps,
        "classifier": classifier_key(config.classifier),
        "fit": fit_key(fit_config),
        "seeds": classifier_seeds(config),
    }
    if mixers:
        inputs["strong"] = strong_key(config.strong_of(arm))
    stage = run.stage(f"retrain-{arm_name}-{optimizer}", 2, inputs)
    return _Job(data, rows, steps, mixers, fit_config, inputs, stage)


def _mixers(
    config: CompareConfig, arm_name: str, data: LabeledImages, rows: list[np.ndarray], pool: Pool
) -> list[Mixer] | None:
    """Who mixes strong copies into each seed's epochs, fresh; None where an arm has no strong copies."""
    arm = parse_arm(arm_name)
    if arm.selector == "none":
        return None
    strong = config.strong_of(arm)
    picks = read_picks(strong.file) if arm.selector == "file" else None
    mixers = []
    for number, (r, seed) in enumerate(zip(rows, classifier_seeds(config), strict=True)):
        given = given_to(f"arm {arm_name}, seed {number},", picks, data.labels, pool, r) if picks else None
        mixers.append(Mixer(strong, data.labels[r], data.num_classes, data.image_shape, seed, given))
    return mixers


def check_picks(run: RunFolder, config: CompareConfig) -> None:
    """Refuse a coreset's file that an arm with synthetic images cannot be trained on.

    Raises:
        ValueError: the first thing that does not fit.
    """
    for arm in config.parsed_arms:
        if arm.selector == "file" and arm.kind == "synthetic":
            data, pool, _ = _pool(run, config, {arm.name})
            rows = [_rows(run, config, arm.name, number, pool) for number in range(config.seeds)]
            _mixers(config, arm.name, data, rows, pool)


def arm_is_done(run: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> bool:
    """Whether an arm needs no training, by its digest."""
    return _job(run, config, arm_name, optimizer).stage.is_done()


def retrain_arm(run: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> None:
    """Train one arm with one optimizer for all seeds, from fresh weights, and measure the test error once.

    Of several processes that train together each calls it; the one that leads writes.
    """
    job = _job(run, config, arm_name, optimizer)
    if job.stage.is_done(mark=leads()):
        return
    arm = parse_arm(arm_name)
    splits = images_of(config)
    folder = run.path / "retrained" / f"{arm_name}-{optimizer}"
    title = f"{arm_name} {optimizer}"
    if not leads():
        _fit_arm(config, job, title, folder, None)
        return
    outputs: list[Path] = []
    facts: dict[str, Any] = {}
    seeds = classifier_seeds(config)
    about = [{"arm": arm_name, "optimizer": optimizer, "seed": seed, **job.inputs["classifier"]} for seed in seeds]
    logs = Logs([folder / "log" / f"seed-{number}" for number in range(config.seeds)], about)
    with job.stage.making(outputs, facts), logs:
        begin = time.perf_counter()
        models, histories = _fit_arm(config, job, title, folder, logs)
        facts["seconds"] = (time.perf_counter() - begin) / config.seeds
        errors = []
        for number, model in enumerate(models):
            errors.append(error_rate(logits_of(model, splits.test), splits.test.labels))
            logs.end(number, test_error=errors[-1])
            save_model(folder / f"seed-{number}.safetensors", model)
            outputs.append(folder / f"seed-{number}.safetensors")
        write_json(folder / "config.json", job.inputs)
        outputs.append(folder / "config.json")
        facts["errors"] = errors
        if arm.kind == "synthetic":
            facts["synthetic"] = SyntheticFolder(run.path / "synthetic").manifest()["digest"]
        facts["images_added"] = [len(r) - len(splits.train) for r in job.rows]
        calls = run.record("plan")["facts"]["calls"] if arm.kind == "synthetic" else {}
        facts["denoiser_calls"] = [
            len(selected(run, arm.method, number)) * sum(calls[str(level)] for level in config.levels(arm))
            if calls
            else 0
            for number in range(config.seeds)
        ]
        facts["steps"] = job.steps
        facts["train_error"] = histories[0].error
        if job.mixers:
            facts["strong"] = _strong_facts(job, len(splits.train))


def _fit_arm(
    config: CompareConfig, job: _Job, title: str, folder: Path, logs: Logs | None
) -> tuple[list[nn.Module], list[History]]:
    models = [model.to(device_of(config.device)) for model in new_classifiers(config, images_of(config).train)]
    histories = fit_all(
        models,
        job.data,
        job.rows,
        job.fit_config,
        config.classifier,
        classifier_seeds(config),
        title,
        folder,
        job.steps,
        mixers=job.mixers,
        logs=logs,
    )
    return models, histories


def follow(run: RunFolder, config: CompareConfig) -> None:
    """Take part in the training of all arms, in the order of the flow, in a process that does not lead."""
    for arm in config.arms:
        for optimizer in config.optimizers:
            retrain_arm(run, config, arm, optimizer)


def _strong_facts(job: _Job, n_real: int) -> dict[str, float | None]:
    """What was picked and copied: means over seeds, for the fields of `ArmResult` of these names."""
    assert job.mixers
    found: list[dict[str, float]] = []
    synthetic, of_pool = [], []
    for mixer, rows, steps in zip(job.mixers, job.rows, job.steps, strict=True):
        picked, synthetic_rows = mixer.times_selected.sum(), rows >= n_real
        epochs = steps / job.fit_config.steps_per_epoch(mixer.length)
        per_pick = {"append": mixer.config.copies, "in_place": 1, "in_place_twice": 2}[mixer.config.where]
        size = float(picked / max(1, mixer.selections))
        found.append(
            {
                "selected": size,
                "selections": mixer.selections,
                "selection_seconds": mixer.seconds,
                "strong_copies": per_pick * size * max(0.0, epochs - mixer.config.warm_epochs),
            }
        )
        if picked:  # as many in every selection
            synthetic.append(float(mixer.times_selected[synthetic_rows].sum() / picked))
        of_pool.append(float(np.mean(synthetic_rows)))
    any_synthetic = len(job.data) > n_real and bool(synthetic)
    return {
        **{name: float(np.mean([one[name] for one in found])) for name in found[0]},
        "selected_synthetic": float(np.mean(synthetic)) if any_synthetic else None,
        "pool_synthetic": float(np.mean(of_pool)) if any_synthetic else None,
    }


def _rows(run: RunFolder, config: CompareConfig, arm_name: str, number: int, pool: Pool) -> np.ndarray:
    arm = parse_arm(arm_name)
    chosen = np.empty(0, np.int64) if arm.kind == "original" else selected(run, arm.method, number)
    return arm_rows(arm, chosen, config.levels(arm), pool)


def _pool(run: RunFolder, config: CompareConfig, arms: set[str]) -> tuple[LabeledImages, Pool, list[str]]:
    """Real images, then the usable synthetic ones where an arm needs them; and a token for the content of each row."""
    train = images_of(config).train
    tokens = [str(row) for row in range(len(train))]
    if not any(parse_arm(name).kind == "synthetic" for name in arms):
        return train, Pool(len(train), {}, {}), tokens
    folder = SyntheticFolder(run.path / "synthetic")
    table = folder.rows()
    _check_made(run, config, arms, table)
    usable = usable_rows(folder, table, config.train_states)
    tokens += [digest_bytes(image["bytes"]) for image in usable["image"].to_pylist()]
    return concat(train, folder.images(usable, train)), Pool.of(len(train), usable), tokens


def _check_made(run: RunFolder, config: CompareConfig, arms: set[str], table: pa.Table) -> None:
    """Refuse a synthetic data set of other settings: an image that was never made must not pass for a bad one."""
    keys = (table[name].to_pylist() for name in ("source_index", "level_steps", "variant", "level_grid"))
    made = set(zip(*keys, strict=True))
    left_out = set(SyntheticFolder(run.path / "synthetic").manifest()["about"]["left_out"])
    for arm in map(parse_arm, arms):
        for number in range(config.seeds if arm.kind == "synthetic" else 0):
            wanted = requests(selected(run, arm.method, number), config.levels(arm))
            missing = sum(
                (r.source_index, r.steps, r.variant, config.sample.grid) not in made
                and item_id(r, config.sample.grid) not in left_out
                for r in wanted
            )
            if missing:
                raise ValueError(
                    f"{run.path / 'synthetic'} was made with other settings: {missing} of {len(wanted)} images of arm "
                    f"{arm.name}, seed {number}, are not in it; run `latebloom generate` first"
                )
