"""A run folder belongs to one data set: another one in it is refused."""

import contextlib
from pathlib import Path

from latebloom.data.store import read_json
from latebloom.flows.config.compare import CompareConfig, RunConfig
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.origin import free_folder, lies_in, place_of, read_origin, remember
from latebloom.flows.run.progress import say
from latebloom.flows.stages.loaders import images_of

__all__ = ["check_outside", "check_source", "claim"]


def check_source(run: Path, config: RunConfig) -> None:
    """Refuse a run folder of another data set than a config's, and one that lies in the data.

    The same place is the same data set, however it has grown; so are the same images at another place.

    Raises:
        UsageError: the message has both names, and a folder to give instead.
    """
    source = config.data.source
    check_outside(run, source)
    origin = read_origin(run)
    if origin is None or place_of(source) in (origin.place, origin.place_now(run)):
        return
    if _same_images(run, config, origin.digest):
        say(f"{source} has the images that {run} was made of at {origin.place}: the run goes on with them")
        return
    raise UsageError(
        f"{run} is a run folder of {origin.source} ({origin.place}), and {source} ({place_of(source)}) has other "
        f"images; give that a run folder of its own: --out {free_folder(source, run)}"
    )


def claim(folder: Path, config: RunConfig) -> None:
    """Check a folder that something is written to which is no run, and write down of which data set it is.

    Raises:
        UsageError: as `check_source`.
    """
    check_source(folder, config)
    if read_origin(folder) is None:
        remember(folder, config, images_of(config).train.digest)


def check_outside(folder: Path, source: str) -> None:
    """Refuse to write into a folder of images.

    Raises:
        UsageError: the folder lies in the data source.
    """
    if lies_in(folder, source):
        raise UsageError(
            f"{folder} lies in the data ({place_of(source)}), where it would be read as images; give a place outside"
        )


def _same_images(run: Path, config: RunConfig, digest: str) -> bool:
    """Whether a config's source has the training images of a run folder, with its own settings or those of the run."""
    if images_of(config).train.digest == digest:
        return True
    if digest and (file := run / "config.json").is_file():
        with contextlib.suppress(ValueError):  # such as a limit that this source does not reach
            before = CompareConfig.model_validate(read_json(file))
            data = before.data.model_copy(update={"source": config.data.source})
            return images_of(before.model_copy(update={"data": data})).train.digest == digest
    return False
