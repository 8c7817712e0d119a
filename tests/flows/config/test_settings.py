"""Settings as they are described, and names that are none."""

from typing import Literal

import pydantic
import pytest
from pydantic import Field

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.config.settings import (
    OF_CORESET,
    OF_GENERATOR,
    OF_RUN,
    Setting,
    config_at,
    describe,
    field_at,
    no_such_setting,
    unknown,
)
from latebloom.flows.config.tools import CoresetRunConfig, FitGeneratorConfig


class Heat(pydantic.BaseModel):
    """Inside."""

    degrees: int = Field(180, ge=50, le=1300, description="Heat in\n degrees")
    fan: Literal["off", "on"] = Field("off", description="Whether it turns")


class Oven(pydantic.BaseModel):
    """Outside."""

    heat: Heat = Heat(degrees=200)
    share: float = Field(0.5, gt=0, lt=1, description="Share of the peak learning rate")
    names: tuple[str, ...] = Field(("a",), description="Words")
    door: bool = Field(False, description="Open")
    least: float = Field(0.0, ge=0, description="No end")


def test_a_setting_has_type_default_range_and_description() -> None:
    assert describe(Oven) == [
        Setting("heat.degrees", "integer", 200, "50 to 1,300", "Heat in degrees"),
        Setting("heat.fan", "off or on", "off", "", "Whether it turns"),
        Setting("share", "number", 0.5, "above 0 to below 1", "Share of the peak learning rate"),
        Setting("names", "list of text", ["a"], "", "Words"),
        Setting("door", "true or false", False, "", "Open"),
        Setting("least", "number", 0.0, "0 or more", "No end"),
    ]
    assert config_at(Oven, "heat") is Heat
    assert field_at(Oven, "heat.fan").default == "off"


@pytest.mark.parametrize(
    ("config", "short"), [(CompareConfig, OF_RUN), (CoresetRunConfig, OF_CORESET), (FitGeneratorConfig, OF_GENERATOR)]
)
def test_a_short_name_stands_for_a_setting(config: type[pydantic.BaseModel], short: dict[str, str]) -> None:
    assert set(short.values()) <= {setting.name for setting in describe(config)}


def test_names_that_are_no_settings_are_found_at_any_depth() -> None:
    settings = {"heat": {"degrees": 1, "degree": 2}, "share": {"x": 1}, "heap": {"fan": "on"}, "seed": 1}
    assert unknown(Oven, settings) == ["heat.degree", "heap.fan", "seed"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("heat.degree", ["heat.degrees"]),  # spelled alike
        ("fan", ["heat.fan"]),  # in another place
        ("learning_rate", ["share"]),  # in other words
        ("heaat", ["heat"]),
        ("qqqq", []),
    ],
)
def test_the_names_near_to_one_that_is_none(name: str, near: list[str]) -> None:
    nearest = f"near to it: {', '.join(near)}; " if near else ""
    assert no_such_setting(Oven, name) == f"there is no setting {name!r}; {nearest}`latebloom settings` lists all"
