"""What came from what in a run, as a diagram from its own records: data set, generator, synthetic set, classifiers."""

import itertools
from typing import Any

from latebloom.data.store import read_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.arms import parse_arm
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report.results import in_percent, mean_and_std
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.run.records import SELECT, retrain_key
from latebloom.flows.stages.classifiers import early_folder

__all__ = ["diagram", "short"]


def diagram(run: RunFolder) -> str:
    """Mermaid source of the lineage of what a run folder holds now, every node with the start of its digest.

    Raises:
        ValueError: it is no run folder.
    """
    config = read_config(run.path)
    drawn = _Drawing()
    data = drawn.box(config.data.source, *_data_digest(run, config))
    sets = _synthetic_sets(run, drawn, data)
    for arm in config.arms:
        keys = {optimizer: retrain_key(arm, optimizer) for optimizer in config.optimizers}
        records = {optimizer: run.record(key) for optimizer, key in keys.items() if run.has(key)}
        if not records:
            continue
        lines = [
            (f"{name} {_error(one.facts.validation_errors or one.facts.errors)}", short(one.digest))
            for name, one in records.items()
        ]
        classifiers = drawn.box(arm, *itertools.chain(*lines))
        drawn.arrow(data, classifiers)
        if parse_arm(arm).kind == "synthetic":
            for digest in dict.fromkeys(one.facts.synthetic for one in records.values()):
                if digest not in sets:
                    sets[digest] = drawn.box("earlier synthetic set", short(digest))
                drawn.arrow(sets[digest], classifiers)
    return drawn.source()


class _Drawing:
    """The lines of a Mermaid flowchart."""

    def __init__(self) -> None:
        self.boxes: list[str] = []
        self.arrows: list[str] = []

    def box(self, *words: str) -> str:
        """A box with a line for each of the words; its name."""
        name = f"n{len(self.boxes)}"
        self.boxes.append(f'  {name}["{"<br/>".join(map(_escaped, words))}"]')
        return name

    def arrow(self, start: str, end: str) -> None:
        self.arrows.append(f"  {start} --> {end}")

    def source(self) -> str:
        return "\n".join(["flowchart LR", *self.boxes, *self.arrows])


def _synthetic_sets(run: RunFolder, drawn: _Drawing, data: str) -> dict[str, str]:
    """Draw what leads to the synthetic set; the set's box by its digest, where it is finished."""
    slow = ""
    if run.has(SELECT):
        record = run.record(SELECT)
        slow = drawn.box("slow examples", _several(record.facts.slow), short(record.digest))
        drawn.arrow(data, slow)
    folder = SyntheticFolder(run.path / "synthetic")
    if not (folder.path / "manifest.json").is_file():
        return {}
    manifest = folder.manifest()
    about = manifest["about"]
    counts = (f"{manifest['rows']:,} images", f"{manifest['states'].get('ok', 0):,} ok")
    made = drawn.box("synthetic set", *counts, short(manifest["digest"]))
    drawn.arrow(slow or data, made)
    drawn.arrow(drawn.box(f"generator {about['generator']}", short(about["generator_digest"])), made)
    return {manifest["digest"]: made}


def _data_digest(run: RunFolder, config: CompareConfig) -> list[str]:
    """Of the training images, from the first record that has it; nothing before anything was trained."""
    files = [(early_folder(run, 0) / "config.json", "data")]
    for arm in config.arms:
        files += [(run.path / "retrained" / f"{arm}-{o}" / "config.json", "train") for o in config.optimizers]
    return next(([short(read_json(file)[name])] for file, name in files if file.is_file()), [])


def _several(counts: list[int]) -> str:
    """`31 images`, or `28 to 33 images` where the seeds differ."""
    few, many = min(counts), max(counts)
    return f"{few:,} images" if few == many else f"{few:,} to {many:,} images"


def _error(errors: list[float]) -> str:
    return f"{in_percent(*mean_and_std(errors))} %"  # a longer line would be broken


def short(digest: str) -> str:
    """The start of a digest: enough to distinguish two, and to find it in a record."""
    return digest[:12]


def _escaped(text: Any) -> str:
    """Mermaid writes what would begin or end something as #code;."""
    return "".join(f"#{ord(letter)};" if letter in '"#<>&`\n' else letter for letter in str(text))
