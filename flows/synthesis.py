"""The stages that make images: plan, parts, manifest. No Prefect in here."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data.images import LabeledImages
from data.store import atomic_path, digest_json
from data.synthetic import SyntheticFolder
from flows.config import CompareConfig
from flows.inputs import denoiser_of, early_classifiers, images_of, selected
from flows.progress import Meter, duration, say
from flows.run import RunFolder, measured
from synth.generate import Judge, make_part, probe
from synth.plan import PLAN_SCHEMA, Forecast, forecast, make_plan, requests
from synth.quality import Scores, states
from train.evaluate import logits_of

__all__ = ["PartsToMake", "finish_synthetic", "make_one_part", "open_parts", "plan_images"]


def plan_images(run: RunFolder, config: CompareConfig) -> None:
    """Write plan.parquet: one row per image that any arm of any seed wants. Forecast its cost from a short probe."""
    train = images_of(config.data).train
    denoiser = denoiser_of(config)
    wants = [(arm.method, config.levels(arm)) for arm in config.parsed_arms if arm.kind == "synthetic"]
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
            guided=config.sample.calls_a_step == 2,
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
    calls = int(plan["level_steps"].to_numpy().sum()) * config.sample.calls_a_step
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
