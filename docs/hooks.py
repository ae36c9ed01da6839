"""What mkdocs does beyond its plug-ins: links to the code, and the page of commands."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from mkdocs.exceptions import PluginError
from typer.cli import get_docs_for_click
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")
ROLE = re.compile(r":(?:attr|class|func|meth):(<(?:code|a|span)\b)")
COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name the files that a page links to outside of docs/, and fill in the commands.

    On the repository's own pages such links work; the built pages have nothing to point to.

    Raises:
        PluginError: where a page links to a file that does not exist.
    """
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, _commands())
    return OUTSIDE.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    text, path = link.groups()
    if not (ROOT / path).exists():
        raise PluginError(f"{link[0]}: expected a file of the repository; correct the path")
    return f"`{path}`" if text == path else f"{text} (`{path}`)"


def _commands() -> str:
    """Return the help of every command as Markdown, a section each."""
    from kn_bench.commands.app import COMMANDS as ENTRIES

    return "\n".join(_help(name, entry.module) for name, entry in ENTRIES.items())


def _help(name: str, module: str) -> str:
    command = get_command(import_module(module).app)
    context = typer.Context(command, info_name=f"kn-bench {name}")
    text = get_docs_for_click(obj=command, ctx=context, indent=1, name=f"kn-bench {name}")
    # "[default: 4]" would be read as a link
    return str(text).replace("[default: ", "\\[default: ").replace("[required]", "\\[required]")


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of the docstrings' ``:func:`name```, which Sphinx would read."""
    return ROLE.sub(r"\1", html)
