"""The stages that train classifiers: early, and again on what was made. No Prefect in here."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from data.images import LabeledImages, concat
from data.store import digest_bytes, digest_json, write_arrays, write_json
from data.synthetic import SyntheticFolder
from flows.arms import Pool, arm_rows
from flows.config import CompareConfig, parse_arm
from flows.inputs import classifier_seeds, device_of, early_folder, images_of, new_classifiers, selected
from flows.progress import Meter, meter, say
from flows.run import RunFolder, Stage
from synth.plan import item_id, requests
from train.checkpoint import load_fit, save_fit, save_model
from train.evaluate import error_rate, logits_of, losses_of
from train.fit import FitConfig, FitState, History, fit
from train.slow import separating_epoch

__all__ = ["arm_is_done", "retrain_arm", "train_early"]


CHECKPOINT_SECONDS = 30.0
# Early training looks for its knee within this share of the run; published separating epochs lie at 4 to 10 %.
AUTO_HORIZON = 0.25


def train_early(run: RunFolder, config: CompareConfig) -> None:
    """Train every seed's classifier to the separating epoch; keep its weights, its outputs and the error curve."""
    train = images_of(config.data).train
    fit_config = _fit_config(config, "sgd")
    inputs: dict[str, Any] = {
        "data": train.digest,
        "classifier": config.classifier.model_dump(mode="json"),
        "train": fit_config.model_dump(mode="json"),
        "separating_epoch": config.slow.separating_epoch,
        "seeds": classifier_seeds(config),
    }
    stage = run.stage("early", 1, inputs)
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


def _fit_config(config: CompareConfig, optimizer: str) -> FitConfig:
    """How an optimizer trains. What SGD ignores stands at its default: changing it must not train SGD's arms again."""
    for_sam = {name: FitConfig.model_fields[name].default for name in ("rho", "sam_batchnorm")}
    return config.train.model_copy(update={"optimizer": optimizer, **(for_sam if optimizer == "sgd" else {})})


def _train_to(
    run: RunFolder, config: CompareConfig, fit_config: FitConfig, epoch: int
) -> tuple[list[nn.Module], list[History]]:
    train = images_of(config.data).train
    models = new_classifiers(config, train)
    rows = [np.arange(len(train))] * len(models)
    steps = [fit_config.total_steps(len(train))] * len(models)
    folder = run.path / "early"
    return models, _fit_all(models, train, rows, fit_config, config, f"early training to {epoch}", folder, steps, epoch)


def _fit_all(
    models: list[nn.Module],
    data: LabeledImages,
    rows: list[np.ndarray],
    fit_config: FitConfig,
    config: CompareConfig,
    title: str,
    folder: Path,
    total_steps: list[int],
    stop_epoch: int = 0,
) -> list[History]:
    """Train the classifiers of all seeds, going on from the checkpoints of an interrupted run.

    Small ones as one network over all seeds, which is faster; others one after the other.
    """
    seeds = classifier_seeds(config)
    together = config.classifier.model == "small-cnn"
    histories: list[History] = []
    files: list[Path] = []
    for group in [list(range(len(models)))] if together else [[m] for m in range(len(models))]:
        mine = [models[m].to(device_of(config.device)) for m in group]
        file = folder / f"checkpoint-{group[0]}.safetensors"
        files.append(file)
        key = digest_json(
            {
                "data": data.digest,
                "classifier": config.classifier.model_dump(mode="json"),
                "rows": [digest_json(rows[m].tolist()) for m in group],
                "train": fit_config.model_dump(mode="json"),
                "stop": stop_epoch,
                "steps": [total_steps[m] for m in group],
                "seeds": [seeds[m] for m in group],
            }
        )
        start = load_fit(file, mine, key)
        last = max(
            min(total_steps[m], stop_epoch * fit_config.steps_per_epoch(len(rows[m]))) if stop_epoch else total_steps[m]
            for m in group
        )
        label = (
            title if len(models) == 1 else f"{title}, {len(group)} seeds" if together else f"{title}, seed {group[0]}"
        )
        with meter(label, last, "steps", start.step if start else 0) as bar:
            histories += fit(
                mine,
                data,
                [rows[m] for m in group],
                fit_config,
                [seeds[m] for m in group],
                total_steps=[total_steps[m] for m in group],
                stop_epoch=stop_epoch,
                device=device_of(config.device),
                start=start,
                on_epoch=_Saver(file, mine, key, bar, 0 if together else last),
            )
    for file in files:
        file.unlink(missing_ok=True)
    return histories


class _Saver:
    """Writes a checkpoint every half minute, at the end of an epoch, and moves the bar.

    Where others are trained after these models, also at `last`, their last step (0: none are).
    """

    def __init__(self, file: Path, models: list[nn.Module], key: str, bar: Meter, last: int) -> None:
        self.file, self.models, self.key, self.bar, self.last_step = file, models, key, bar, last
        self.last = time.monotonic()

    def __call__(self, state: FitState) -> None:
        self.bar.add(state.step - self.bar.done)
        if time.monotonic() - self.last >= CHECKPOINT_SECONDS or state.step == self.last_step:
            save_fit(self.file, self.models, state, self.key)
            self.last = time.monotonic()


@dataclasses.dataclass(frozen=True)
class _Job:
    """What training one arm with one optimizer takes."""

    data: LabeledImages  # real images, then the usable synthetic ones
    rows: list[np.ndarray]  # by seed, rows of `data`
    steps: list[int]  # by seed
    fit_config: FitConfig
    inputs: dict[str, Any]
    stage: Stage


def _job(run: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> _Job:
    arm = parse_arm(arm_name)
    splits = images_of(config.data)
    fit_config = _fit_config(config, optimizer)
    data, pool, tokens = _pool(run, config, {arm_name, arm.equal_steps_of} - {""})
    rows = [_rows(run, config, arm_name, number, pool) for number in range(config.seeds)]
    lengths = [len(r) for r in rows]
    if arm.equal_steps_of:
        lengths = [len(_rows(run, config, arm.equal_steps_of, number, pool)) for number in range(config.seeds)]
    steps = [fit_config.total_steps(length) for length in lengths]
    inputs: dict[str, Any] = {
        "train": splits.train.digest,
        "test": splits.test.digest,
        "examples": [digest_json([tokens[row] for row in r]) for r in rows],
        "steps": steps,
        "classifier": config.classifier.model_dump(mode="json"),
        "fit": fit_config.model_dump(mode="json"),
        "seeds": classifier_seeds(config),
    }
    stage = run.stage(f"retrain-{arm_name}-{optimizer}", 1, inputs)
    return _Job(data, rows, steps, fit_config, inputs, stage)


def arm_is_done(run: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> bool:
    """Whether an arm needs no training, by its digest."""
    return _job(run, config, arm_name, optimizer).stage.is_done()


def retrain_arm(run: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> None:
    """Train one arm with one optimizer for all seeds, from fresh weights, and measure the test error once."""
    job = _job(run, config, arm_name, optimizer)
    if job.stage.is_done():
        return
    arm = parse_arm(arm_name)
    splits = images_of(config.data)
    folder = run.path / "retrained" / f"{arm_name}-{optimizer}"
    outputs: list[Path] = []
    facts: dict[str, Any] = {}
    with job.stage.making(outputs, facts):
        models = new_classifiers(config, splits.train)
        title = f"{arm_name} {optimizer}"
        begin = time.perf_counter()
        histories = _fit_all(models, job.data, job.rows, job.fit_config, config, title, folder, job.steps)
        facts["seconds"] = (time.perf_counter() - begin) / config.seeds
        errors = []
        for number, model in enumerate(models):
            errors.append(error_rate(logits_of(model, splits.test), splits.test.labels))
            save_model(folder / f"seed-{number}.safetensors", model)
            outputs.append(folder / f"seed-{number}.safetensors")
        write_json(folder / "config.json", job.inputs)
        outputs.append(folder / "config.json")
        facts["errors"] = errors
        facts["images_added"] = [len(r) - len(splits.train) for r in job.rows]
        calls = run.record("plan")["facts"]["calls"] if arm.kind == "synthetic" else {}
        facts["denoiser_calls"] = [
            len(selected(run, arm.method, number)) * sum(calls[str(level)] for level in config.levels(arm))
            for number in range(config.seeds)
        ]
        facts["steps"] = job.steps
        facts["train_error"] = histories[0].error


def _rows(run: RunFolder, config: CompareConfig, arm_name: str, number: int, pool: Pool) -> np.ndarray:
    arm = parse_arm(arm_name)
    chosen = np.empty(0, np.int64) if arm.kind == "original" else selected(run, arm.method, number)
    return arm_rows(arm, chosen, config.levels(arm), pool)


def _pool(run: RunFolder, config: CompareConfig, arms: set[str]) -> tuple[LabeledImages, Pool, list[str]]:
    """Real images, then the usable synthetic ones where an arm needs them; and a token for the content of each row."""
    train = images_of(config.data).train
    tokens = [str(row) for row in range(len(train))]
    if not any(parse_arm(name).kind == "synthetic" for name in arms):
        return train, Pool(len(train), {}), tokens
    folder = SyntheticFolder(run.path / "synthetic")
    table = folder.rows()
    _check_made(run, config, arms, table)
    usable = table.filter(pc.is_in(table["state"], pa.array(config.train_states)))
    if usable.num_rows == 0:
        raise ValueError(
            f"none of the {table.num_rows} images in {folder.path} is {' or '.join(config.train_states)}; look at "
            "their states and scores with `slowlane inspect`"
        )
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
                    f"{arm.name}, seed {number}, are not in it; run `slowlane generate` first"
                )
