"""What of a part can change without an image being made again: states, near-duplicates, names of references."""

import dataclasses

import numpy as np
import pyarrow as pa

from latebloom.data.store import read_table
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA, PartRecord, SyntheticFolder
from latebloom.synth.config import QualityConfig
from latebloom.synth.scoring.quality import Scores, duplicate_distances, states

__all__ = ["as_of_now"]


def as_of_now(
    folder: SyntheticFolder,
    records: list[PartRecord],
    quality: QualityConfig,
    plan: pa.Table,
    class_names: tuple[str, ...],
) -> list[PartRecord]:
    """The records of all parts, in order, after those are written again that changed.

    States and duplicate distances follow the thresholds of now, names of references the plan of now.
    """
    if not records:
        return []
    names = [field.name for field in dataclasses.fields(Scores)]
    tables = [
        read_table(
            folder.part_path(number),
            columns=[*names, "fingerprint", "label", "state", "item_id", "source_name"],
            schema=SYNTHETIC_SCHEMA,  # a part of an older version may lack columns
        )
        for number in range(len(records))
    ]
    now, distances = _states_of(pa.concat_tables(tables), names, quality)
    called = dict(zip(plan["item_id"].to_pylist(), plan["source_name"].to_pylist(), strict=True))
    result, start = [], 0
    for number, (record, before) in enumerate(zip(records, tables, strict=True)):
        rows = slice(start, start + before.num_rows)
        start += before.num_rows
        sources = [called[item] for item in before["item_id"].to_pylist()]
        if (
            now[rows] == before["state"].to_pylist()
            and np.array_equal(distances[rows], before["duplicate_distance"].to_numpy(), equal_nan=True)
            and sources == before["source_name"].to_pylist()
        ):
            result.append(record)
            continue
        (folder.path / "manifest.json").unlink(missing_ok=True)  # the data set that it describes is going
        part = read_table(folder.part_path(number), schema=SYNTHETIC_SCHEMA)
        moved = {"state": now[rows], "duplicate_distance": distances[rows], "source_name": sources}
        for name, values in moved.items():
            field = SYNTHETIC_SCHEMA.field(name)
            part = part.set_column(SYNTHETIC_SCHEMA.get_field_index(name), field, pa.array(values, field.type))
        result.append(
            folder.write_part(
                number,
                part,
                class_names,
                record.key,
                made=record.made,
                failures=record.failures,
                seconds=record.seconds,
                peak_memory_mb=record.peak_memory_mb,
            )
        )
    return result


def _states_of(table: pa.Table, names: list[str], quality: QualityConfig) -> tuple[list[str], np.ndarray]:
    """The states of all images, and their distances to the nearest duplicate, float64 (n,); NaN: not asked for."""
    scores = Scores(**{name: table[name].to_numpy() for name in names})
    distances = np.full(table.num_rows, np.nan)
    if quality.min_duplicate_distance > 0:
        # Among those that all else leaves usable: none is dropped for being like one that is dropped itself.
        alone = quality.model_copy(update={"min_duplicate_distance": 0})
        usable = np.array(states(scores, alone)) == "ok"
        prints = np.frombuffer(b"".join(table["fingerprint"].to_pylist()), np.uint8).reshape(len(usable), -1)
        distances = duplicate_distances(prints, table["label"].to_numpy(), usable)
    return list(states(dataclasses.replace(scores, duplicate_distance=distances), quality)), distances
