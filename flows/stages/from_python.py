"""A synthetic data set made from Python: images and rows in, a folder out, without a run folder. No Prefect in here."""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import safetensors.torch
from torch import nn

from latebloom.data.images import LabeledImages
from latebloom.data.store import as_path, digest_bytes, digest_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.run.folder import measured
from latebloom.flows.run.progress import meter
from latebloom.flows.stages.loaders import device_of
from latebloom.flows.stages.scorers import scorers_by
from latebloom.flows.stages.thresholds import as_of_now
from latebloom.flows.stages.usable import unusable_in_words
from latebloom.synth.config import (
    GenerateConfig,
    PlanConfig,
    PromptConfig,
    QualityConfig,
    SampleConfig,
    SizeConfig,
)
from latebloom.synth.generate import UnusableGenerator, describe, draw, drawn_seeds, kept_where_ended
from latebloom.synth.generators.find import kind_of
from latebloom.synth.generators.load import load_generator
from latebloom.synth.memory import BatchSizes
from latebloom.synth.plan import deciding, make_plan, requests
from latebloom.synth.prompts import names_of, prompt_of
from latebloom.synth.scoring.quality import check_scorers, without_classifier
from latebloom.synth.sizes import check_channels
from latebloom.train.evaluate import features_of

__all__ = ["synthesize"]


def synthesize(
    images: LabeledImages,
    indices: Sequence[int] | np.ndarray,
    generator: str | GenerateConfig,
    out: str | Path,
    *,
    levels: Sequence[int] = (50,),
    seed: int = 0,
    classifier: nn.Module | None = None,
    sample: SampleConfig = SampleConfig(),
    quality: QualityConfig = QualityConfig(),
    prompts: PromptConfig = PromptConfig(),
    sizes: SizeConfig = SizeConfig(),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    part_size: int = PlanConfig().part_size,
) -> SyntheticFolder:
    """Make variants of some images, and write them as a synthetic data set; a call that was interrupted goes on.

    Args:
        images: the real images, such as `images_from` makes of a torch Dataset.
        indices: rows of `images` to make variants of, such as `select_slow(...).indices`.
        generator: path of a diffusers folder, hub id or name, as the setting generate.generator; or more of it.
        out: the folder of the data set; path or URL. What is there and is made with these arguments is kept.
        levels: of every image one variant at each, in steps of `sample.grid`, 1 to it; one given twice makes two.
        seed: root of the images' own seeds.
        classifier: of these classes, takes float32 (n, C, H, W) in 0..1; scores how much of its label an image shows.
            None: that is not measured, and quality.min_label_ratio is off.
        sample: sampler, grid, solver steps, guidance scale.
        device: of generation; the classifier works where it is.
        part_size: images that are made and kept as a whole.

    Returns:
        The data set; `SyntheticImages(out)` reads it into a training loop.

    Raises:
        ValueError: a row or level that does not exist, or anything the generator or the thresholds refuse.
        RuntimeError: some images could not be made; all others are kept, and the same call tries those again. Or the
            generator makes nothing that can be used.
    """
    if part_size < 1:
        raise ValueError(f"part_size is {part_size}, expected images a part, 1 or more")
    config = GenerateConfig(generator=generator) if isinstance(generator, str) else generator
    kind = kind_of(config)
    if kind == "diffusemix":
        raise ValueError("DiffuseMix edits by prompts of its own; make its images with `latebloom generate`")
    quality = quality if classifier else without_classifier(quality)
    check_scorers(quality, clip=False, safety=False, classifier=classifier is not None)
    made_by = load_generator(config, sample, negative_prompt=prompts.negative, device=device_of(device))
    made_by.check(images.class_names)
    check_channels(images.image_shape[2], made_by.channels)
    if made_by.trained_on and made_by.trained_on <= set(images.sha256):
        warnings.warn(
            f"generator {made_by.name} was trained on these images alone: no gain is to be expected from it; bring one "
            "that was trained on other images too",
            stacklevel=2,
        )
    names = names_of(prompts, images.class_names)
    plan = make_plan(
        requests(np.unique(np.asarray(indices, np.int64)), list(levels)),
        images,
        sample.grid,
        seed,
        lambda label, own: prompt_of(prompts, names[label], own),
        generator_labels=made_by.labels_of(images.class_names),
        whole=sizes.returned == "source",
    )
    weights = _digest(classifier)
    about = {
        "data": images.digest,
        "generator": made_by.name,
        "generator_digest": made_by.digest,
        "generator_licence": made_by.licence,
        "sample": sample.model_dump(mode="json"),
        "sizes": sizes.model_dump(mode="json"),
        "templates": list(prompts.templates),
        "negative_prompt": prompts.negative,
        "names": list(names),
        "quality": quality.model_dump(mode="json"),
        "scorers": {"reference": weights},
        "seed": seed,
    }
    decides = {name: about[name] for name in ("generator_digest", "sample", "sizes", "scorers")}
    # What decides an image beside its own row of the plan.
    kind_made = digest_json({name: about[name] for name in ("generator_digest", "sample", "sizes", "negative_prompt")})
    folder, parts = SyntheticFolder(as_path(str(out))), _parts(plan, part_size)
    keys = [digest_json({**decides, "rows": deciding(part)}) for part in parts]
    kept = [folder.kept_part(number, key) for number, key in enumerate(keys)]
    records = [record if record and not record.failures else None for record in kept]
    if None in records:
        with contextlib.suppress(FileNotFoundError):
            (folder.path / "manifest.json").unlink()  # no data set until all of it is there
        folder.cache_parts(kind_made, [number for number, record in enumerate(records) if record])
        if classifier:
            _check_takes(classifier, images)
        scorers = scorers_by([classifier] if classifier else [], images, kind == "pixel")
        made_by.prepare(sorted(set(plan["prompt"].to_pylist())))
        batch = BatchSizes(config.batch_size, at_once=sample.deterministic)
        done = sum(record.rows for record in records if record)
        with meter("generate", plan.num_rows, "images", done, in_parts=True) as bar:
            for number, part in enumerate(parts):
                if records[number]:
                    continue
                items, unfinished = part["item_id"].to_pylist(), list[Path]()
                # What an interrupted call had drawn of it, or one for other images or rows.
                known = folder.cached(kind_made, drawn_seeds(part))

                def keep(drawn: pa.Table, files: list[Path] = unfinished) -> None:
                    files.append(folder.keep(kind_made, drawn))

                with measured() as cost:
                    try:
                        drawn = draw(made_by, images, part, sizes, batch, bar.add, known=known, keep=keep, whole=plan)
                    except UnusableGenerator as error:
                        raise RuntimeError(unusable_in_words(config, device, error)) from error.__cause__
                    with kept_where_ended(part, drawn, keep):
                        rows = describe(made_by, images, part, drawn, quality, scorers, sizes)
                failures = {items[row]: error for row, error in sorted(drawn.failures.items())}
                failures |= {name: f"scores are without it: {why}" for name, why in scorers.unreadable.items()}
                records[number] = folder.write_part(
                    number,
                    rows,
                    images.class_names,
                    keys[number],
                    failures=failures,
                    made=kind_made,
                    seconds=cost.seconds,
                    peak_memory_mb=cost.peak_memory_mb,
                )
                for file in unfinished:
                    file.unlink(missing_ok=True)
    finished = [record for record in records if record]
    failed = [failure for record in finished for failure in record.failures.items()]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {plan.num_rows} images could not be made; the first is {failed[0][0]}: "
            f"{failed[0][1]}; all others are kept, and the same call tries these again"
        )
    finished = as_of_now(folder, finished, quality, plan, images.class_names)
    folder.write_manifest({**about, "plan": digest_json(deciding(plan))}, images.class_names, finished)
    return folder


def _digest(classifier: nn.Module | None) -> str:
    """Of its weights and buffers; empty without one."""
    if classifier is None:
        return ""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    return digest_bytes(safetensors.torch.save(tensors))


def _parts(plan: pa.Table, size: int) -> list[pa.Table]:
    return [plan.slice(start, size) for start in range(0, plan.num_rows, size)]


def _check_takes(classifier: nn.Module, images: LabeledImages) -> None:
    """Refuse a classifier that cannot take these images, before any is made."""
    try:
        features_of(classifier, images.subset(np.arange(1)))
    except RuntimeError as error:
        height, width, channels = images.image_shape
        raise ValueError(
            f"the classifier cannot take these images, float32 (n, {channels}, {height}, {width}) in 0..1 ({error}); "
            "put what your transform does (grey to RGB, another size, normalisation) into a module before it"
        ) from error
