"""The synthetic data set: parquet parts, a manifest written last, and reading it back.

A folder holds `part-00000.parquet`, ..., and `manifest.json`. Without a manifest it is no data set yet: parts that are
done have a record under `.parts/` and are kept; everything else is made again.
"""

import contextlib
import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latebloom.data.images import EncodedImages, LabeledImages
from latebloom.data.states import STATES
from latebloom.data.store import (
    atomic_path,
    digest_bytes,
    digest_file,
    digest_json,
    read_json,
    read_table,
    write_bytes,
    write_json,
)

__all__ = ["SYNTHETIC_SCHEMA", "PartRecord", "SyntheticFolder"]

FORMAT = 4

# The image column is the Hugging Face layout; `datasets` and pyarrow both read it.
SYNTHETIC_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("generator_label", pa.int64()),
        ("item_id", pa.string()),
        ("source_index", pa.int64()),
        ("source_name", pa.string()),
        ("source_sha256", pa.string()),
        ("variant", pa.int64()),
        ("level_steps", pa.int64()),
        ("level_grid", pa.int64()),
        ("calls", pa.int64()),
        ("timestep", pa.float64()),
        ("log_snr", pa.float64()),
        ("strength", pa.float64()),
        ("seed", pa.int64()),
        ("attempt", pa.int64()),
        ("prompt", pa.string()),
        ("guidance_scale", pa.float64()),
        ("sampler", pa.string()),
        ("generator", pa.string()),
        ("generator_digest", pa.string()),
        ("fingerprint", pa.binary()),
        ("finite", pa.bool_()),
        ("brightness", pa.float64()),
        ("contrast", pa.float64()),
        ("label_probability", pa.float64()),
        ("reference_label_probability", pa.float64()),
        ("reference_distance", pa.float64()),
        ("distance_ratio", pa.float64()),
        ("feature_distance", pa.float64()),
        ("nearest_real_distance", pa.float64()),
        ("nearest_real_index", pa.int64()),
        ("clip_score", pa.float64()),
        ("clip_margin", pa.float64()),
        ("unsafe", pa.float64()),
        ("duplicate_distance", pa.float64()),
        ("state", pa.string()),
    ]
)


def _hugging_face_schema(class_names: tuple[str, ...]) -> pa.Schema:
    """`SYNTHETIC_SCHEMA` with the metadata by which `datasets` knows images and class names."""
    features: dict[str, Any] = {
        field.name: {"dtype": _dtype_name(field.type), "_type": "Value"} for field in SYNTHETIC_SCHEMA
    }
    features["image"] = {"_type": "Image"}
    features["label"] = {"names": list(class_names), "_type": "ClassLabel"}
    return SYNTHETIC_SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _dtype_name(kind: pa.DataType) -> str:
    return {"double": "float64"}.get(str(kind), str(kind))


@dataclasses.dataclass(frozen=True)
class PartRecord:
    """What is known of a part that was made.

    Attributes:
        key: digest of all that decides its content.
        made: digest of what decides an image beside its own row of the plan.
        file: its name.
        rows: images in it.
        sha256: of the file.
        states: images by state.
        failures: what went wrong, by item id, with images that are not among the rows; with any, it is not finished.
        seconds, peak_memory_mb: what making it took.
    """

    key: str
    made: str
    file: str
    rows: int
    sha256: str
    states: dict[str, int]
    failures: dict[str, str]
    seconds: float
    peak_memory_mb: float


@dataclasses.dataclass(frozen=True)
class SyntheticFolder:
    """A synthetic data set on disk, whole or in the making.

    Attributes:
        path: its folder.
    """

    path: Path

    def part_path(self, part: int) -> Path:
        return self.path / f"part-{part:05d}.parquet"

    def _record_path(self, part: int) -> Path:
        return self.path / ".parts" / f"part-{part:05d}.json"

    def write_part(
        self,
        part: int,
        rows: pa.Table,
        class_names: tuple[str, ...],
        key: str,
        *,
        made: str = "",
        failures: dict[str, str] | None = None,
        seconds: float = 0.0,
        peak_memory_mb: float = 0.0,
    ) -> PartRecord:
        """Write a part, then its record, which alone has what it took: equal data sets are equal files.

        Args:
            part: its number.
            rows: its images, `SYNTHETIC_SCHEMA`.
        """
        with atomic_path(self.part_path(part)) as temporary:
            pq.write_table(rows.cast(_hugging_face_schema(class_names)), temporary, compression="zstd")
        record = PartRecord(
            key=key,
            made=made,
            file=self.part_path(part).name,
            rows=rows.num_rows,
            sha256=digest_file(self.part_path(part)),
            states=_count(rows["state"]),
            failures=failures or {},
            seconds=seconds,
            peak_memory_mb=peak_memory_mb,
        )
        content = dataclasses.asdict(record)
        # With a digest of its own: a number that rots would go on into the manifest.
        write_json(self._record_path(part), {**content, "digest": digest_json(content)})
        return record

    def kept_part(self, part: int, key: str) -> PartRecord | None:
        """The record of a part that is there and undamaged under this key, else None: then it is to be made."""
        record = self._record(part)
        return None if record is None or record.key != key else record

    def _record(self, part: int) -> PartRecord | None:
        """The record of a part, where both are undamaged."""
        try:
            content = read_json(self._record_path(part))
            digest = content.pop("digest")
            whole = digest_json(content) == digest
            record = PartRecord(**content)
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):  # whatever lies there
            return None
        file = self.part_path(part)
        if not whole or not file.is_file() or digest_file(file) != record.sha256:
            return None
        return record

    def cache_parts(self, made: str, keep: Collection[int]) -> int:
        """Move parts that are to be cut or scored differently into the cache, where `cached` finds their images.

        Args:
            made: only parts of this `made` are worth it.
            keep: numbers of parts that stay what they are.

        Returns:
            How many images are in the cache now.
        """
        for file in sorted(self.path.glob(".parts/part-*.json")):
            part = int(file.stem.removeprefix("part-"))
            record = None if part in keep else self._record(part)
            if record and record.made == made:
                # By content: written twice, after a kill, it is one file.
                write_bytes(
                    self.path / ".cache" / f"{made[:16]}-{record.sha256}.parquet", self.part_path(part).read_bytes()
                )
                file.unlink()
        return sum(len(found) for found in self._cached_seeds(made).values())

    def keep(self, made: str, rows: pa.Table) -> Path:
        """Put images of a part in the making into the cache, where `cached` finds them; the file.

        Args:
            rows: some columns of `SYNTHETIC_SCHEMA`.
        """
        content = pa.BufferOutputStream()
        pq.write_table(rows, content)
        blob = content.getvalue().to_pybytes()
        file = self.path / ".cache" / f"{made[:16]}-{digest_bytes(blob)}.parquet"
        write_bytes(file, blob)
        return file

    def cached(self, made: str, seeds: Collection[int]) -> pa.Table:
        """Rows in the cache that were made under `made` with some seeds (`SYNTHETIC_SCHEMA`), in no order.

        By seed, which an image keeps where the rows of its plan move. Images of one seed may have other prompts.
        """
        tables = [SYNTHETIC_SCHEMA.empty_table()]
        wanted = set(seeds)
        for file, found in self._cached_seeds(made).items():
            rows = [row for row, seed in enumerate(found) if seed in wanted]
            if rows and digest_file(file) == file.stem.partition("-")[2]:
                tables.append(read_table(file).take(rows).replace_schema_metadata())
        return pa.concat_tables(tables, promote_options="default")  # an older version had fewer scores

    def _cached_seeds(self, made: str) -> dict[Path, list[int]]:
        found = {}
        for file in sorted(self.path.glob(f".cache/{made[:16]}-*.parquet")):
            with contextlib.suppress(pa.ArrowException):  # a damaged one is as good as none
                found[file] = read_table(file, columns=["seed"])["seed"].to_pylist()
        return found

    def write_manifest(self, about: dict[str, Any], class_names: tuple[str, ...], parts: list[PartRecord]) -> str:
        """Write the manifest, which makes the folder a data set; parts of an older, longer one are removed.

        Args:
            about: what it was made from (digests, configs); equal for equal data sets, so no times and no paths.

        Returns:
            The digest of the data set.
        """
        names = {record.file for record in parts}
        strays = ("part-*.parquet", ".*.tmp", ".parts/.*.tmp", ".cache/*.parquet", ".cache/.*.tmp")
        for stray in [file for pattern in strays for file in self.path.glob(pattern)]:
            if stray.name not in names:
                stray.unlink()
        states = {state: sum(record.states.get(state, 0) for record in parts) for state in STATES}
        content = {
            "format": FORMAT,
            "about": about,
            "class_names": list(class_names),
            "rows": sum(record.rows for record in parts),
            "states": states,
            "parts": [{"file": record.file, "rows": record.rows, "sha256": record.sha256} for record in parts],
        }
        digest = digest_json(content)
        write_json(self.path / "manifest.json", {**content, "digest": digest})
        return digest

    def manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            ValueError: there is none (no data set, or one that is not finished), or it is of another format.
        """
        file = self.path / "manifest.json"
        if not file.is_file():
            raise ValueError(f"{self.path} has no manifest.json: not a synthetic data set, or one not finished yet")
        manifest: dict[str, Any] = read_json(file)
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"{file} has format {manifest.get('format')}, this version reads {FORMAT}; run `latebloom generate` "
                "with its settings again: all of its images are made anew"
            )
        return manifest

    def damaged(self) -> list[str]:
        """Names of the parts that are missing or not what the manifest says."""
        return [
            part["file"]
            for part in self.manifest()["parts"]
            if not (self.path / part["file"]).is_file() or digest_file(self.path / part["file"]) != part["sha256"]
        ]

    def rows(self) -> pa.Table:
        """All rows (`SYNTHETIC_SCHEMA`), in plan order.

        Raises:
            ValueError: no manifest, or damaged parts; the message names the first.
        """
        manifest = self.manifest()
        damaged = self.damaged()
        if damaged:
            raise ValueError(
                f"{self.path / damaged[0]} is missing or damaged ({len(damaged)} such parts); run the same command "
                "again to make it again"
            )
        tables = [read_table(self.path / part["file"]) for part in manifest["parts"]]
        return pa.concat_tables(tables) if tables else SYNTHETIC_SCHEMA.empty_table()

    def images(self, rows: pa.Table, real: LabeledImages, origin: str = "") -> LabeledImages:
        """The images of some of its `rows` with their labels, decoded when needed, cut as the real ones are.

        Raises:
            ValueError: no rows.
        """
        class_names = tuple(self.manifest()["class_names"])
        if not rows.num_rows:
            raise ValueError(f"{self.path}: none of its images is wanted; nothing to read")
        blobs = rows["image"].combine_chunks().field("bytes").to_pylist()
        encoded = EncodedImages(blobs, rows["item_id"].to_pylist(), real.image_shape, real.decoding)
        labels = np.asarray(rows["label"].to_numpy(), np.int64)
        return LabeledImages(encoded, labels, class_names, origin or str(self.path), tuple(encoded.names))


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}
