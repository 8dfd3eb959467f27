"""The README speaks of commands that exist, and of all of them."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from observer.cli import main as observer
from segmoe.cli import main as segmoe

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands(name: str, group: click.Group) -> list[str]:
    found = []
    for command in group.commands.values():
        if isinstance(command, click.Group):
            found += commands(f"{name} {command.name}", command)
        else:
            found.append(f"{name} {command.name}")
    return found


@pytest.mark.parametrize("command", [*commands("segmoe", segmoe), *commands("observer", observer)])
def test_each_command_is_in_the_readme(command: str) -> None:
    assert f"`{command}" in README or f"\n{command} " in README or f"\n{command}\n" in README


def test_the_picture_exists() -> None:
    assert (Path(__file__).parent.parent / "dashboard" / "expert_map.png").stat().st_size > 10_000


def generated(command: str) -> str:
    """What stands between the marks of a command."""
    return README.split(f"<!-- {command} -->\n")[1].split("\n<!-- end -->")[0]


def test_the_reference_of_the_views_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(observer, ["db", "schema", "--markdown"]).output
    assert generated("observer db schema --markdown") == printed.rstrip("\n")
