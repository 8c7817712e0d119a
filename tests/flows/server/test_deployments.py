"""The deployments: forms that the UI shows well, presets that are configs, and a prefect.yaml that says the same."""

import functools
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.utilities.callables import parameter_schema

from latebloom.flows.config.compare import CompareConfig, RunConfig, demo_config, preset
from latebloom.flows.config.merge import merge
from latebloom.flows.config.presets import PRESETS
from latebloom.flows.server import deployed
from latebloom.flows.server.deployments import DEPLOYMENTS, Deployment, prefect_yaml, runner_deployments

FORMS = {one.flow.name: one.flow for one in DEPLOYMENTS}


@functools.cache
def schema(flow: str) -> dict[str, Any]:
    """What the UI makes the form of a flow of."""
    return parameter_schema(FORMS[flow].fn).model_dump(mode="json")


def by_name(name: str) -> Deployment:
    return next(one for one in DEPLOYMENTS if one.full_name == name)


def everything(place: Any) -> list[dict[str, Any]]:
    """Every object in a nested value."""
    if isinstance(place, list):
        return [found for value in place for found in everything(value)]
    return (
        [place, *(found for value in place.values() for found in everything(value))] if isinstance(place, dict) else []
    )


def test_the_flows_that_the_ui_offers() -> None:
    assert {one.flow.name for one in DEPLOYMENTS} == {
        "augment-and-retrain", "compare", "select", "generate", "retrain", "fit-generator", "export", "generate-part",
    }  # fmt: skip
    assert len({one.full_name for one in DEPLOYMENTS}) == len(DEPLOYMENTS)


@pytest.mark.parametrize("flow", FORMS)
def test_a_form_is_one_that_the_ui_shows_well(flow: str) -> None:
    """No union, no free dictionary, one level of groups; each field has words and a value; no secret is asked for."""
    form = schema(flow)
    places = everything(form)
    for place in places:
        assert not {"anyOf", "oneOf", "allOf"} & set(place), place
        assert place.get("type") != "object" or "properties" in place, place
    for group in form["definitions"].values():
        assert not any("$ref" in field for field in group["properties"].values()), group["title"]
    fields = [field for field in form["properties"].values() if "$ref" not in field]
    fields += [field for group in form["definitions"].values() for field in group["properties"].values()]
    for field in fields:
        assert field["description"], field
    assert [name for name, field in form["properties"].items() if "default" not in field] == form["required"]
    names = {name for place in places for name in place.get("properties", {})}
    assert not [name for name in names if any(word in name for word in ("token", "secret", "password", "api_key"))]


def test_the_parameters_of_a_deployment_and_its_schedule_are_valid_and_its_description_is_whole() -> None:
    for one in DEPLOYMENTS:
        closed = {**schema(one.flow.name), "additionalProperties": False, "required": []}
        given = dict(one.parameters) | (dict(one.schedule.parameters) if one.schedule else {})
        jsonschema.validate(given, closed)
        if one.schedule:
            assert "paused" in one.description
        elif one.name == "generate-part":
            assert "nobody has to trigger one" in one.description
        else:
            assert "**Makes**" in one.description or one.queue == "cpu"
            assert "**Costs**" in one.description


def asked(one: Deployment, **given: Any) -> Any:
    """The config that a deployment's form means."""
    form = {"augment-and-retrain": deployed.RUN_FORM, "compare": deployed.COMPARE_FORM}[one.flow.name]
    return form(lambda config, **_: config)(**merge(dict(one.parameters), given))


LIMIT = {"parts": {"limit": "gpu:{host}"}}


def test_submit_of_an_untouched_form_is_the_digits_demo() -> None:
    assert asked(by_name("augment-and-retrain/augment-digits")) == RunConfig(**merge(preset("digits"), LIMIT))
    demo = demo_config().model_dump()
    assert asked(by_name("compare/compare-digits")) == CompareConfig(**merge(demo, LIMIT))


def test_the_papers_setting_is_its_preset_and_that_of_a_folder_the_configs_defaults() -> None:
    paper = asked(by_name("augment-and-retrain/augment-cifar10-paper"), generator="sd")
    row = PRESETS["tada-cifar10"].settings
    known = {name: part for name, part in row.items() if name in RunConfig.model_fields}
    assert paper == RunConfig(**merge(known, merge(LIMIT, {"generate": {"generator": "sd"}})))
    assert (paper.slow.separating_epoch, paper.quality.min_label_ratio, paper.quality.min_distance) == (8, 0, 0)
    yours = asked(by_name("augment-and-retrain/augment-your-folder"), source="a", generator="b")
    assert yours == RunConfig(**merge(LIMIT, {"data": {"source": "a"}, "generate": {"generator": "b"}}))
    assert (paper.train.epochs, paper.classifier.model, paper.plan.steps(100)) == (
        200,
        "preact-resnet18",
        (40, 50, 70, 80),
    )


def test_schedules_are_paused_and_one_run_at_a_time() -> None:
    scheduled = [one for one in DEPLOYMENTS if one.schedule]
    assert [one.full_name for one in scheduled] == ["generate/generate-nightly", "generate/generate-continue"]
    for one in scheduled:
        assert one.schedule
        assert one.schedule.active is False
        assert one.concurrency
        assert (one.concurrency.limit, one.concurrency.collision_strategy) == (1, "CANCEL_NEW")


def test_prefect_yaml_is_written_of_the_same_table() -> None:
    file = Path(__file__).parents[3] / "prefect.yaml"
    assert file.read_text() == prefect_yaml(), "run `python -m latebloom.flows.server.deployments > prefect.yaml`"


def test_prefect_yaml_and_serve_say_the_same() -> None:
    in_yaml = {one["name"] + one["entrypoint"]: one for one in yaml.safe_load(prefect_yaml())["deployments"]}
    for served in runner_deployments():
        entry = in_yaml[served.name + str(served.entrypoint)]
        assert (entry["description"], entry["tags"], entry["parameters"]) == (
            served.description, served.tags, served.parameters,
        )  # fmt: skip
        assert len(entry.get("schedules", [])) == len(served.schedules or [])
        assert entry.get("concurrency_limit", {}).get("limit") == served.concurrency_limit
