"""The stages of a run: each reads, calls one function of another package, and writes. No Prefect in here.

Every stage is skipped where its record says that it is done with the same inputs (flows/run.py).
"""

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch._dynamo  # torch.optim imports it at its first use: seconds that are no training
from torch import nn

from data.images import LabeledImages, concat
from data.store import atomic_path, digest_bytes, digest_json, write_arrays, write_json
from data.synthetic import SyntheticFolder
from flows.arms import Pool, arm_rows
from flows.config import Arm, CompareConfig, parse_arm
from flows.inputs import (
    classifier_seeds,
    denoiser_of,
    device_of,
    early_classifiers,
    early_folder,
    images_of,
    new_classifiers,
    selected,
    selection_path,
)
from flows.progress import Meter, duration, meter, say
from flows.run import RunFolder, measured
from synth.generate import Judge, make_part, probe
from synth.plan import PLAN_SCHEMA, Forecast, forecast, make_plan, requests
from synth.quality import Scores, states
from train.checkpoint import load_fit, save_fit, save_model
from train.evaluate import error_rate, logits_of, losses_of
from train.fit import FitConfig, FitState, History, fit
from train.slow import Method, select_slow, separating_epoch

__all__ = [
    "arms_of",
    "check_folder",
    "check_inputs",
    "finish_synthetic",
    "make_one_part",
    "open_parts",
    "open_run",
    "plan_images",
    "retrain_arm",
    "select_examples",
    "train_early",
]

CHECKPOINT_SECONDS = 30.0
# Early training looks for its knee within this share of the run; published separating epochs lie at 4 to 10 %.
AUTO_HORIZON = 0.25


def open_run(config: CompareConfig, out: str) -> RunFolder:
    """Make the run folder and write down what was asked."""
    run = RunFolder(Path(out).expanduser())
    write_json(run.path / "config.json", config.model_dump(mode="json"))
    return run


def check_inputs(config: CompareConfig) -> None:
    """Everything that can be wrong with data, classifier and generator, before anything is trained or written.

    Raises:
        ValueError: the first thing that is.
    """
    splits = images_of(config.data)
    train = splits.train
    device_of(config)
    new_classifiers(config.model_copy(update={"seeds": 1}), train)
    epochs = _epochs(config.train, len(train))
    if config.slow.separating_epoch > epochs:
        raise ValueError(f"separating epoch {config.slow.separating_epoch} lies beyond the {epochs} epochs of training")
    if any(parse_arm(name).kind == "synthetic" for name in config.arms):
        denoiser = denoiser_of(config)
        denoiser.check(train.image_shape, train.class_names)
        if config.sample.grid > len(denoiser.alphas_cumprod):
            raise ValueError(
                f"a grid of {config.sample.grid} steps is finer than the {len(denoiser.alphas_cumprod)} timesteps "
                f"of generator {denoiser.name}"
            )
        if config.sample.guidance_scale != 1 and not denoiser.unconditional:
            raise ValueError(f"generator {denoiser.name} cannot do guidance; set sample.guidance_scale to 1")
    # Last, since it decodes every image, as the stages will anyway (it is kept): a damaged one is named now.
    for part in (train, splits.test):
        len(part.sha256)


def check_folder(config: CompareConfig, out: str, kind: str) -> None:
    """What a flow of this kind would miss in its run folder, or find in its place; nothing is written.

    Args:
        kind: the name of the flow, such as `retrain`.

    Raises:
        ValueError: the first thing that is wrong.
    """
    run = RunFolder(Path(out).expanduser())
    there = next(path for path in (run.path, *run.path.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, so {run.path} cannot be a run folder; give another one with --out")
    if kind in ("plan", "generate") and not config.wants_synthetic:
        raise ValueError(f"none of the arms ({', '.join(config.arms)}) needs images to be made; name one like ours-5")
    if kind in ("retrain", "report"):
        for name in ("early", "select", *(["plan", "generate"] if config.wants_synthetic else [])):
            run.record(name)
    if kind == "report":
        for arm in config.arms:
            for optimizer in config.optimizers:
                run.record(f"retrain-{arm}-{optimizer}")


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
    epochs = _epochs(fit_config, len(train))
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


def _epochs(fit_config: FitConfig, n: int) -> int:
    """Whole epochs of a training run on n examples, at least one."""
    return max(1, fit_config.total_steps(n) // fit_config.steps_per_epoch(n))


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
        mine = [models[m].to(device_of(config)) for m in group]
        file = folder / f"checkpoint-{group[0]}.safetensors"
        files.append(file)
        key = digest_json(
            {
                "data": data.digest,
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
                device=device_of(config),
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


def select_examples(run: RunFolder, config: CompareConfig) -> None:
    """Choose the examples of every method that an arm names, for every seed."""
    methods: list[Method] = sorted({"cluster", *(arm.method for arm in arms_of(config))})
    inputs: dict[str, Any] = {
        "early": run.record("early")["digest"],
        "space": config.slow.space,
        "methods": methods,
        "seeds": classifier_seeds(config),
    }
    stage = run.stage("select", 1, inputs)
    if stage.is_done():
        say("selection: done before")
        return
    outputs: list[Path] = []
    facts: dict[str, Any] = {"warnings": []}
    with stage.making(outputs, facts):
        for number, seed in enumerate(inputs["seeds"]):
            with np.load(early_folder(run, number) / "outputs.npz") as early:
                logits, labels = early["logits"], early["labels"]
            for method in methods:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    chosen = select_slow(logits, labels, method, seed, space=config.slow.space)
                if method == "cluster":
                    facts["warnings"] += [f"seed {number}: {warning.message}" for warning in caught]
                file = selection_path(run, method, number)
                write_arrays(file, indices=chosen.indices, cluster=chosen.cluster, mean_loss=chosen.mean_loss)
                outputs.append(file)
        counts = [len(selected(run, "cluster", number)) for number in range(config.seeds)]
        facts["slow"] = counts
        for text in facts["warnings"]:
            say(f"warning: {text}")
        if not any(counts):
            raise ValueError("no class has a slow half, so there is nothing to augment; see the warnings above")
    say(f"selection: {np.mean(counts):.0f} of {len(labels)} images are slow ({np.mean(counts) / len(labels):.0%})")


def arms_of(config: CompareConfig) -> list[Arm]:
    """The arms of a config, parsed."""
    return [parse_arm(name) for name in config.arms]


def plan_images(run: RunFolder, config: CompareConfig) -> None:
    """Write plan.parquet: one row per image that any arm of any seed wants. Forecast its cost from a short probe."""
    train = images_of(config.data).train
    denoiser = denoiser_of(config)
    wants = [(arm.method, config.levels(arm)) for arm in arms_of(config) if arm.kind == "synthetic"]
    inputs: dict[str, Any] = {
        "selection": run.record("select")["digest"],
        "wants": wants,
        "grid": config.sample.grid,
        "guidance_scale": config.sample.guidance_scale,
        "generator": denoiser.digest,
        "seed": config.seed,
    }
    stage = run.stage("plan", 1, inputs)
    if stage.is_done():
        say("plan: done before")
        return
    facts: dict[str, Any] = {}
    file = run.path / "plan.parquet"
    with stage.making([file], facts):
        wanted = [
            request
            for method, levels in wants
            for number in range(config.seeds)
            for request in requests(selected(run, method, number), levels)
        ]
        plan = make_plan(wanted, train, config.sample.grid, config.seed)
        with atomic_path(file) as temporary:
            pq.write_table(plan, temporary)
        measured = probe(denoiser, train, plan, config.sample, config.generate.batch_size)
        cost = forecast(
            plan,
            train,
            guided=_calls_a_step(config) == 2,
            seconds_per_call=measured.seconds_per_call,
            bytes_per_image=measured.bytes_per_image,
        )
        facts["forecast"] = vars(cost)
    say(_describe(cost))


def _describe(cost: Forecast) -> str:
    """The forecast for people: what will be made, and what it takes."""
    levels = ", ".join(f"{count:,} at {level}" for level, count in cost.per_level.items())
    fewest, most = min(cost.per_class.values()), max(cost.per_class.values())
    return (
        f"plan: {cost.images:,} images ({levels}; {fewest:,} to {most:,} a class), "
        f"{cost.denoiser_calls:,} denoiser calls, "
        f"about {duration(cost.seconds)} on this device and {cost.bytes / 2**20:,.1f} MiB"
    )


@dataclasses.dataclass(frozen=True)
class PartsToMake:
    """What is left of a synthetic data set: part numbers, all its images, and those already there."""

    parts: list[int]
    images: int
    images_done: int


def open_parts(run: RunFolder, config: CompareConfig) -> PartsToMake:
    """Which parts of the synthetic data set are still to be made: missing, damaged, or of another plan."""
    plan = _read_plan(run)
    folder = SyntheticFolder(run.path / "synthetic")
    parts = _parts(plan, config)
    todo = [n for n, part in enumerate(parts) if folder.finished_part(n, _part_key(run, config, part)) is None]
    if todo:
        # What is there is no data set any more until the last part is.
        (folder.path / "manifest.json").unlink(missing_ok=True)
    say(f"generate: {len(parts) - len(todo)} of {len(parts)} parts done before")
    return PartsToMake(todo, plan.num_rows, plan.num_rows - sum(parts[n].num_rows for n in todo))


def make_one_part(run: RunFolder, config: CompareConfig, number: int, bar: Meter) -> None:
    """Make one part of the synthetic data set."""
    part = _parts(_read_plan(run), config)[number]
    train = images_of(config.data).train
    with measured() as cost:
        rows = make_part(
            denoiser_of(config),
            train,
            part,
            config.sample,
            config.quality,
            _judge(run, config),
            config.generate.batch_size,
            bar.add,
        )
    folder = SyntheticFolder(run.path / "synthetic")
    record = folder.write_part(number, rows, train.class_names, _part_key(run, config, part), cost)
    bar.add(0, record["states"])


def finish_synthetic(run: RunFolder, config: CompareConfig) -> str:
    """Write the manifest over all parts; its digest."""
    plan = _read_plan(run)
    train = images_of(config.data).train
    denoiser = denoiser_of(config)
    folder = SyntheticFolder(run.path / "synthetic")
    records = []
    for number, part in enumerate(_parts(plan, config)):
        key = _part_key(run, config, part)
        record = folder.finished_part(number, key)
        assert record is not None, f"part {number} is not there although it was made"
        records.append(_judged(folder, number, record, key, config, train.class_names))
    about = {
        "plan": digest_json(plan.to_pydict()),
        "data": train.digest,
        "generator": denoiser.name,
        "generator_digest": denoiser.digest,
        "sample": config.sample.model_dump(mode="json"),
        "quality": config.quality.model_dump(mode="json"),
        "judge": run.record("early")["digest"],
        "seed": config.seed,
    }
    digest = folder.write_manifest(about, train.class_names, records)
    costs = [record["cost"] for record in records]
    cost = {
        "seconds": round(sum(cost["seconds"] for cost in costs), 3),
        "peak_memory_mb": max((cost["peak_memory_mb"] for cost in costs), default=0.0),
    }
    calls = int(plan["level_steps"].to_numpy().sum()) * _calls_a_step(config)
    stage = run.stage("generate", 1, {"digest": digest})
    if not stage.is_done():
        stage.finish([folder.path / "manifest.json"], {"denoiser_calls": calls, "digest": digest}, cost)
    return digest


def _judged(
    folder: SyntheticFolder,
    number: int,
    record: dict[str, Any],
    key: str,
    config: CompareConfig,
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """The record of a part whose states follow the thresholds of now; it is written again where a state moves."""
    names = [field.name for field in dataclasses.fields(Scores)]
    table = pq.read_table(folder.part_path(number), columns=[*names, "state"])
    now = states(Scores(**{name: table[name].to_numpy() for name in names}), config.quality)
    if now == table["state"].to_pylist():
        return record
    (folder.path / "manifest.json").unlink(missing_ok=True)  # the data set it tells of is going
    rows = pq.read_table(folder.part_path(number))
    rows = rows.set_column(rows.schema.get_field_index("state"), "state", pa.array(now, pa.string()))
    return folder.write_part(number, rows, class_names, key, record["cost"])


def _read_plan(run: RunFolder) -> pa.Table:
    run.record("plan")
    return pq.read_table(run.path / "plan.parquet", schema=PLAN_SCHEMA)


def _parts(plan: pa.Table, config: CompareConfig) -> list[pa.Table]:
    size = config.plan.part_size
    return [plan.slice(start, size) for start in range(0, plan.num_rows, size)]


def _part_key(run: RunFolder, config: CompareConfig, part: pa.Table) -> str:
    """Digest of all that decides the images of a part and their scores; the states follow from them (`_judged`)."""
    return digest_json(
        {
            "version": 1,
            "rows": part.to_pydict(),
            "generator": denoiser_of(config).digest,
            "sample": config.sample.model_dump(mode="json"),
            "judge": run.record("early")["digest"],
        }
    )


def _judge(run: RunFolder, config: CompareConfig) -> Judge:
    """The early classifiers of all seeds: the mean of their probabilities."""
    train = images_of(config.data).train
    models = early_classifiers(run, config)

    def probabilities(images: np.ndarray) -> np.ndarray:
        batch = LabeledImages(images, np.zeros(len(images), np.int64), train.class_names, "a part")
        return np.mean([torch.from_numpy(logits_of(m, batch)).softmax(1).numpy() for m in models], 0)

    return probabilities


def retrain_arm(run: RunFolder, config: CompareConfig, arm_name: str, optimizer: str) -> None:
    """Train one arm with one optimizer for all seeds, from fresh weights, and measure the test error once."""
    arm = parse_arm(arm_name)
    splits = images_of(config.data)
    fit_config = _fit_config(config, optimizer)
    folder = run.path / "retrained" / f"{arm_name}-{optimizer}"
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
    if stage.is_done():
        return
    outputs: list[Path] = []
    facts: dict[str, Any] = {}
    with stage.making(outputs, facts):
        models = new_classifiers(config, splits.train)
        begin = time.perf_counter()
        histories = _fit_all(models, data, rows, fit_config, config, f"{arm_name} {optimizer}", folder, steps)
        seconds = time.perf_counter() - begin
        errors = []
        for number, model in enumerate(models):
            errors.append(error_rate(logits_of(model, splits.test), splits.test.labels))
            save_model(folder / f"seed-{number}.safetensors", model)
            outputs.append(folder / f"seed-{number}.safetensors")
        write_json(folder / "config.json", inputs)
        outputs.append(folder / "config.json")
        facts["errors"] = errors
        facts["images_added"] = [len(r) - len(splits.train) for r in rows]
        facts["denoiser_calls"] = [
            len(selected(run, arm.method, number)) * sum(config.levels(arm)) * _calls_a_step(config)
            for number in range(config.seeds)
        ]
        facts["steps"] = steps
        facts["seconds"] = seconds / config.seeds
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
    usable = table.filter(pc.equal(table["state"], "ok"))
    if usable.num_rows == 0:
        raise ValueError(f"none of the {table.num_rows} images in {folder.path} is ok; look at their states and scores")
    tokens += [digest_bytes(image["bytes"]) for image in usable["image"].to_pylist()]
    return concat(train, folder.images(usable)), Pool.of(len(train), usable), tokens


def _check_made(run: RunFolder, config: CompareConfig, arms: set[str], table: pa.Table) -> None:
    """Refuse a synthetic data set of other settings: an image that was never made must not pass for a bad one."""
    keys = (table[name].to_pylist() for name in ("source_index", "level_steps", "variant", "level_grid"))
    made = set(zip(*keys, strict=True))
    for arm in map(parse_arm, arms):
        for number in range(config.seeds if arm.kind == "synthetic" else 0):
            wanted = requests(selected(run, arm.method, number), config.levels(arm))
            missing = sum((r.source_index, r.steps, r.variant, config.sample.grid) not in made for r in wanted)
            if missing:
                raise ValueError(
                    f"{run.path / 'synthetic'} was made with other settings: {missing} of {len(wanted)} images of arm "
                    f"{arm.name}, seed {number}, are not in it; run `slowlane generate` first"
                )


def _calls_a_step(config: CompareConfig) -> int:
    return 2 if config.sample.guidance_scale != 1 else 1
