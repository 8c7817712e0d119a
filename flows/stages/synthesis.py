"""The stages that make images: the parts of a synthetic data set, then its manifest. No Prefect in here."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latebloom.data.names import listed
from latebloom.data.store import check_space, is_remote, read_table, write_json
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA, PartRecord
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import Cost, Partial, RunFolder, measured
from latebloom.flows.run.progress import say, warn
from latebloom.flows.run.records import GENERATE, GenerateFacts
from latebloom.flows.stages.context import RunContext, kept_context
from latebloom.flows.stages.dropped import columns_of_filter, quartiles, quartiles_in_words, warnings
from latebloom.flows.stages.loaders import generator_of
from latebloom.flows.stages.planning import batch_sizes, distinct_prompts, generator_config
from latebloom.flows.stages.thresholds import as_of_now
from latebloom.flows.stages.usable import unusable, warning_of_unusable
from latebloom.synth.generate import UnusableGenerator, describe, draw, drawn_rows, drawn_seeds, kept_where_ended
from latebloom.synth.generators.classes import mapping_of
from latebloom.synth.prompts import names_of

__all__ = [
    "PartsToMake",
    "check_failures",
    "check_images",
    "check_made",
    "finish_synthetic",
    "make_one_part",
    "open_parts",
    "part_keys",
    "parts_left",
    "warn_of_unusable",
]

_LISTED = 10  # reasons for which images could not be made that are shown


@dataclasses.dataclass(frozen=True)
class PartsToMake:
    """What is left of a synthetic data set: part numbers, all its images, and those already there."""

    parts: list[int]
    images: int
    images_done: int


def open_parts(folder: RunFolder, config: CompareConfig) -> PartsToMake:
    """Which parts of the synthetic data set are still to be made: missing, damaged, or of another plan.

    Images of an earlier plan go into the cache, from which the parts take what fits.
    """
    run = kept_context(folder, config)
    run.look_again()
    todo, kept, images_done = _state_of(run, list(range(len(run.parts))))
    line = f"generate: {images_done:,} of {run.plan.num_rows:,} images done before, {len(todo)} of {len(run.parts)} "
    line += "parts to make"
    if todo:
        # What is there is no data set any more until the last part is.
        (run.synthetic.path / "manifest.json").unlink(missing_ok=True)
        if cached := run.synthetic.cache_parts(run.made, kept):
            line += f"; {cached:,} images made before are used again where they fit"
    say(line)
    return PartsToMake(todo, run.plan.num_rows, images_done)


def parts_left(folder: RunFolder, config: CompareConfig, numbers: list[int]) -> PartsToMake:
    """The same of some parts only. Nothing goes into the cache: that is done where the whole job is.

    Raises:
        ValueError: there is no such part.
    """
    run = kept_context(folder, config)
    run.look_again()
    beyond = [number for number in numbers if not 0 <= number < len(run.parts)]
    if beyond:
        raise ValueError(
            f"part {beyond[0]} was asked for, but {run.path} has parts 0 to {len(run.parts) - 1}; ask for one of these"
        )
    todo, _, images_done = _state_of(run, numbers)
    return PartsToMake(todo, sum(run.parts[number].num_rows for number in numbers), images_done)


def _state_of(run: RunContext, numbers: list[int]) -> tuple[list[int], list[int], int]:
    """Of some parts: those to be made, those with a record, and how many images are finished."""
    records = {number: run.synthetic.kept_part(number, run.part_key(number)) for number in numbers}
    finished = {number: record.rows for number, record in records.items() if record and not record.failures}
    todo = [number for number in numbers if number not in finished]
    return todo, [number for number, record in records.items() if record], sum(finished.values())


def part_keys(folder: RunFolder, config: CompareConfig) -> list[str]:
    """Under which key `SyntheticFolder.kept_part` finds each part of the plan."""
    run = kept_context(folder, config)
    return [run.part_key(number) for number in range(len(run.parts))]


def make_one_part(
    folder: RunFolder, config: CompareConfig, number: int, on_images: Callable[[float], None]
) -> PartRecord:
    """Make one part of the synthetic data set, or what is missing of it.

    Args:
        on_images: gets how many images were added, after each denoiser step, as `draw` counts them.

    Raises:
        OSError: the disk has no room for it.
        Unusable: the generator makes nothing that can be used.
        ValueError: the generator is not the one that was planned.
    """
    run = kept_context(folder, config)
    part, key, train = run.parts[number], run.part_key(number), run.splits.train
    _check_space(run, part.num_rows)
    kept = run.synthetic.kept_part(number, key)
    known = run.synthetic.cached(run.made, drawn_seeds(part))
    if kept:
        known = pa.concat_tables([known, read_table(run.synthetic.part_path(number), schema=SYNTHETIC_SCHEMA)])
    scorers = run.scorers  # first of all: they read every real image, and what is wrong with them shows early
    generator = generator_of(config)
    if generator.digest != run.planned.facts.generator.digest:
        raise ValueError(
            f"generator {generator.name} is not the one that was planned: its weights, settings or device changed; "
            "run `latebloom plan` again"
        )
    generator.prepare(distinct_prompts(run.plan))
    sizes = batch_sizes(folder, config, generator)
    unfinished: list[Path] = []

    def keep(rows: pa.Table) -> None:
        unfinished.append(run.synthetic.keep(run.made, rows))

    with measured() as cost:  # of the images: what a process loads and compiles once is not theirs
        try:
            drawn = draw(generator, train, part, config.sizes, sizes, on_images, known=known, keep=keep, whole=run.plan)
        except UnusableGenerator as error:
            raise unusable(folder, config, error) from None
        with kept_where_ended(part, drawn, keep):
            # All of the part at once, also what was there: its scores must not depend on when it was made.
            rows = describe(generator, train, part, drawn, run.quality, scorers, config.sizes)
    already = run.synthetic.kept_part(number, key)
    if already and not already.failures:
        return already  # a worker that was taken for lost, or this one, was: the data set may be finished by now
    names = part["item_id"].to_pylist()
    failures = {names[row]: error for row, error in sorted(drawn.failures.items())}
    # With these the part is not finished: the next command scores its images by all real ones.
    failures |= {name: f"scores are without this real image: {why}" for name, why in scorers.unreadable.items()}
    with kept_where_ended(part, drawn, keep):
        if unscored := [row for row in drawn.failures if drawn.images[row] is not None]:
            run.synthetic.keep(run.made, drawn_rows(part, drawn, np.array(unscored)))
        record = run.synthetic.write_part(
            number,
            rows,
            train.class_names,
            key,
            made=run.made,
            failures=failures,
            seconds=round(cost.seconds - drawn.first_use, 3) + (kept.seconds if kept else 0),
            peak_memory_mb=cost.peak_memory_mb,
        )
    for file in unfinished:
        file.unlink(missing_ok=True)
    return record


def _check_space(run: RunContext, images: int) -> None:
    """Raise OSError where the disk has no room for so many images, before the device spends minutes on them."""
    if is_remote(run.path):
        return  # storage has no end that could be asked for
    forecast = run.planned.facts.forecast
    check_space(run.path, round(1.5 * forecast.bytes / max(1, forecast.images) * images), "the next part")


def warn_of_unusable(record: PartRecord, config: CompareConfig) -> None:
    """Warn where most images of a part are not finite or flat: a person may end the job and change a setting."""
    if line := warning_of_unusable(record.states, config.generate, config.device):
        warn(line)


def check_failures(folder: RunFolder, config: CompareConfig, failed: dict[str, str]) -> None:
    """Keep what failed in synthetic/failures.json, by item id or part, beside what was made.

    Raises:
        Partial: anything did, unless images that fail are to be left out and no whole part did.
    """
    file = folder.path / "synthetic" / "failures.json"
    file.unlink(missing_ok=True)
    if failed:
        write_json(file, failed)
        by_reason: dict[str, list[str]] = {}
        for name, error in failed.items():
            by_reason.setdefault(error.partition("\n")[0], []).append(name)
        (reason, names), *others = by_reason.items()
        words = f"{len(failed)} images or parts could not be made, listed in {file}; the first is {names[0]}: {reason}"
        for reason, names in others[: _LISTED - 1]:
            say(f"generate: {listed(names, 1)}: {reason}")
        if not config.generate.leave_out_failed or any(name.startswith("part ") for name in failed):
            raise Partial(words)
        warn(f"{words}; the data set is finished without them")


def finish_synthetic(folder: RunFolder, config: CompareConfig) -> str:
    """Write the manifest over all parts; its digest.

    Raises:
        ValueError: a part is not made yet.
    """
    run = kept_context(folder, config)
    class_names = run.splits.train.class_names
    records = [_finished_part(run, number) for number in range(len(run.parts))]
    records = as_of_now(run.synthetic, records, run.quality, run.plan, class_names)
    left_out = [item for record in records for item in record.failures]
    digest = run.synthetic.write_manifest({**_about(run), "left_out": left_out}, class_names, records)
    if not left_out:
        (run.synthetic.path / "failures.json").unlink(missing_ok=True)  # nothing is missing any more
    stage = folder.stage(GENERATE, 2, {"digest": digest})
    if not stage.done():
        calls = sum(run.planned.facts.calls[steps] for steps in run.plan["level_steps"].to_pylist())
        seconds = round(sum(record.seconds for record in records), 3)
        peak = max((record.peak_memory_mb for record in records), default=0.0)
        facts = GenerateFacts(denoiser_calls=calls, digest=digest)
        stage.finish([run.synthetic.path / "manifest.json"], facts, Cost(seconds, peak))
    table = columns_of_filter(run)
    found = quartiles(table, config.train_states)
    if any(quartile.dropped for quartile in found):
        say(f"generate: {quartiles_in_words(found)}")
    for line in warnings(run, table):
        warn(line)
    return digest


def _finished_part(run: RunContext, number: int) -> PartRecord:
    record = run.synthetic.kept_part(number, run.part_key(number))
    if record is None or (record.failures and not run.config.generate.leave_out_failed):
        raise ValueError(
            f"part {number} of {run.synthetic.path} is not made yet, or of other settings; run `latebloom generate` "
            "first"
        )
    return record


def _about(run: RunContext) -> dict[str, Any]:
    """What the manifest says that a data set was made from."""
    config, facts, train = run.config, run.planned.facts, run.splits.train
    return {
        "plan": run.plan_digest,
        "data": train.digest,
        "generator": facts.generator.name,
        "generator_digest": facts.generator.digest,
        "generator_licence": facts.generator.licence,
        "sample": config.sample.model_dump(mode="json"),
        "sizes": config.sizes.model_dump(mode="json"),
        "templates": list(facts.templates),
        "negative_prompt": config.prompts.negative,
        "names": list(names_of(config.prompts, train.class_names)),
        "classes": mapping_of(config.generate.classes),
        "quality": run.quality.model_dump(mode="json"),
        "scorers": run.scorer_digests,
        "seed": config.seed,
    }


def check_images(run: RunContext) -> None:
    """Refuse a synthetic data set of other images than the data have now, since its rows may be those of others.

    Raises:
        ValueError: it was, or there is none.
    """
    if run.synthetic.manifest()["about"]["data"] != run.splits.train.digest:
        raise ValueError(
            f"{run.synthetic.path} was made of other images or classes than {run.config.data.source} has now; run "
            "`latebloom generate` first, which makes only those that are new"
        )


def check_made(run: RunContext) -> None:
    """Refuse to train on, or to report of, a synthetic data set as if it had been made as the config asks.

    Raises:
        ValueError: it was made with other settings, or there is none; the message names what differs.
    """
    made, asked = run.synthetic.manifest()["about"], _about(run)
    differ = [name for name in asked if json.loads(json.dumps(asked[name])) != made.get(name)]
    planned = run.planned.facts.generator
    if planned.config != generator_config(run.config) and generator_of(run.config).digest != planned.digest:
        differ.append("generate")
    if differ:
        remedy = "latebloom filter" if differ == ["quality"] else "latebloom generate"
        raise ValueError(
            f"{run.synthetic.path} was made with other settings ({', '.join(differ)}) than are asked for now; run "
            f"`{remedy}` first, or take those settings back"
        )
