"""The stages that make images: the parts of a synthetic data set, then its manifest. No Prefect in here."""

import dataclasses
import errno
import functools
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from rich.filesize import decimal

from latebloom.data.store import (
    as_path,
    digest_file,
    digest_json,
    is_remote,
    local_folder,
    read_table,
    write_json,
)
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import Partial, RunFolder, measured
from latebloom.flows.run.progress import say, warn
from latebloom.flows.stages.loaders import clip_prompts, generator_of, images_of, scorers_of
from latebloom.flows.stages.planning import batch_sizes, distinct_prompts, generator_config, read_plan
from latebloom.synth.generate import describe, draw
from latebloom.synth.generators.load import generator_folder
from latebloom.synth.prompts import names_of
from latebloom.synth.scoring.clip import clip_digest, safety_digest
from latebloom.synth.scoring.quality import Scores, duplicate_distances, states

__all__ = [
    "PartsToMake",
    "check_failures",
    "check_made",
    "check_space",
    "finish_synthetic",
    "make_one_part",
    "open_parts",
    "part_keys",
    "parts_left",
]


@dataclasses.dataclass(frozen=True)
class PartsToMake:
    """What is left of a synthetic data set: part numbers, all its images, and those already there."""

    parts: list[int]
    images: int
    images_done: int


def open_parts(run: RunFolder, config: CompareConfig) -> PartsToMake:
    """Which parts of the synthetic data set are still to be made: missing, damaged, or of another plan."""
    plan = read_plan(run)
    folder = SyntheticFolder(run.path / "synthetic")
    parts = part_keys(run, config)
    kept = {n: folder.kept_part(n, key) for n, key in enumerate(parts)}
    todo = [n for n, record in kept.items() if record is None or record["failures"]]
    done = sum(record["rows"] for record in kept.values() if record and not record["failures"])
    said = f"generate: {done:,} of {plan.num_rows:,} images done before, {len(todo)} of {len(parts)} parts to make"
    if todo:
        # What is there is no data set any more until the last part is.
        (folder.path / "manifest.json").unlink(missing_ok=True)
        if spare := folder.set_aside(_made(run, config), [n for n, record in kept.items() if record]):
            said += f"; {spare:,} images of an earlier plan are used again where they fit"
    say(said)
    return PartsToMake(todo, plan.num_rows, done)


def parts_left(run: RunFolder, config: CompareConfig, numbers: list[int]) -> PartsToMake:
    """The same of some parts only. Nothing is set aside: that is done where the whole job is.

    Raises:
        ValueError: there is no such part.
    """
    parts = _parts(read_plan(run), config)
    beyond = [number for number in numbers if not 0 <= number < len(parts)]
    if beyond:
        raise ValueError(f"{run.path} has parts 0 to {len(parts) - 1}, not {beyond[0]}")
    folder = SyntheticFolder(run.path / "synthetic")
    kept = {number: folder.kept_part(number, _part_key(run, config, parts[number])) for number in numbers}
    todo = [number for number, record in kept.items() if record is None or record["failures"]]
    images = {number: parts[number].num_rows for number in numbers}
    return PartsToMake(todo, sum(images.values()), sum(images[number] for number in numbers if number not in todo))


def part_keys(run: RunFolder, config: CompareConfig) -> list[str]:
    """Under which key `SyntheticFolder.kept_part` finds each part of the plan."""
    return [_part_key(run, config, part) for part in _parts(read_plan(run), config)]


def check_space(run: RunFolder, config: CompareConfig, number: int) -> None:
    """Raise OSError where the disk has no room for a part, before the device spends minutes on it."""
    if is_remote(run.path):
        return  # storage has no end that could be asked for
    forecast = run.record("plan")["facts"]["forecast"]
    wanted = 1.5 * forecast["bytes"] / max(1, forecast["images"]) * _parts(read_plan(run), config)[number].num_rows
    free = shutil.disk_usage(run.path).free
    if free < wanted:
        raise OSError(
            errno.ENOSPC,
            f"no room for the next part: it needs about {decimal(round(wanted))}, {decimal(free)} are free",
            str(run.path),
        )


def check_failures(run: RunFolder, config: CompareConfig, failed: dict[str, str]) -> None:
    """Keep what failed in synthetic/failures.json, by item id or part, beside what was made.

    Raises:
        Partial: anything did, unless images that fail are to be left out and no whole part did.
    """
    file = run.path / "synthetic" / "failures.json"
    file.unlink(missing_ok=True)
    if failed:
        write_json(file, failed)
        name, error = next(iter(failed.items()))
        words = f"{len(failed)} images or parts could not be made, listed in {file}; the first is {name}: "
        words += error.partition("\n")[0]
        if not config.generate.leave_out_failed or any(name.startswith("part ") for name in failed):
            raise Partial(words)
        warn(f"{words}; the data set is finished without them")


def make_one_part(
    run: RunFolder, config: CompareConfig, number: int, on_images: Callable[[int], None]
) -> dict[str, Any]:
    """Make one part of the synthetic data set, or what is missing of it; its record.

    Args:
        on_images: told the number of images finished, after each batch.
    """
    plan = read_plan(run)
    part = _parts(plan, config)[number]
    key, made = _part_key(run, config, part), _made(run, config)
    train = images_of(config).train
    folder = SyntheticFolder(run.path / "synthetic")
    kept = folder.kept_part(number, key)
    known = folder.spare(made, part["item_id"].to_pylist())
    if kept:
        known = pa.concat_tables([known, read_table(folder.part_path(number)).replace_schema_metadata()])
    with measured() as cost:
        # First of all: they look at every real image, and one that has become unreadable must not cost what is drawn.
        scorers = scorers_of(run, config)
        generator = generator_of(config)
        if generator.digest != run.record("plan")["facts"]["generator"]["digest"]:
            raise ValueError(
                f"generator {generator.name} is not the one that was planned: its weights, settings or device changed; "
                "run `latebloom plan` again"
            )
        generator.prepare(distinct_prompts(plan))
        drawn = draw(generator, train, part, config.sizes, batch_sizes(run, config, generator), on_images, known=known)
        # All of the part at once, also what was there: its scores must not tell when it was made.
        rows = describe(generator, train, part, drawn, config.quality, scorers)
    already = folder.kept_part(number, key)
    if already and not already["failures"]:
        return already  # a worker that was taken for lost, or this one, was: the data set may be finished by now
    if kept:
        cost["seconds"] += kept["cost"].get("seconds", 0)
    names = part["item_id"].to_pylist()
    failures = {names[row]: error for row, error in sorted(drawn.failures.items())}
    return folder.write_part(number, rows, train.class_names, key, cost, failures, made)


def finish_synthetic(run: RunFolder, config: CompareConfig) -> str:
    """Write the manifest over all parts; its digest."""
    plan = read_plan(run)
    train = images_of(config).train
    folder = SyntheticFolder(run.path / "synthetic")
    keys = part_keys(run, config)
    records = []
    for number, key in enumerate(keys):
        record = folder.kept_part(number, key)
        if record is None or (record["failures"] and not config.generate.leave_out_failed):
            raise ValueError(f"part {number} of {folder.path} is not made yet, or of other settings; generate first")
        records.append(record)
    records = _judged(folder, keys, records, config, train.class_names)
    left_out = [item for record in records for item in record["failures"]]
    about = {**_about(run, config), "left_out": left_out}
    digest = folder.write_manifest(about, train.class_names, records)
    if not left_out:
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


def _about(run: RunFolder, config: CompareConfig) -> dict[str, Any]:
    """What the manifest says that a data set was made from."""
    train = images_of(config).train
    facts = run.record("plan")["facts"]
    return {
        "plan": digest_json(read_plan(run).to_pydict()),
        "data": train.digest,
        "generator": facts["generator"]["name"],
        "generator_digest": facts["generator"]["digest"],
        "generator_licence": facts["generator"]["licence"],
        "sample": config.sample.model_dump(mode="json"),
        "sizes": config.sizes.model_dump(mode="json"),
        "templates": facts["templates"],
        "negative_prompt": config.prompts.negative,
        "names": list(names_of(config.prompts, train.class_names)),
        "quality": config.quality.model_dump(mode="json"),
        "scorers": _scorers_key(run, config),
        "seed": config.seed,
    }


def check_made(run: RunFolder, config: CompareConfig) -> None:
    """Refuse to train on, or to report of, a synthetic data set as if it had been made as the config asks.

    Raises:
        ValueError: it was made with other settings, or there is none; the message names what differs.
    """
    folder = SyntheticFolder(run.path / "synthetic")
    made, asked = folder.manifest()["about"], _about(run, config)
    differ = [name for name in asked if json.loads(json.dumps(asked[name])) != made.get(name)]
    planned = run.record("plan")["facts"]["generator"]
    if planned["config"] != generator_config(config) and generator_of(config).digest != planned["digest"]:
        differ.append("generate")
    if differ:
        remedy = "latebloom filter" if differ == ["quality"] else "latebloom generate"
        raise ValueError(
            f"{folder.path} was made with other settings ({', '.join(differ)}) than are asked for now; run `{remedy}` "
            "first, or take those settings back"
        )


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
        result.append(
            folder.write_part(
                number, part, class_names, keys[number], record["cost"], record["failures"], record["made"]
            )
        )
    return result


def _parts(plan: pa.Table, config: CompareConfig) -> list[pa.Table]:
    size = config.plan.part_size
    return [plan.slice(start, size) for start in range(0, plan.num_rows, size)]


def _made(run: RunFolder, config: CompareConfig) -> str:
    """Digest of what decides an image beside its own row of the plan."""
    return digest_json(
        {
            "version": 2,
            "generator": run.record("plan")["facts"]["generator"]["digest"],
            "sample": config.sample.model_dump(mode="json"),
            "sizes": config.sizes.model_dump(mode="json"),
        }
    )


def _part_key(run: RunFolder, config: CompareConfig, part: pa.Table) -> str:
    """Digest of all that decides the images of a part and their scores; the states follow from them (`_judged`)."""
    return digest_json({"made": _made(run, config), "rows": part.to_pydict(), "scorers": _scorers_key(run, config)})


def _scorers_key(run: RunFolder, config: CompareConfig) -> dict[str, str]:
    """Digests of all who score images; empty for those that do not."""
    judge = config.scores.judge
    return {
        "judge": digest_file(as_path(judge)) if judge else run.record("early")["digest"],
        **_named_scorer_digests(config),
    }


@functools.lru_cache(maxsize=1)
def _named_scorer_digests(config: CompareConfig) -> dict[str, str]:
    """Of the CLIP model and the safety checker that a config names, read once a process."""
    clip = safety = ""
    if config.scores.clip:
        clip = clip_digest(local_folder(as_path(config.scores.clip)), clip_prompts(config))
    if config.scores.safety:
        safety = safety_digest(generator_folder(config.generate.generator, config.generate.revision))
    return {"clip": clip, "safety": safety}
