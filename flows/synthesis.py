"""The stages that make images: plan, parts, manifest. No Prefect in here."""

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch
from rich.filesize import decimal

from data.store import as_path, atomic_path, digest_file, digest_json, is_remote, read_table, write_json
from data.synthetic import SyntheticFolder
from flows.config import CompareConfig
from flows.inputs import device_of, generator_of, images_of, named_scorers, scorers_of, selected
from flows.progress import duration, say
from flows.run import Partial, RunFolder, measured
from synth.denoiser import Generator
from synth.generate import describe, draw, probe
from synth.load import kind_of
from synth.memory import BatchSizes
from synth.plan import PLAN_SCHEMA, Forecast, forecast, make_plan, requests
from synth.prompts import PromptConfig, names_of, prompt_of
from synth.quality import Scores, duplicate_distances, states

__all__ = [
    "PartsToMake",
    "check_failures",
    "check_space",
    "finish_synthetic",
    "generator_processes",
    "make_one_part",
    "open_parts",
    "plan_images",
]

_SIZES = pydantic.TypeAdapter(dict[str, dict[str, pydantic.PositiveInt]])


def generator_processes(config: CompareConfig) -> int:
    """How many processes generate: as many as asked for, or one a GPU, or one."""
    gpus = torch.cuda.device_count() if device_of(config.device).type == "cuda" else 0
    return config.generate.processes or max(1, gpus)


def plan_images(run: RunFolder, config: CompareConfig) -> None:
    """Write plan.parquet: one row per image that any arm of any seed wants. Forecast its cost from a short probe."""
    train = images_of(config.data).train
    generator = generator_of(config)
    wants = [(arm.method, config.levels(arm)) for arm in config.parsed_arms if arm.kind == "synthetic"]
    prompts = _prompts(config)
    names = names_of(prompts, train.class_names)
    inputs: dict[str, Any] = {
        "selection": run.record("select")["digest"],
        "wants": wants,
        "sample": config.sample.model_dump(mode="json"),
        "sizes": config.sizes.model_dump(mode="json"),
        "templates": prompts.templates,
        "names": names,
        "generator": generator.digest,
        "seed": config.seed,
    }
    stage = run.stage("plan", 2, inputs)
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
        plan = make_plan(
            wanted,
            train,
            config.sample.grid,
            config.seed,
            lambda label, seed: prompt_of(prompts, names[label], seed),
        )
        with atomic_path(file) as temporary:
            pq.write_table(plan, temporary)
        generator.prepare(_distinct_prompts(plan))
        measured = probe(generator, train, plan, config.sizes, _batch_sizes(run, config, generator))
        levels = {steps: generator.level(steps) for steps in sorted(set(plan["level_steps"].to_pylist()))}
        calls = {steps: level.calls * generator.calls_a_step for steps, level in levels.items()}
        cost = forecast(
            plan,
            train,
            calls.__getitem__,
            seconds_per_call=measured.seconds_per_call,
            bytes_per_image=measured.bytes_per_image,
            processes=generator_processes(config),
        )
        facts["forecast"] = vars(cost)
        facts["calls"] = {str(steps): count for steps, count in calls.items()}
        facts["generator"] = {
            "name": generator.name,
            "digest": generator.digest,
            "licence": generator.licence,
            "trained_on": generator.trained_on_words,
        }
    say(_describe(cost))


def _prompts(config: CompareConfig) -> PromptConfig:
    """DiffuseMix edits by a style, whatever the class; the others are told the class."""
    if kind_of(config.generate) == "diffusemix":
        return PromptConfig.model_construct(templates=config.diffusemix.prompts)
    return config.prompts


def _distinct_prompts(plan: pa.Table) -> list[str]:
    return sorted(set(plan["prompt"].to_pylist()))


def _describe(cost: Forecast) -> str:
    """The forecast for people: what will be made, and what it takes."""
    levels = ", ".join(f"{count:,} at {level}" for level, count in cost.per_level.items())
    fewest, most = min(cost.per_class.values()), max(cost.per_class.values())
    return (
        f"plan: {cost.images:,} images ({levels}; {fewest:,} to {most:,} a class), "
        f"{cost.denoiser_calls:,} denoiser calls, "
        f"about {duration(cost.seconds)} on this device and {decimal(cost.bytes)}"
    )


def _batch_sizes(run: RunFolder, config: CompareConfig, generator: Generator) -> BatchSizes:
    """The batch sizes that fitted this generator on this kind of device before."""
    file = run.path / "batch_sizes.json"
    device = torch.cuda.get_device_name() if generator.device.type == "cuda" else "cpu"
    key = f"{device} {generator.digest[:16]}"

    def remember(sizes: dict[str, int]) -> None:
        say(f"generate: out of memory; batches of {', '.join(f'{n} to {what}' for what, n in sizes.items())}")
        write_json(file, {**_read_sizes(file), key: sizes})

    return BatchSizes(config.generate.batch_size, _read_sizes(file).get(key), remember)


def _read_sizes(file: Path) -> dict[str, dict[str, int]]:
    """What batch_sizes.json says; it only saves time, so a damaged one is removed and nothing is lost."""
    try:
        return _SIZES.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        say(f"generate: {file} was damaged and is removed; which batches fit is found out again")
        file.unlink(missing_ok=True)
        return {}


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
    kept = [folder.kept_part(n, _part_key(run, config, part)) for n, part in enumerate(parts)]
    todo = [n for n, record in enumerate(kept) if record is None or record["failures"]]
    if todo:
        # What is there is no data set any more until the last part is.
        (folder.path / "manifest.json").unlink(missing_ok=True)
    say(f"generate: {len(parts) - len(todo)} of {len(parts)} parts done before")
    return PartsToMake(todo, plan.num_rows, sum(record["rows"] for record in kept if record))


def check_space(run: RunFolder, config: CompareConfig, number: int) -> None:
    """Raise OSError where the disk has no room for a part, before the device spends minutes on it."""
    if is_remote(run.path):
        return  # storage has no end that could be asked for
    forecast = run.record("plan")["facts"]["forecast"]
    wanted = 1.5 * forecast["bytes"] / max(1, forecast["images"]) * _parts(_read_plan(run), config)[number].num_rows
    free = shutil.disk_usage(run.path).free
    if free < wanted:
        raise OSError(
            errno.ENOSPC,
            f"no room for the next part: it needs about {decimal(round(wanted))}, {decimal(free)} are free",
            str(run.path),
        )


def check_failures(run: RunFolder, failed: dict[str, str]) -> None:
    """Keep what failed in synthetic/failures.json, by item id or part, beside what was made.

    Raises:
        Partial: anything did.
    """
    file = run.path / "synthetic" / "failures.json"
    file.unlink(missing_ok=True)
    if failed:
        write_json(file, failed)
        name, error = next(iter(failed.items()))
        raise Partial(f"{len(failed)} could not be made, listed in {file}; the first is {name}: {error}")


def make_one_part(
    run: RunFolder, config: CompareConfig, number: int, on_images: Callable[[int], None]
) -> dict[str, Any]:
    """Make one part of the synthetic data set, or what is missing of it; its record.

    Args:
        on_images: told the number of images finished, after each batch.
    """
    part = _parts(_read_plan(run), config)[number]
    key = _part_key(run, config, part)
    train = images_of(config.data).train
    folder = SyntheticFolder(run.path / "synthetic")
    kept = folder.kept_part(number, key)
    before = read_table(folder.part_path(number)) if kept else None
    done = set(before["item_id"].to_pylist()) if before else set()
    todo = part.filter(pa.array([name not in done for name in part["item_id"].to_pylist()]))
    with measured() as cost:
        # First of all: they look at every real image, and one that has become unreadable must not cost what is drawn.
        scorers = scorers_of(run, config)
        generator = generator_of(config)
        generator.prepare(_distinct_prompts(_read_plan(run)))
        drawn = draw(generator, train, todo, config.sizes, _batch_sizes(run, config, generator), on_images)
        rows = describe(generator, train, todo, drawn, config.quality, scorers)
    if before:
        place = {name: n for n, name in enumerate(part["item_id"].to_pylist())}
        rows = pa.concat_tables([before.replace_schema_metadata(), rows])
        rows = rows.take(np.argsort([place[name] for name in rows["item_id"].to_pylist()]))
    names = todo["item_id"].to_pylist()
    failures = {names[row]: error for row, error in sorted(drawn.failures.items())}
    return folder.write_part(number, rows, train.class_names, key, cost, failures)


def finish_synthetic(run: RunFolder, config: CompareConfig) -> str:
    """Write the manifest over all parts; its digest."""
    plan = _read_plan(run)
    train = images_of(config.data).train
    generator = run.record("plan")["facts"]["generator"]
    folder = SyntheticFolder(run.path / "synthetic")
    keys = [_part_key(run, config, part) for part in _parts(plan, config)]
    records = []
    for number, key in enumerate(keys):
        record = folder.finished_part(number, key)
        if record is None:
            raise ValueError(f"part {number} of {folder.path} is not made yet, or of other settings; generate first")
        records.append(record)
    records = _judged(folder, keys, records, config, train.class_names)
    clip = named_scorers(config)[1]
    about = {
        "plan": digest_json(plan.to_pydict()),
        "data": train.digest,
        "generator": generator["name"],
        "generator_digest": generator["digest"],
        "generator_licence": generator["licence"],
        "sample": config.sample.model_dump(mode="json"),
        "sizes": config.sizes.model_dump(mode="json"),
        "templates": _prompts(config).templates,
        "negative_prompt": config.prompts.negative,
        "names": names_of(config.prompts, train.class_names),
        "quality": config.quality.model_dump(mode="json"),
        "judge": _judge_digest(run, config),
        "clip": clip.digest if clip else "",
        "seed": config.seed,
    }
    digest = folder.write_manifest(about, train.class_names, records)
    (folder.path / "failures.json").unlink(missing_ok=True)  # nothing is missing any more
    costs = [record["cost"] for record in records]
    cost = {
        "seconds": round(sum(cost["seconds"] for cost in costs), 3),
        "peak_memory_mb": max((cost["peak_memory_mb"] for cost in costs), default=0.0),
    }
    calls = run.record("plan")["facts"]["calls"]
    facts = {"denoiser_calls": sum(calls[str(steps)] for steps in plan["level_steps"].to_pylist()), "digest": digest}
    stage = run.stage("generate", 2, {"digest": digest})
    if not stage.is_done():
        stage.finish([folder.path / "manifest.json"], facts, cost)
    return digest


def _judged(
    folder: SyntheticFolder,
    keys: list[str],
    records: list[dict[str, Any]],
    config: CompareConfig,
    class_names: tuple[str, ...],
) -> list[dict[str, Any]]:
    """The records of the parts when their states follow the thresholds of now; written again where one moves."""
    names = [field.name for field in dataclasses.fields(Scores)]
    columns = [*names, "fingerprint", "label", "state"]
    tables = [read_table(folder.part_path(number), columns=columns) for number in range(len(records))]
    table = pa.concat_tables(tables) if tables else None
    if table is None:
        return records
    scores = Scores(**{name: table[name].to_numpy() for name in names})
    distances = np.full(table.num_rows, np.nan)
    if config.quality.min_duplicate_distance > 0:
        # Among those that all else leaves usable: none is dropped for being like one that is dropped itself.
        alone = config.quality.model_copy(update={"min_duplicate_distance": 0})
        usable = np.array(states(scores, alone)) == "ok"
        prints = np.frombuffer(b"".join(table["fingerprint"].to_pylist()), np.uint8).reshape(len(usable), -1)
        distances = duplicate_distances(prints, table["label"].to_numpy(), usable)
    scores = dataclasses.replace(scores, duplicate_distance=distances)
    now = states(scores, config.quality)
    result, start = [], 0
    for number, (record, before) in enumerate(zip(records, tables, strict=True)):
        rows = slice(start, start + before.num_rows)
        start += before.num_rows
        moved = {"state": pa.array(now[rows], pa.string()), "duplicate_distance": scores.duplicate_distance[rows]}
        same = now[rows] == before["state"].to_pylist() and np.array_equal(
            moved["duplicate_distance"], before["duplicate_distance"].to_numpy(), equal_nan=True
        )
        if same:
            result.append(record)
            continue
        (folder.path / "manifest.json").unlink(missing_ok=True)  # the data set it tells of is going
        part = read_table(folder.part_path(number))
        for name, values in moved.items():
            part = part.set_column(part.schema.get_field_index(name), name, pa.array(values))
        result.append(folder.write_part(number, part, class_names, keys[number], record["cost"]))
    return result


def _read_plan(run: RunFolder) -> pa.Table:
    run.record("plan")
    return read_table(run.path / "plan.parquet", schema=PLAN_SCHEMA)


def _parts(plan: pa.Table, config: CompareConfig) -> list[pa.Table]:
    size = config.plan.part_size
    return [plan.slice(start, size) for start in range(0, plan.num_rows, size)]


def _part_key(run: RunFolder, config: CompareConfig, part: pa.Table) -> str:
    """Digest of all that decides the images of a part and their scores; the states follow from them (`_judged`)."""
    scorers: dict[str, Any] = {"judge": _judge_digest(run, config), "safety": config.scores.safety}
    clip = named_scorers(config)[1]
    if clip:
        scorers["clip"] = clip.digest
    return digest_json(
        {
            "version": 2,
            "rows": part.to_pydict(),
            "generator": run.record("plan")["facts"]["generator"]["digest"],
            "sample": config.sample.model_dump(mode="json"),
            "sizes": config.sizes.model_dump(mode="json"),
            "scorers": scorers,
        }
    )


def _judge_digest(run: RunFolder, config: CompareConfig) -> str:
    if config.scores.judge:
        return digest_file(as_path(config.scores.judge))
    return run.record("early")["digest"]
