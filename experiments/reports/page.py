"""Reports of one page: sections of text, tables, charts and pictures."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from envs.utils.atomic_io import write_atomic


@dataclass(frozen=True)
class Table:
    """A table: heads of its columns, and rows of equally many cells, already as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Shot:
    """A picture of the page. kind: png or gif. data: base64."""

    caption: str
    kind: str
    data: str
    width: int
    height: int


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: Sequence[str]
    tables: Sequence[Table] = ()
    charts: Sequence[Markup] = ()
    pictures: Sequence[Shot] = field(default=())


def render(template: str, page: dict[str, Any]) -> str:
    """Return a filled template; raise for a name that it needs and `page` lacks."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page)


def write_page(
    out: Path, *, title: str, subtitle: str, lead: str, sections: Sequence[Section], root: Path
) -> None:
    """Write <out>/index.html."""
    footer = f"Created by autoexplore from {root.resolve().name}. "
    footer += "Everything on this page comes from this one run."
    subtitle = f"{subtitle}, {datetime.date.today().isoformat()}"
    page = {
        "title": title,
        "subtitle": subtitle,
        "lead": lead,
        "sections": sections,
        "footer": footer,
    }
    write_atomic(out / "index.html", render("page.html.j2", page).encode())
