"""The page of a report: one HTML file that needs nothing else.

Jinja2 escapes every value. Should one get through, the page's own policy (CSP) lets no script run
but the two that are named by their hashes, and nothing be fetched.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from jobs.control_characters import shown
from jobs.report.blocks import Chart, Section
from jobs.report.figures import embedded, library
from jobs.report.headline import Headline

TEMPLATES = "templates"


def render(
    title: str, headline: Headline, sections: Sequence[Section], notes: Sequence[str]
) -> str:
    """Return the whole page. notes: what was left out."""
    charts = [b for section in sections for b in section.blocks if isinstance(b, Chart)]
    scripts = [library(), _text("start.js")] if charts else []
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=title,
            headline=headline,
            sections=sections,
            notes=notes,
            style=Markup(_text("page.css")),
            charts=[(c.name, Markup(in_script(embedded(c.name, c.figure)))) for c in charts],
            scripts=[Markup(script) for script in scripts],
            policy=_policy(scripts),
        )
    )


def in_script(text: str) -> str:
    """JSON that may stand in a script element: nothing in it ends the element, or begins one."""
    for sign in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """Not of our own markup, whose scripts are named by their hashes."""
    return shown(value) if type(value) is str else value


def _text(name: str) -> str:
    return (files("jobs.report") / TEMPLATES / name).read_text(encoding="utf-8")
