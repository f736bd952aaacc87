"""HTML pages of the reports: sections of text, tables, charts and pictures."""

import base64
import datetime
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from envs.utils.atomic_io import write_atomic


@dataclass(frozen=True)
class Table:
    """Text table: column headers, and rows with one cell for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Picture:
    """Picture embedded in a page. kind: png or gif. data: base64."""

    kind: str
    data: str
    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One part of a page."""

    title: str
    text: Sequence[str]
    tables: Sequence[Table] = ()
    charts: Sequence[Markup] = ()
    pictures: Sequence[Picture] = ()


def embed_picture(file: bytes, caption: str = "") -> Picture:
    """Return the content of a PNG or GIF file as a picture of a page."""
    image = Image.open(io.BytesIO(file))
    data = base64.b64encode(file).decode()
    return Picture(str(image.format).lower(), data, *image.size, caption)


def write_page(
    out: Path, root: Path, subtitle: str, template: str = "page.html.j2", **values: Any
) -> None:
    """Write <out>/index.html about the run in `root`.

    `values` fill the template: title, lead and sections in page.html.j2. A missing one is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(
        subtitle=f"{subtitle}, {datetime.date.today().isoformat()}",
        footer=f"Created by autoexplore from {root.resolve().name}. Everything on this page comes "
        "from this one run and can be created again with `autoexplore report`.",
        **values,
    )
    write_atomic(out / "index.html", html.encode())
