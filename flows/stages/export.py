"""Write the synthetic data set of a run for others to read."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from latebloom.data.store import as_path
from latebloom.data.synthetic.export import ExportFormat, export
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import read_config
from latebloom.flows.run.progress import Meter, meter
from latebloom.flows.stages.loaders import images_of

__all__ = ["existing", "export_run", "located"]


def export_run(
    source: str,
    destination: str,
    kind: ExportFormat,
    states: Sequence[str],
    with_real: bool,
    shard_images: int = 10_000,
) -> dict[str, int]:
    """Export the data set of a run folder, or one that lies alone; the number of images of each split.

    Raises:
        ValueError: there is none; or the real images are wanted of a data set that lies alone.
    """
    folder, config = located(as_path(source))
    if with_real and config is None:
        raise ValueError(f"{source} has no config.json, which says what the real images are; give the run folder")
    total = sum(count for state, count in folder.manifest()["states"].items() if state in states)
    real = images_of(config) if config and with_real else None
    total += sum(len(part) for part in (real.train, real.validation, real.test) if part) if real else 0
    with contextlib.ExitStack() as stack:
        bar: Meter | None = None

        def on_images(count: int) -> None:
            nonlocal bar
            # Not before all that can be wrong is said.
            bar = bar or stack.enter_context(meter("export", total, "images"))
            bar.add(count)

        return export(
            folder,
            as_path(destination),
            kind,
            states=states,
            real=real,
            source=Path(config.data.source).name if config else "",  # a card is for others: no path of this machine
            shard_images=shard_images,
            on_images=on_images,
        )


def located(path: Path) -> tuple[SyntheticFolder, CompareConfig | None]:
    """The data set of a run folder with the run's config, or a data set alone.

    Raises:
        ValueError: there is no folder at `path`.
    """
    if (existing(path) / "config.json").is_file():
        return SyntheticFolder(path / "synthetic"), read_config(path)
    return SyntheticFolder(path), None


def existing(path: Path) -> Path:
    """The path itself.

    Raises:
        ValueError: there is no folder there.
    """
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return path
