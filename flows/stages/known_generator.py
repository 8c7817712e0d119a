"""A generator that was loaded for a run before, and is as it was: its digest, without loading it again.

Loading takes the imports of diffusers and transformers and the reading of all weights. A run in which all images are
made needs only to know that they are of this generator.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import latebloom
from latebloom.data.images import LabeledImages
from latebloom.data.store import digest_json, is_remote, read_json, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.file_state import FileState, files_below
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages.loaders import device_of, generator_files

if TYPE_CHECKING:
    from latebloom.synth.sampling.denoiser import Generator

__all__ = ["Known", "known_generator", "reference_sizes", "remember_generator"]


class Known(NamedTuple):
    """What a plan needs to know of a generator.

    Attributes:
        digest: of the generator.
        labels: `Generator.labels_of` the classes of the images.
    """

    digest: str
    labels: tuple[int, ...] | None

    @classmethod
    def of(cls, generator: "Generator", train: LabeledImages) -> "Known":
        """Of a generator that is loaded."""
        return cls(generator.digest, generator.labels_of(train.class_names))


def known_generator(folder: RunFolder, config: CompareConfig, train: LabeledImages) -> Known | None:
    """The generator, if it was checked for these images and settings and no file of it has changed since.

    Returns:
        None: it is not known, and must be loaded.
    """
    file = _file(folder)
    if is_remote(folder.path) or not file.is_file():
        return None
    try:
        known = read_json(file)
        code, files, labels = known["code"], known["files"], known["labels"]
        found = Known(str(known["digest"]), labels if labels is None else tuple(labels))
        same = (
            known["settings"] == _settings(config, train)
            and code == _code(code["at"])
            and files == generator_files(config, files["at"])
        )
    except (ValueError, LookupError, TypeError, OSError):  # damaged, or a file went away meanwhile
        return None
    return found if same else None


def remember_generator(folder: RunFolder, config: CompareConfig, train: LabeledImages, known: Known) -> None:
    """Write down that the generator has been loaded and checked for these images and settings."""
    files = None if is_remote(folder.path) else generator_files(config)
    if files:
        content = {"settings": _settings(config, train), "code": _code(files["at"]), "files": files}
        write_json(_file(folder), content | known._asdict())


def reference_sizes(config: CompareConfig, train: LabeledImages) -> dict[tuple[int, int], list[str]]:
    """By height and width, the names of the references that there may be of this size."""
    if config.sizes.returned != "source":
        return {train.image_shape[:2]: list(train.names)}
    sizes: dict[tuple[int, int], list[str]] = {}
    for row, name in enumerate(train.names):
        height, width, _ = train.whole(np.array([row]))[0].shape
        sizes.setdefault((height, width), []).append(name)
    return sizes


def _file(folder: RunFolder) -> Path:
    return folder.path / ".done" / "generator.json"


def _settings(config: CompareConfig, train: LabeledImages) -> str:
    """Digest of all that the check of a generator reads beside the generator itself."""
    levels = {level for arm in config.parsed_arms for level in config.levels(arm)}
    return digest_json(
        {
            "generate": config.generate.model_dump(mode="json", exclude={"batch_size", "processes"}),
            "sample": config.sample.model_dump(mode="json"),
            "diffusemix": config.diffusemix.model_dump(mode="json"),
            "prompts": config.prompts.model_dump(mode="json"),
            "sizes": config.sizes.model_dump(mode="json"),
            "device": str(device_of(config.device)),
            "levels": sorted(levels),
            "classes": train.class_names,
            "shape": train.image_shape,
            "references": sorted(reference_sizes(config, train)),
        }
    )


def _code(at: int) -> dict[str, Any]:
    return FileState(files_below("code", Path(latebloom.__file__).parent), at).content
