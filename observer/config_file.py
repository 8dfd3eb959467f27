"""Settings from a TOML file as defaults of a command's options: they yield to flags and environment."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click


def read_settings(path: Path, options: set[str]) -> dict[str, Any]:
    """Read a file of `option = value` lines, named as the options are; refuse what is no option."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read ({error.strerror}); give a TOML file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is not TOML ({error}); write lines such as experts = 900") from None
    settings = {name.replace("-", "_"): value for name, value in content.items()}
    unknown = sorted(set(settings) - options)
    if unknown:
        known = ", ".join(sorted(name.replace("_", "-") for name in options))
        raise click.UsageError(f"{path} sets {', '.join(unknown)}, which is no setting of a job; there are {known}")
    for name, value in settings.items():
        if isinstance(value, (dict, list)):
            raise click.UsageError(f"{path} sets {name} to a {type(value).__name__}; give a number, a string or a bool")
    return settings


def apply(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Take the file's settings as defaults of the command; a click callback of an eager option."""
    if path is not None:
        names = {option.name for option in context.command.params if option.name} - {parameter.name, "as_json", "help"}
        context.default_map = {**(context.default_map or {}), **read_settings(path, names)}
    return path


RANK = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")


def stronger(context: click.Context, first: str, second: str) -> str | None:
    """Which of two options that exclude each other was set in a stronger place; None if in the same."""
    ranks = []
    for name in (first, second):
        source = context.get_parameter_source(name)
        ranks.append(RANK.index(source.name) if source is not None and source.name in RANK else 0)
    return None if ranks[0] == ranks[1] else (first if ranks[0] > ranks[1] else second)
