"""Makes parts as the stage does, in a process that is killed meanwhile as often as a file beside the run says.

A module of its own, since the processes that are started import it by name.
"""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from latebloom.data.synthetic import folder as synthetic_folder
from latebloom.data.synthetic.folder import PartRecord
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.stages import fitting, synthesis, training
from latebloom.synth.sampling.loop import LoopGenerator

__all__ = [
    "deaths",
    "die_while_reporting",
    "make_one_part",
    "make_one_part_in_slow_batches",
    "make_one_part_slowly",
    "make_parts_until_the_third",
    "retrain_until_the_last_epoch",
]

_finished: list[int] = []
_make_one_part = synthesis.make_one_part  # also where a test puts this module's in its place


def deaths(run: RunFolder, number: int) -> Path:
    """The file with a letter for every death that is to come to the makers of a part."""
    return run.path.with_name(f"{run.path.name}-deaths-{number}")


def make_one_part(run: RunFolder, config: CompareConfig, number: int, on_images: Callable[[int], None]) -> PartRecord:
    """`latebloom.flows.stages.synthesis.make_one_part`, killed after its first batch where a death is due."""

    def report(images: int) -> None:
        on_images(images)
        file = deaths(run, number)
        if file.is_file() and (left := file.read_text()):
            file.write_text(left[1:])
            os.kill(os.getpid(), signal.SIGKILL)

    return _make_one_part(run, config, number, report)


def make_one_part_slowly(
    run: RunFolder, config: CompareConfig, number: int, on_images: Callable[[int], None]
) -> PartRecord:
    """`latebloom.flows.stages.synthesis.make_one_part`, a second later."""
    time.sleep(1)
    return _make_one_part(run, config, number, on_images)


def make_one_part_in_slow_batches(
    run: RunFolder, config: CompareConfig, number: int, on_images: Callable[[int], None]
) -> PartRecord:
    """`latebloom.flows.stages.synthesis.make_one_part`, half a second longer a batch.

    A file beside the run, `made-PID`, says how many images of finished batches this process has made.
    """
    made, count = LoopGenerator.make, run.path.with_name(f"made-{os.getpid()}")

    def make(self: LoopGenerator, *args: Any) -> Any:
        images = made(self, *args)
        time.sleep(0.5)
        _finished.append(len(images.images))
        return images

    def report(images: float) -> None:
        on_images(images)  # type: ignore[arg-type]
        count.write_text(str(sum(_finished)))

    LoopGenerator.make = make  # type: ignore[method-assign]
    try:
        return _make_one_part(run, config, number, report)  # type: ignore[arg-type]
    finally:
        LoopGenerator.make = made  # type: ignore[method-assign]


def die_while_reporting(due: Path, on_images: Callable[[int], None]) -> None:
    """Report an image; killed in the middle of that where the file `due` is there, which is then gone."""
    if due.exists():
        due.unlink()
        pipe: Any = Connection
        pipe._send = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    on_images(1)


def make_parts_until_the_third(run: RunFolder, reached: Event) -> None:
    """Make the parts of a run; the third one is written under its temporary name and never renamed."""
    pq: Any = synthetic_folder.pq
    write_table, written = pq.write_table, []

    def third_stops(*args: Any, **options: Any) -> None:
        write_table(*args, **options)
        written.append(1)
        if len(written) == 3:
            reached.set()
            time.sleep(600)

    pq.write_table = third_stops
    config = read_config(run.path)
    for number in synthesis.open_parts(run, config).parts:
        synthesis.make_one_part(run, config, number, lambda _: None)


def retrain_until_the_last_epoch(run: RunFolder, reached: Event) -> None:
    """Retrain an arm with SAM; it stops after the checkpoint of the second of three epochs."""
    module: Any = fitting
    save_fit, saved = module.save_fit, []

    def second_stops(*args: Any) -> None:
        save_fit(*args)
        saved.append(1)
        if len(saved) == 2:
            reached.set()
            time.sleep(600)

    module.save_fit, module.CHECKPOINT_SECONDS = second_stops, 0
    training.retrain_arm(run, read_config(run.path), "ours-3", "sam")
