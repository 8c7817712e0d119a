"""The run forms of the Prefect UI, made from the configs, so that no setting is described twice.

A form has a few plain fields first, each standing for one setting, then the configs as groups without those settings.
What a form shows is what a run gets: its defaults are the settings themselves and depend on no other field.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_origin

import annotated_types
import pydantic
from pydantic import Field
from pydantic.fields import FieldInfo

from latebloom.flows.config.merge import differences, merge, put
from latebloom.flows.config.settings import config_at, field_at, no_such_setting

__all__ = ["Form", "left_open"]


class Form:
    """The parameters of a flow, and the way back from them to a config.

    Args:
        config: the class whose settings the form sets.
        plain: the plain fields in their order, each with the setting it stands for: `{"epochs": "train.epochs"}`.
        groups: the groups in their order, each with the setting that holds its own: `{"coreset": "strong.coreset"}`.
        defaults: nested settings that the form shows in place of the config's defaults.
        extras: parameters that are no settings, after the plain fields: annotation, with a `Field`, and default.
    """

    def __init__(
        self,
        config: type[pydantic.BaseModel],
        plain: Mapping[str, str],
        groups: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        extras: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        self._config, self._plain, self._groups = config, dict(plain), dict(groups or {})
        self._extras = dict(extras or {})
        self._defaults = merge(_defaults(config), dict(defaults or {}))
        self._parameters: list[inspect.Parameter] = []
        self._words: dict[str, str] = {}
        self._models: dict[str, type[pydantic.BaseModel]] = {}
        for name, setting in self._plain.items():
            info = field_at(config, setting)
            default = inspect.Parameter.empty if info.is_required() else _at(self._defaults, setting)
            shown = Field(description=info.description)
            annotation = Annotated[info.annotation, shown, *info.metadata]  # type: ignore[name-defined]
            self._add(name, annotation, default)
        for name, (annotation, default) in self._extras.items():
            self._add(name, annotation, default)
        for name, setting in self._groups.items():
            group = self._models[name] = self._group(name, setting)
            self._add(name, Annotated[group, Field(description=group.__doc__)], group())

    def _add(self, name: str, annotation: Any, default: Any) -> None:
        self._parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
        self._words[name] = annotation.__metadata__[0].description

    def _group(self, name: str, setting: str) -> type[pydantic.BaseModel]:
        """The config at `setting` as a model of its own: without what has a plain field, nested configs left out."""
        model, taken = config_at(self._config, setting), set(self._plain.values()) | set(self._groups.values())
        fields: dict[str, Any] = {}
        for field, info in model.model_fields.items():
            if f"{setting}.{field}" not in taken:
                shown = FieldInfo.merge_field_infos(info, default=_at(self._defaults, f"{setting}.{field}"))
                fields[field] = (info.annotation, shown)
        made: type[pydantic.BaseModel] = pydantic.create_model(
            model.__name__.removesuffix("Config") + "Form",
            __config__=pydantic.ConfigDict(
                frozen=True,
                extra="forbid",
                validate_default=True,
                title=name.replace("_", " ").capitalize(),
                field_title_generator=lambda field, _: field,  # as on the command line
            ),
            __doc__=model.__doc__,
            __module__=__name__,
            __validators__={"_known": self._known(setting)},
            **fields,
        )
        return made

    def _known(self, setting: str) -> Any:
        """The check of a group's names, which says what is near to one that is none, or where it stands instead."""
        places = {place: name for name, place in (self._plain | self._groups).items()}

        def check(cls: type[pydantic.BaseModel], values: Any) -> Any:
            for name in values if isinstance(values, Mapping) else ():
                if name not in cls.model_fields:
                    dotted = f"{setting}.{name}"
                    if dotted in places:
                        raise ValueError(f"{dotted} is not in this group; give it as {places[dotted]}")
                    raise ValueError(no_such_setting(self._config, dotted))
            return values

        return pydantic.model_validator(mode="before")(check)

    def values(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What nested settings over the config's own defaults change of the form as it is shown first.

        Raises:
            ValueError: the form does not show one of them.
        """
        changed = differences(merge(_defaults(self._config), dict(settings)), self._defaults)
        # The innermost first: what a field or group of its own shows is in no other group.
        fields = sorted((self._plain | self._groups).items(), key=lambda field: -field[1].count("."))
        found = {name: _pop(changed, setting) for name, setting in fields if setting not in self._groups.values()}
        found |= {name: _pop(changed, setting) for name, setting in fields if setting in self._groups.values()}
        if left := [name for name, rest in changed.items() if name in settings and rest != {}]:
            raise ValueError(f"this form has no fields for {', '.join(left)}")
        return {name: found[name] for name in (self._plain | self._groups) if found[name] not in (None, {})}

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The nested settings that a filled form means."""
        settings: dict[str, Any] = {}
        for name, setting in (self._groups | self._plain).items():
            model = self._models.get(name)
            put(settings, setting, model.model_validate(given[name]).model_dump() if model else given[name])
        return settings

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the form's fields that calls `function(config, **extras)`."""

        @functools.wraps(function)
        def filled(**given: Any) -> Any:
            # Prefect has validated what was given; a caller in Python may have left fields out.
            known = {parameter.name: parameter.default for parameter in self._parameters} | given
            config = self._config(**self.settings(known))
            return function(config, **{name: known[name] for name in self._extras})

        del filled.__wrapped__  # `inspect` would return the signature of what it wraps
        setattr(filled, "__signature__", inspect.Signature(self._parameters))  # noqa: B010
        about = inspect.cleandoc(function.__doc__ or "")
        lines = [f"{name}: {' '.join(words.split())}" for name, words in self._words.items()]
        filled.__doc__ = f"{about}\n\nArgs:\n{textwrap.indent(chr(10).join(lines), '    ')}"
        return filled


def left_open(config: type[pydantic.BaseModel], setting: str, otherwise: str) -> tuple[Any, Any]:
    """A setting as a field that may be left open, at 0 or empty.

    Args:
        otherwise: what is then meant, in words.
    """
    info = field_at(config, setting)
    kind: Any = info.annotation
    default = () if get_origin(kind) is tuple else kind()
    least = [annotated_types.Ge(0)] if kind in (int, float) else []
    most = [bound for bound in info.metadata if isinstance(bound, annotated_types.Le | annotated_types.Lt)]
    words = f"{info.description}; {'0' if kind in (int, float) else 'empty'}: {otherwise}"
    return Annotated[kind, Field(description=words), *least, *most], default


def _defaults(config: type[pydantic.BaseModel]) -> dict[str, Any]:
    """The nested settings of a config without those that have to be given."""
    return {
        name: pydantic.TypeAdapter(Any).dump_python(info.get_default(call_default_factory=True), mode="json")
        for name, info in config.model_fields.items()
        if not info.is_required()
    }


def _at(settings: Mapping[str, Any], setting: str) -> Any:
    return functools.reduce(lambda place, name: place[name], setting.split("."), settings)


def _pop(settings: dict[str, Any], setting: str) -> Any:
    """Take a setting out of nested ones; None where it is not among them."""
    *path, last = setting.split(".")
    for name in path:
        settings = settings.get(name, {})
    return settings.pop(last, None)
