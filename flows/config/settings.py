"""Every setting, described once: by the field of its config. Options and forms are short names of settings."""

import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
import pydantic
from pydantic.fields import FieldInfo

__all__ = [
    "OF_CORESET",
    "OF_GENERATOR",
    "OF_RUN",
    "Setting",
    "config_at",
    "describe",
    "field_at",
    "no_such_setting",
    "short",
    "unknown",
]

# The short names of settings. An option of the command line and a plain field of a form have the same.
OF_RUN = {
    "source": "data.source",
    "image_size": "data.image_size",
    "train_limit": "data.train_limit",
    "test_limit": "data.test_limit",
    "model": "classifier.model",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "optimizer": "train.optimizer",
    "separating_epoch": "slow.separating_epoch",
    "outputs": "slow.outputs",
    "indices": "slow.indices",
    "k": "plan.k",
    "levels": "plan.levels",
    "generator": "generate.generator",
    "kind": "generate.kind",
    "generate_batch_size": "generate.batch_size",
    "processes": "generate.processes",
    "prompt": "prompts.templates",
    "work_size": "sizes.work_size",
    "reference_classifier": "scores.reference_classifier",
    "strong": "strong.selector",
    "strong_fraction": "strong.coreset.fraction",
    "coreset": "strong.file",
    "policy": "strong.policy.policy",
    "arms": "arms",
    "optimizers": "optimizers",
    "seeds": "seeds",
    "workers": "workers",
    "train_states": "train_states",
    "seed": "seed",
    "device": "device",
}
# Of CoresetRunConfig.
OF_CORESET = {
    **{name: OF_RUN[name] for name in ("source", "image_size", "train_limit", "model", "epochs", "batch_size")},
    "method": "coreset.method",
    "fraction": "coreset.fraction",
    "checkpoint": "checkpoint",
    "with_synthetic": "with_synthetic",
    "seeds": "seeds",
    "seed": "seed",
    "device": "device",
}
# Of FitGeneratorConfig.
OF_GENERATOR = {
    **{name: OF_RUN[name] for name in ("source", "image_size", "train_limit")},
    "split": "split",
    "steps": "generator.steps",
    "channels": "generator.channels",
    "size": "generator.size",
    "batch_size": "generator.batch_size",
    "seed": "seed",
    "device": "device",
}


def short(*names: str) -> dict[str, str]:
    """Some short names of the settings of a run, in this order."""
    return {name: OF_RUN[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting as it is shown.

    Attributes:
        name: dotted, such as train.lr.
        type: in words: integer, number, text, true or false, "sgd, sam or adahessian", list of integer.
        default: as in JSON.
        range: in words, such as "2 to 1000" or "above 0 to 100"; empty: any.
        about: what it is.
    """

    name: str
    type: str
    default: Any
    range: str
    about: str


def describe(config: type[pydantic.BaseModel]) -> list[Setting]:
    """The settings of a config in their order. What has no default has None."""
    return list(_walk(config, config.model_construct().model_dump(mode="json", warnings=False), ""))


def _walk(config: type[pydantic.BaseModel], defaults: Mapping[str, Any], place: str) -> Iterator[Setting]:
    for name, field in config.model_fields.items():
        inner = _config(field)
        if inner:
            yield from _walk(inner, defaults.get(name) or {}, f"{place}{name}.")
        else:
            yield Setting(f"{place}{name}", _type(field.annotation), defaults.get(name), _range(field), _about(field))


def _config(field: FieldInfo) -> type[pydantic.BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) else None


def _about(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _type(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return _type(get_args(kind)[0])
    if get_origin(kind) is tuple:
        inner = _type(get_args(kind)[0])
        return f"list of {inner}"
    if get_origin(kind) is Literal:
        *most, last = map(str, _choices(kind))
        return f"{', '.join(most)} or {last}" if most else last
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_type, get_args(kind)))
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _choices(kind: Any) -> list[Any]:
    """The values of a Literal, also where it is made of others."""
    found: list[Any] = []
    for value in get_args(kind):
        found += _choices(value) if get_origin(value) is Literal else [value]
    return found


def _range(field: FieldInfo) -> str:
    low = high = ""
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge():
                low = _number(bound.ge)
            case annotated_types.Gt():
                low = f"above {_number(bound.gt)}"
            case annotated_types.Le():
                high = _number(bound.le)
            case annotated_types.Lt():
                high = f"below {_number(bound.lt)}"
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if low and not low.startswith("above") else low or high


def _number(bound: Any) -> str:
    return f"{int(bound):,}" if int(bound) == bound else f"{bound:g}"


def config_at(config: type[pydantic.BaseModel], name: str) -> type[pydantic.BaseModel]:
    """The config that a dotted name leads to: FitConfig for train."""
    for part in name.split("."):
        inner = _config(config.model_fields[part])
        assert inner is not None, f"{name} is no config"
        config = inner
    return config


def field_at(config: type[pydantic.BaseModel], name: str) -> FieldInfo:
    """The field of the setting that a dotted name leads to."""
    place, _, last = name.rpartition(".")
    return (config_at(config, place) if place else config).model_fields[last]


# ------------------------------------------------------------------------------------------------- unknown names


def unknown(config: type[pydantic.BaseModel], settings: Mapping[str, Any], place: str = "") -> list[str]:
    """The dotted names in nested settings that are no settings of a config, in their order."""
    found: list[str] = []
    for name, value in settings.items():
        field = config.model_fields.get(name)
        if field is None:
            found += [f"{place}{name}.{below}" for below in value] if isinstance(value, Mapping) else [f"{place}{name}"]
        elif (inner := _config(field)) and isinstance(value, Mapping):
            found += unknown(inner, value, f"{place}{name}.")
    return found


def no_such_setting(config: type[pydantic.BaseModel], name: str, command: str = "latebloom settings") -> str:
    """What to say of a name that is no setting: those near to it, and the command that lists all.

    Args:
        name: dotted, or a part of a dotted name.
    """
    near = _near(name, describe(config))
    nearest = f"near to it: {', '.join(near)}; " if near else ""
    return f"there is no setting {name!r}; {nearest}`{command}` lists all"


def _near(name: str, settings: list[Setting]) -> list[str]:
    """Up to three settings that are spelled like a name, or whose description has its words."""
    last = name.rpartition(".")[2]
    words = last.replace("_", " ").replace("-", " ").lower()

    def likeness(setting: Setting) -> float:
        own = setting.name.rpartition(".")[2]
        spelled = max(_ratio(name, setting.name), _ratio(last, own) - 0.05)
        return max(spelled, 0.75 if " " in words and words in setting.about.lower() else 0.0)

    groups = dict.fromkeys(setting.name.rpartition(".")[0] for setting in settings if "." in setting.name)
    ranked = [(likeness(setting), setting.name) for setting in settings]
    ranked += [(_ratio(name, group), group) for group in groups]
    ranked.sort(key=lambda pair: -pair[0])
    return [own for score, own in ranked[:3] if score >= 0.65]


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
