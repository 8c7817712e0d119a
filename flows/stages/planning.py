"""What will be made, and what it costs: the plan of a synthetic data set. No Prefect in here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch
from rich.filesize import decimal

from latebloom.data.images import LabeledImages
from latebloom.data.store import atomic_path, read_table, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import Cost, RunFolder
from latebloom.flows.run.progress import duration, say, warn
from latebloom.flows.run.records import PLAN, GeneratorFacts, PlanFacts
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.known_generator import Known, known_generator, remember_generator
from latebloom.flows.stages.loaders import device_of, generator_of
from latebloom.flows.stages.usable import unusable, warning_of_trial
from latebloom.synth.config import PromptConfig
from latebloom.synth.generate import UnusableGenerator
from latebloom.synth.generators.find import kind_of
from latebloom.synth.memory import BatchSizes
from latebloom.synth.plan import Forecast, forecast, make_plan, requests
from latebloom.synth.probe import probe
from latebloom.synth.prompts import names_of, prompt_of
from latebloom.synth.sampling.denoiser import Generator

__all__ = ["batch_sizes", "distinct_prompts", "generator_config", "generator_processes", "plan_images"]


_SIZES = pydantic.TypeAdapter(dict[str, dict[str, pydantic.PositiveInt]])


def generator_processes(config: CompareConfig) -> int:
    """How many processes generate: as many as asked for, or one a GPU, or one."""
    gpus = torch.cuda.device_count() if device_of(config.device).type == "cuda" else 0
    return config.generate.processes or max(1, gpus)


def plan_images(folder: RunFolder, config: CompareConfig) -> None:
    """Write plan.parquet: one row per image that any arm of any seed wants. Forecast its cost from a short probe."""
    run = RunContext(folder, config)
    train = run.splits.train
    known = known_generator(folder, config, train)
    generates = known or Known.of(generator_of(config), train)
    wants = [(arm.method, config.levels(arm)) for arm in config.parsed_arms if arm.kind == "synthetic"]
    prompts = _prompts(config)
    names = names_of(prompts, train.class_names)
    inputs: dict[str, Any] = {
        "selection": run.select.digest,
        "wants": wants,
        "sample": config.sample.model_dump(mode="json"),
        "sizes": config.sizes.model_dump(mode="json"),
        "templates": prompts.templates,
        "names": names,
        "generator": generates.digest,
        "labels": generates.labels,
        "seed": config.seed,
    }
    stage = folder.stage(PLAN, 3, inputs)  # without the names of images: a file renamed is no other plan
    if not known:
        remember_generator(folder, config, train, generates)
    if before := stage.done():
        if _renamed(run, train):
            stage.finish([run.path / "plan.parquet"], before.facts, Cost(before.seconds, before.peak_memory_mb))
            say("plan: done before; images are called otherwise now, and nothing else is new")
        else:
            say("plan: done before")
        return
    _tell_of_other_seeds(run)
    with stage.making() as outcome:
        wanted = [
            request
            for method, levels in wants
            for number in range(config.seeds)
            for request in requests(run.selected(method, number), levels)
        ]
        generator = generator_of(config)
        plan = make_plan(
            wanted,
            train,
            config.sample.grid,
            config.seed,
            lambda label, seed: prompt_of(prompts, names[label], seed),
            generator_labels=generates.labels,
            whole=config.sizes.returned == "source",
        )
        outcome.outputs.append(_write_plan(run, plan))
        generator.prepare(distinct_prompts(plan))
        try:
            measured = probe(generator, train, plan, config.sizes, batch_sizes(folder, config, generator))
        except UnusableGenerator as error:
            raise unusable(folder, config, error) from None
        if line := warning_of_trial(config.generate, config.device, measured.trial):
            warn(line)
        steps = sorted(set(plan["level_steps"].to_pylist()))
        calls = {step: generator.level(step).calls * generator.calls_a_step for step in steps}
        cost = forecast(
            plan,
            train,
            calls.__getitem__,
            seconds_per_call=measured.seconds_per_call,
            bytes_per_image=measured.bytes_per_image,
            processes=generator_processes(config),
        )
        outcome.facts = PlanFacts(
            forecast=cost,
            calls=calls,
            generator=_generator_facts(generator, train.sha256, config),
            templates=prompts.templates,
        )
    say(_describe(cost))


def _write_plan(run: RunContext, plan: pa.Table) -> Path:
    file = run.path / "plan.parquet"
    with atomic_path(file) as temporary:
        pq.write_table(plan, temporary)
    return file


def _tell_of_other_seeds(run: RunContext) -> None:
    """Say that no image of a plan of an older version fits: its seeds followed from rows."""
    file = run.path / "plan.parquet"
    if file.is_file() and "generator_label" not in read_table(file).column_names:
        say("plan: the plan here is of an older version, with other seeds: all of its images are made anew")


def _renamed(run: RunContext, train: LabeledImages) -> bool:
    """Write the plan again where its references have other names now; whether they have."""
    names = [train.names[source] for source in run.plan["source_index"].to_pylist()]
    if names == run.plan["source_name"].to_pylist():
        return False
    place = run.plan.schema.get_field_index("source_name")
    _write_plan(run, run.plan.set_column(place, "source_name", pa.array(names, pa.string())))
    return True


def _generator_facts(generator: Generator, train: Sequence[str], config: CompareConfig) -> GeneratorFacts:
    """What the plan says of its generator.

    Args:
        train: SHA-256 of the training images.
    """
    known = generator.trained_on
    return GeneratorFacts(
        name=generator.name,
        digest=generator.digest,
        licence=generator.licence,
        trained_on=generator.trained_on_words,
        seen=sum(digest in known for digest in train) if known else None,
        only_these=bool(known) and known <= set(train),
        config=generator_config(config),
    )


def _prompts(config: CompareConfig) -> PromptConfig:
    """DiffuseMix edits by a style, whatever the class; the prompts of the others name the class."""
    if kind_of(config.generate) == "diffusemix":
        return PromptConfig.model_construct(templates=config.diffusemix.prompts)
    return config.prompts


def distinct_prompts(plan: pa.Table) -> list[str]:
    """The prompts of a plan, sorted."""
    return sorted(plan["prompt"].unique().to_pylist())


def _describe(cost: Forecast) -> str:
    """The forecast for people: what will be made, and what it takes."""
    levels = ", ".join(f"{count:,} at {level}" for level, count in cost.per_level.items())
    fewest, most = min(cost.per_class.values()), max(cost.per_class.values())
    return (
        f"plan: {cost.images:,} images ({levels}; {fewest:,} to {most:,} a class), "
        f"{cost.denoiser_calls:,} denoiser calls, "
        f"about {duration(cost.seconds)} on this device and {decimal(cost.bytes)}"
    )


def batch_sizes(run: RunFolder, config: CompareConfig, generator: Generator) -> BatchSizes:
    """The batch sizes that fitted this generator on this kind of device before."""
    file = run.path / "batch_sizes.json"
    device = torch.cuda.get_device_name() if generator.device.type == "cuda" else "cpu"
    key = f"{device} {generator.digest[:16]}"

    def remember(sizes: dict[str, int]) -> None:
        say(f"generate: out of memory; batches of {', '.join(f'{n} to {what}' for what, n in sizes.items())}")
        write_json(file, {**_read_sizes(file), key: sizes})

    known = _read_sizes(file).get(key)
    return BatchSizes(config.generate.batch_size, known, remember, config.sample.deterministic)


def _read_sizes(file: Path) -> dict[str, dict[str, int]]:
    """What batch_sizes.json says; it only saves time, so a damaged one is removed and nothing is lost."""
    try:
        return _SIZES.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        say(f"generate: {file} was damaged and is removed; which batches fit is measured again")
        file.unlink(missing_ok=True)
        return {}


def generator_config(config: CompareConfig) -> dict[str, Any]:
    """The settings that name a generator, as they were asked for; those that change no image are not among them."""
    others = {"batch_size", "processes", "compile", "fuse_qkv", "leave_out_failed"}
    return config.generate.model_dump(mode="json", exclude=others)
