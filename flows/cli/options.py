"""Options made of settings: an option is a config field with a short name, in a group of the command's help.

Values are not checked here but by the config, so that an option, a `--set` and a form are refused in the same words.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from latebloom.flows.cli.parse import names, numbers
from latebloom.flows.config.settings import Setting, describe, field_at

__all__ = [
    "CONFIG",
    "JSON",
    "OUT",
    "PRESET",
    "SET",
    "Command",
    "Options",
    "argument",
    "command_line",
    "flag",
    "option",
    "refusal",
    "source",
]

# The groups in the help of a command, in this order, with the short names in each.
_GROUPS = {
    "Data": ("image_size", "train_limit", "test_limit"),
    "Early training and selection": ("separating_epoch", "outputs", "indices"),
    "Synthetic images": (
        *("k", "levels", "generator", "kind", "sampling", "prompt", "work_size"),
        *("generate_batch_size", "processes", "reference_classifier", "max_seconds", "until"),
    ),
    "Training": ("model", "epochs", "optimizer", "batch_size"),
    "Strong augmentation": ("strong", "strong_fraction", "policy", "coreset"),
    "Coreset": ("method", "fraction", "checkpoint", "with_synthetic"),
    "Generator": ("split", "steps", "channels", "size"),
    "Comparison": ("arms", "optimizers", "seeds", "workers"),
}
_LETTERS = {"out": "-o", "generator": "-g", "config": "-c", "set": "-s", "method": "-m", "fraction": "-f"}
_REPEATED = ("prompt",)  # a prompt may have commas
_LONGEST = 40  # letters of a list of choices in place of NAME


class Command(TyperCommand):
    """A command whose help lists its options in groups, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{name: [] for name in _GROUPS}, "Options": []}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                name = parameter.metavar or str(parameter.name).upper()
                groups["Arguments"].append(
                    (name if parameter.required else f"[{name}]", getattr(parameter, "help", "") or "")
                )
            elif record := parameter.get_help_record(ctx):
                groups[_group(max(parameter.opts, key=len))].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def _group(option: str) -> str:
    name = option.lstrip("-").replace("-", "_")
    return next((group for group, members in _GROUPS.items() if name in members), "Options")


class Options:
    """The options of a command that are settings of a config, and the way back from them to settings.

    Args:
        config: the class whose settings they are.
        short: the settings by short name; an option is a short name with dashes. The source is an argument instead.
        defaults: what is shown as default in place of the config's own.
    """

    def __init__(
        self,
        config: type[pydantic.BaseModel],
        short: Mapping[str, str],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._short = config, {name: place for name, place in short.items() if name != "source"}
        described = {setting.name: setting for setting in describe(config)}
        self.parameters = [
            _parameter(name, described[setting], field_at(config, setting).annotation, (defaults or {}).get(name))
            for name, setting in self._short.items()
        ]

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each setting whose option was given, by dotted setting."""
        found: dict[str, Any] = {}
        for name, setting in self._short.items():
            if (value := values.get(name)) not in (None, False, []):
                kind = field_at(self._config, setting).annotation
                found[setting] = _value(value, kind) if isinstance(value, str) else value
        return found


def _parameter(name: str, setting: Setting, kind: Any, default: Any) -> inspect.Parameter:
    about, shown = setting.about, _default(setting.default if default is None else default)
    if kind is bool:
        return flag(name, about)
    if get_origin(kind) is tuple and name in _REPEATED:
        return option(name, list[str], f"{about}; repeatable{shown}", "TEXT")
    if get_origin(kind) is tuple:
        return option(name, str, f"{about}; commas between{shown}", "A,B,...")
    if get_origin(kind) is Literal:
        choices = setting.type.replace(" or ", ", ").split(", ")
        if len("|".join(choices)) <= _LONGEST:
            return option(name, str, f"{about}{shown}", "|".join(choices))
        return option(name, str, f"{about}: {setting.type}{shown}", "NAME")
    return option(name, str, f"{about}{shown}", {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT"))


def _value(text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return numbers(text) if get_args(kind)[0] is int else names(text)
    if kind in (int, float):
        with contextlib.suppress(ValueError):  # the config refuses other words
            return kind(text)
    return text


def _default(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f" [default: {shown}]" if shown else ""


def option(name: str, kind: Any, words: str, metavar: str | None = None) -> inspect.Parameter:
    """An option that is None unless it is given."""
    letters = [_LETTERS[name]] if name in _LETTERS else []
    declared = typer.Option(f"--{name.replace('_', '-')}", *letters, help=words, metavar=metavar, show_default=False)
    return _keyword(name, Annotated[kind | None, declared], None)


def flag(name: str, words: str) -> inspect.Parameter:
    """An option without a value."""
    return _keyword(name, Annotated[bool, typer.Option(f"--{name.replace('_', '-')}", help=words)], False)


def source(config: type[pydantic.BaseModel], needed: bool = False) -> inspect.Parameter:
    """The data source as the first argument of a command."""
    about = " ".join((field_at(config, "data.source").description or "").split())
    words = about if needed else f"{about} Left out: that of the run folder"
    argument = typer.Argument(help=words, metavar="SOURCE", show_default=False)
    default = inspect.Parameter.empty if needed else None
    return _keyword("source", Annotated[str if needed else str | None, argument], default)


def argument(name: str, words: str) -> inspect.Parameter:
    """An argument that has to be given."""
    return _keyword(name, Annotated[str, typer.Argument(help=words, metavar=name.upper())], inspect.Parameter.empty)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def command_line(parameters: Iterable[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function of `**given` the parameters that Typer reads."""
    ordered: Sequence[inspect.Parameter] = list(parameters)

    def sign(function: Callable[..., None]) -> Callable[..., None]:
        vars(function)["__signature__"] = inspect.Signature(ordered)
        return function

    return sign


OUT = option("out", str, "Run folder, path or URL [default: runs/SOURCE]", "PATH")
PRESET = option(
    "preset",
    str,
    "Settings of a row of the papers, such as dea-cifar10-table4, or photos-224, which images of 96 px or more start "
    "from unless this says none; see latebloom presets",
    "NAME",
)
CONFIG = option("config", str, "Settings from a .toml or .json file", "FILE")
SET = option(
    "set",
    list[str],
    "Any setting, such as train.lr=0.05 or plan.levels=[40,50]; repeatable; `latebloom settings` lists them",
    "KEY=VALUE",
)
JSON = flag("json", "Print the result as JSON on standard output")


def refusal(error: TyperException, app: Any) -> str:
    """What Typer does not understand, in the form of our own errors: what came, and what to do.

    Args:
        app: the group of all commands.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context else app.name
    if name := getattr(error, "option_name", ""):
        others = [other for other, one in app.commands.items() if any(name in option.opts for option in one.params)]
        if others:
            return f"{command} has no option {name}, which is for {', '.join(others)}; see `{command} --help`"
    return f"{error.format_message().strip().removesuffix('.')}; see `{command} --help`"
