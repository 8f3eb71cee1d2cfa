"""A report's page as a browser makes of it, for tests."""

from __future__ import annotations

from html.parser import HTMLParser

from jobs.lake.storage import read
from jobs.report.write import Report

SECTIONS = [
    "data",
    "training",
    "rate",
    "reconstructions",
    "samples",
    "anomalies",
    "map",
    "drift",
    "evaluation",
    "lineage",
    "commands",
]
VOID = ("meta", "link", "img", "br", "input", "hr")


class Page(HTMLParser):
    """What a browser makes of it: elements, references, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[tuple[str, str]] = []
        self.feed(html)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs) -> None:
        told = {name: value or "" for name, value in attrs}
        self.elements.append((tag, told))
        if tag not in VOID:
            self.open.append((tag, told.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag
        self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        if "script" not in inside and "style" not in inside:
            section = next((name for tag, name in self.open if tag == "section" and name), "")
            self.texts[section] = self.texts.get(section, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [told for name, told in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [told["id"] for told in self.all("section") if "id" in told]

    def says(self, section: str, text: str) -> bool:
        return text in " ".join(self.texts[section].split())


def html_of(made: Report) -> str:
    return read(made.uri).decode()


def page_of(made: Report) -> Page:
    return Page(html_of(made))
