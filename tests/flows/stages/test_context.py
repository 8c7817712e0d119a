"""A run is read once: by a stage, and by a process that makes parts."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from latebloom.data.store import read_json, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages import checks, planning, select, synthesis, training
from latebloom.flows.stages.context import forget_models, kept_context

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace

_reads: Counter[str] | None = None  # an audit hook stays until the process ends


def _count(event: str, args: tuple[Any, ...]) -> None:
    if _reads is not None and event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
        path = Path(str(args[0]))
        if path.parent.name == "stages":
            _reads["records"] += 1


sys.addaudithook(_count)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts reads of the plan and of stage records while the test runs."""
    global _reads
    _reads = found = Counter()
    real = pq.read_table

    def read_table(source: Any, **options: Any) -> Any:
        found["plan"] += Path(source).name == "plan.parquet"
        return real(source, **options)

    monkeypatch.setattr(pq, "read_table", read_table)
    forget_models()
    yield found
    _reads = None


def test_the_plan_is_read_once_and_records_once_a_stage(
    tmp_path: Path, tiny: Tiny, story: Story, reads: Counter[str]
) -> None:
    config = tiny({"plan.part_size": 24})
    run = checks.open_run(config, str(tmp_path / "run"))
    counts = {}

    def did(stage: str) -> None:
        counts[stage] = (reads["plan"], reads["records"])
        reads.clear()

    training.train_early(run, config)
    did("early")
    select.select_examples(run, config)
    did("select")
    planning.plan_images(run, config)
    did("plan")
    assert len(story.make_images(run, config)) == 4
    did("images")
    training.retrain_arm(run, config, "ours-3", "sgd")
    did("retrain")
    # Making images opens, makes four parts and finishes: each looks whether the early classifiers and the plan, two
    # records, are still those of the context that is kept.
    assert counts == {"early": (0, 0), "select": (0, 2), "plan": (0, 1), "images": (1, 12), "retrain": (0, 1)}


def test_a_context_is_kept_until_what_it_was_read_from_changes(finished: RunFolder, tiny: Tiny) -> None:
    first = kept_context(finished, tiny())
    assert kept_context(finished, tiny()) is first
    assert kept_context(finished, tiny({"plan.part_size": 3})) is not first
    for name in ("plan", "early"):
        before = kept_context(finished, tiny())
        file = finished.path / f"stages/{name}.json"
        write_json(file, read_json(file) | {"digest": "0" * 64})
        assert kept_context(finished, tiny()) is not before
    weights = finished.path / "reference.safetensors"
    shutil.copy(finished.path / "retrained/original-sgd/seed-0.safetensors", weights)
    named = tiny({"scores": {"reference_classifier": str(weights)}})
    before = kept_context(finished, named)
    shutil.copy(finished.path / "retrained/ours-3-sgd/seed-0.safetensors", weights)
    assert kept_context(finished, named) is not before


def test_parts_of_a_plan_that_is_made_again_are_not_those_that_were_kept(
    finished: RunFolder, tiny: Tiny, story: Story
) -> None:
    """In one process, as on a server: the second plan is not taken for the first."""
    other = tiny({"plan.levels": (2, 5)})
    synthesis.open_parts(finished, tiny())
    planning.plan_images(finished, other)
    story.make_images(finished, other)
    levels = set(kept_context(finished, other).synthetic.rows()["level_steps"].to_pylist())
    assert levels == {2, 5}
