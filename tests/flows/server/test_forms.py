"""A form shows each setting once, with its bounds and the defaults it was given, and leads back to the config."""

import inspect
from typing import Annotated, Any, Literal

import pydantic
import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from latebloom.flows.config.merge import differences
from latebloom.flows.server.forms import Form, left_open


class Oven(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How it is baked."""

    degrees: int = Field(180, ge=50, le=300, description="Heat, 50 to 300")
    fan: Literal["off", "on"] = Field("off", description="off or on")
    minutes: int = Field(40, ge=1, description="Time, at least 1")


class Filling(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What is inside."""

    fruit: tuple[str, ...] = Field(("apple",), min_length=1, description="One or more")
    oven: Oven = Oven()


class Cake(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A cake."""

    name: str = Field(min_length=1, description="What it is called")
    filling: Filling = Filling()
    eggs: int = Field(3, ge=0, le=12, description="Of them, 0 to 12")

    @pydantic.model_validator(mode="after")
    def _bakes(self) -> "Cake":
        if self.eggs > 6 and self.filling.oven.minutes < 30:
            raise ValueError("so many eggs take 30 minutes")
        return self


FORM = Form(
    Cake,
    {"name": "name", "eggs": "eggs", "minutes": "filling.oven.minutes"},
    {"filling": "filling", "oven": "filling.oven"},
    {"filling": {"oven": {"degrees": 200}}},
    {"guests": (Annotated[int, Field(ge=1, description="Who comes")], 4)},
)


@FORM
def bake(cake: Cake, guests: int) -> tuple[Cake, int]:
    """Bake it."""
    return cake, guests


def schema() -> dict[str, Any]:
    return parameter_schema(bake).model_dump()


def test_the_plain_fields_come_first_then_what_is_no_setting_then_the_groups() -> None:
    assert list(inspect.signature(bake).parameters) == ["name", "eggs", "minutes", "guests", "filling", "oven"]
    positions = {name: known["position"] for name, known in schema()["properties"].items()}
    assert positions == {"name": 0, "eggs": 1, "minutes": 2, "guests": 3, "filling": 4, "oven": 5}


def test_a_setting_with_a_plain_field_or_a_group_is_in_no_other_group() -> None:
    groups = schema()["definitions"]
    assert list(groups["OvenForm"]["properties"]) == ["degrees", "fan"]  # minutes is a plain field
    assert list(groups["FillingForm"]["properties"]) == ["fruit"]  # oven is a group of its own
    assert groups["OvenForm"]["additionalProperties"] is False


def test_fields_have_the_words_bounds_choices_and_defaults_of_their_settings() -> None:
    fields, groups = schema()["properties"], schema()["definitions"]
    assert fields["eggs"] == {
        "title": "eggs",
        "description": "Of them, 0 to 12",
        "type": "integer",
        "minimum": 0,
        "maximum": 12,
        "default": 3,
        "position": 1,
    }
    assert fields["guests"]["description"] == "Who comes"
    assert groups["OvenForm"]["properties"]["degrees"]["default"] == 200  # what the form shows, not the config's 180
    assert groups["OvenForm"]["properties"]["fan"]["enum"] == ["off", "on"]
    assert schema()["required"] == ["name"]


def test_a_filled_form_is_the_config() -> None:
    cake, guests = bake(name="pie", minutes=10, filling={"fruit": ["plum"]}, guests=2)
    oven = Oven(degrees=200, minutes=10)
    assert (cake, guests) == (Cake(name="pie", filling=Filling(fruit=("plum",), oven=oven)), 2)


def test_an_untouched_form_is_the_config_with_the_defaults_it_shows() -> None:
    assert bake(name="pie") == (Cake(name="pie", filling=Filling(oven=Oven(degrees=200))), 4)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"degree": 1}, "there is no setting 'filling.oven.degree'; near to it: filling.oven.degrees"),
        ({"minutes": 1}, "filling.oven.minutes is not in this group; give it as minutes"),
    ],
)
def test_a_name_that_a_group_does_not_have_is_answered_with_what_is_near(group: dict[str, int], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        bake(name="pie", oven=group)


def test_a_setting_that_may_be_left_open_keeps_its_type_its_upper_bound_and_its_description() -> None:
    Eggs = pydantic.create_model("Eggs", eggs=left_open(Cake, "eggs", "as before"))
    assert Eggs.model_json_schema()["properties"]["eggs"] == {
        "title": "Eggs",
        "description": "Of them, 0 to 12; 0: as before",
        "type": "integer",
        "minimum": 0,
        "maximum": 12,
        "default": 0,
    }


def test_a_group_given_in_part_keeps_the_rest_of_what_the_form_shows() -> None:
    given = {"fan": "on"}
    assert bake(name="pie", oven=given)[0].filling.oven == Oven(degrees=200, fan="on")
    assert given == {"fan": "on"}  # not written to


def test_what_does_not_fit_together_is_refused_by_the_config() -> None:
    with pytest.raises(pydantic.ValidationError, match="so many eggs take 30 minutes"):
        bake(name="pie", eggs=7, minutes=10)


def test_a_preset_names_only_what_it_changes_of_the_form() -> None:
    # Over the config's own 180 degrees, which the form does not show: so it is named.
    values = FORM.values({"name": "tart", "filling": {"oven": {"fan": "on"}}})
    assert values == {"name": "tart", "oven": {"degrees": 180, "fan": "on"}}
    assert bake(**values)[0] == Cake(name="tart", filling=Filling(oven=Oven(fan="on")))


def test_a_preset_of_what_the_form_does_not_show_is_refused() -> None:
    with pytest.raises(ValueError, match="this form has no fields for filling"):
        Form(Cake, {"eggs": "eggs"}).values({"filling": {"fruit": ["plum"]}})


def test_a_preset_of_what_the_form_shows_anyway_is_empty() -> None:
    assert FORM.values({"filling": {"oven": {"degrees": 200}}}) == {}


def test_differences_of_nested_values() -> None:
    assert differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}}) == {"b": {"d": 3}}
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == {}
