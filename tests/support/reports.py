"""A report with everything in it, and a page as a browser reads it."""

import dataclasses
from html.parser import HTMLParser
from typing import Any

from latebloom.flows.report.page import Pictures
from latebloom.flows.report.results import (
    ArmResult,
    Comparison,
    Confusion,
    GenerationCost,
    LevelResult,
    Limit,
    Report,
    ScoreHistogram,
    SeedSelection,
    StageCost,
)

NOTHING = Pictures([], [], [], [])
HOSTILE = "\"><img src=x onerror=alert(1)><script>alert('x')</script>&amp;"


NO_COMPARISON: dict[str, Any] = dict.fromkeys(
    ("difference", "standard_error", "ci_low", "ci_high", "p", "p_holm", "significant")
)


def arm(name: str = "ours-2", optimizer: str = "sgd", **changes: Any) -> ArmResult:
    original = ArmResult(
        arm=name,
        optimizer=optimizer,
        errors=[0.10, 0.12],
        mean=0.11,
        std=0.01414,
        difference=-0.03,
        standard_error=0.005,
        ci_low=-0.045,
        ci_high=-0.015,
        p=0.001,
        p_holm=0.004,
        significant=True,
        class_errors=[0.045, 0.12],
        images_added=341.4,
        steps=1320.0,
        train_seconds=4.66,
        generation_seconds=1234.6,
        train_error=[0.5, 0.1],
    )
    return dataclasses.replace(original, **changes)


def report(**changes: Any) -> Report:
    full = Report(
        title="A title",
        created="2026-08-11",
        data={"source": "digits", "train": 1000, "test": 797, "classes": ["0", "1"], "image_shape": [8, 8, 1]},
        generator={"name": "pixel", "digest": "ab", "trained_on": "800 digits"},
        generator_seen=250,
        separating_epoch=2,
        separating_epoch_chosen=True,
        early_errors=[[0.8, 0.3, 0.2], [0.7, 0.4, 0.2]],
        selections=[SeedSelection(0, 331, 0.331, 0.4321, 0.0123), SeedSelection(1, 329, 0.329, 0.41, 0.01)],
        jaccard=0.614,
        jaccard_chance=0.201,
        class_slow=[["zero", 100, 33.5, 0.12, 1.25], ["one", 100, 0.0, 0.4, None]],
        synthetic={"rows": 2000, "states": {"ok": 1990}, "digest": "cd", "bytes": 4123456, "seconds": 412.3},
        levels=[LevelResult("8 of 20", 0.636, 2000, {"ok": 1990, "off_label": 10}, 0.875, 25.34)],
        arms=[arm("original", **NO_COMPARISON), arm("ours-2", errors=[0.08, 0.08])],
        comparisons=[
            Comparison(
                *("ours-2", "sgd", "original", "sgd", 5, -0.03, 0.005, -0.045, -0.015, 0.001, 0.004, True),
                *(0.01, -0.051, 0.002),
            ),
            Comparison("ours-2", "sgd", "original", "sam", 5, 0.01, 0.0, None, None, 0.0625, 0.0625, False),
        ],
        sentences=["It paid."],
        warnings=["But look."],
        stages=[StageCost("early", 31.25, 812.4, False), StageCost("generate", 412.3, 1400.0, True)],
        confusions=[
            Confusion("original", "sgd", [[95.5, 4.5], [12.0, 88.0]], [["one", "zero", 12.0]]),
            Confusion("ours-2", "sgd", [], [["one", "zero", 7.25]]),
        ],
        generation=[GenerationCost("ours-2", 341.4, 10.0, 820, 24.0)],
        command='latebloom compare digits --set seeds=10 --set \'arms=["original","ours-2"]\'',
        config={"seed": 0, "train": {"lr": 0.1}, "arms": ["original"]},
        changed=[["seeds", 10, 5]],
        scores=[
            ScoreHistogram(
                "label_probability / reference_label_probability",
                [0.0, 1.0, 2.0, 3.0],
                {"ok": [10, 5, 0], "off_label": [2, 0, 1]},
                [Limit("min_label_ratio", 0.6, True)],
                *(7, 1),
            ),
            ScoreHistogram("contrast", [0.0, 50.0], {"ok": [18]}, [Limit("min_contrast", 2.0, False)], 0, 0),
        ],
        versions={"python": "3.12"},
    )
    return dataclasses.replace(full, **changes)


class Page(HTMLParser):
    """The tags with their attributes and the text of a page, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.texts.append(data.strip())

    @property
    def images(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
