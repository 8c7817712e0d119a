"""`latebloom filter`: move the thresholds of a synthetic data set that is made."""

import dataclasses
from pathlib import Path
from typing import Any

from latebloom.data.store import read_table
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, read_config, write_config
from latebloom.flows.run.records import retrain_key
from latebloom.flows.stages.context import RunContext, has_reference, thresholds_of
from latebloom.flows.stages.export import existing
from latebloom.flows.stages.synthesis import check_images, finish_synthetic
from latebloom.synth.scoring.quality import check_scorers

__all__ = ["Moved", "move_thresholds"]


@dataclasses.dataclass(frozen=True)
class Moved:
    """What moving thresholds did: images by state, before and after, and what was trained on those of before."""

    before: dict[str, int]
    after: dict[str, int]
    out_of_date: list[str]


def move_thresholds(path: Path, changes: dict[str, Any]) -> Moved:
    """Restate the images of a run folder by the scores they have, and keep the new thresholds in its config.

    Args:
        changes: new values of fields of `QualityConfig`.

    Raises:
        ValueError: the data set is not finished, a threshold does not exist, or its score was not measured; nothing
            has changed then. Or it was made of other images than the data have now.
    """
    run, config, folder = RunFolder(existing(path)), read_config(path), SyntheticFolder(path / "synthetic")
    settings = config.model_dump(mode="json")
    config = CompareConfig.model_validate({**settings, "quality": {**settings["quality"], **changes}})
    check_scorers(thresholds_of(config), clip=True, safety=True, classifier=has_reference(config))
    before = folder.manifest()["states"]
    check_images(RunContext(run, config))
    with run.locked():
        states = _states(folder)
        # The config last: after an interruption `latebloom generate` goes back to the old thresholds, and nothing is
        # mixed.
        finish_synthetic(run, config)
        write_config(path, config)
        same = _states(folder) == states  # image by image: other thresholds alone are no other images
    out_of_date = [
        f"{arm.name} with {optimizer}"
        for arm in config.parsed_arms
        for optimizer in config.optimizers
        if (arm.kind == "synthetic" or arm.equal_steps_of) and run.has(retrain_key(arm.name, optimizer))
    ]
    return Moved(before, folder.manifest()["states"], [] if same else out_of_date)


def _states(folder: SyntheticFolder) -> list[str]:
    tables = [read_table(folder.path / part["file"], columns=["state"]) for part in folder.manifest()["parts"]]
    return [state for table in tables for state in table["state"].to_pylist()]
