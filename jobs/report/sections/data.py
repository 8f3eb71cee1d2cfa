"""The data card of a report: what the dataset holds, what came, what was refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.datasets.card import dataset_card
from jobs.report.blocks import LEFT_OUT, FoldedRows, Limits, Pictures, Rows, Say, Section, number
from jobs.report.data_uris import cell
from jobs.report.night import ReportNight

SHOWN = 72  # of the contact sheet
REASONS = 20
NAMES = ("splits", "labels", "source_sizes", "formats", "modes")
TITLES = {"source_sizes": "sizes of the sources", "modes": "colour modes"}


def data_section(night: ReportNight, limits: Limits) -> Section:
    """Raise InputError where nothing was ever published."""
    card = dataset_card(night.lake, night.dataset, night.images_version)
    height, width, channels = card["image_shape"]
    facts = [
        ("images", number(card["images"])),
        ("snapshot", f"version {card['images_version']}"),
        ("staged size", f"{height} × {width}, {'grey' if channels == 1 else 'colour'}"),
        ("stored", f"{card['bytes'] / 2**20:,.1f} MiB in {card['shards']:,} shards"),
        ("same pixels as another", number(card["same_pixels"])),
        ("look like another (perceptual hash)", number(card["same_perceptual_hash"])),
    ]
    if card["mean"]:
        each = zip(card["mean"], card["variance"], strict=True)
        pixels = [f"{m:.0f} ± {v**0.5:.0f}" for m, v in each]
        facts.append(("pixel values (0 to 255)", ", ".join(pixels)))
    blocks: list[Any] = [Rows("The dataset", ("", "value"), facts)]
    blocks += [_sheet(night, limits)] if card["images"] else [_nothing()]
    blocks += _refusals(night)
    blocks += [
        FoldedRows(f"{_title(name).capitalize()}", _counts(_title(name), card[name]))
        for name in NAMES
        if card[name]
    ]
    if not card["labels"]:
        blocks.append(Say("The images have no labels."))
    return Section("data", "Data card", blocks)


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _nothing() -> Say:
    return Say("The dataset is empty: there is no picture to show.")


def _counts(title: str, counts: dict[str, int], shown: int = 30) -> Rows:
    rows = [(str(name), number(count)) for name, count in list(counts.items())[:shown]]
    if len(counts) > shown:
        rows.append((f"… {len(counts) - shown} more", number(sum(list(counts.values())[shown:]))))
    return Rows(f"Images by {title}", (title, "images"), rows)


def shown_images(night: ReportNight, most: int) -> tuple[str, list[str]]:
    """Return what the contact sheet is of, and the ids: of the night's arrivals, if there are
    any."""
    # An id is a hash: its order is that of no source.
    found = night.ask(
        """SELECT image_id, night = ? AS is_new FROM images WHERE dataset = ? AND night <= ?
           ORDER BY is_new DESC, image_id LIMIT ?""",
        night.night,
        night.dataset,
        night.night,
        most,
    )
    new = [row["image_id"] for row in found if row["is_new"]]
    if new:
        return "images that arrived this night", new
    return "images of the dataset; none arrived this night", [row["image_id"] for row in found]


def _sheet(night: ReportNight, limits: Limits) -> Pictures | Say:
    most = limits.of(SHOWN)
    if not most:
        return Say(LEFT_OUT)
    title, ids = shown_images(night, most)
    images = night.images(ids)
    if not images:
        return _nothing()
    pictures = [cell(image, f"image {i[:12]}", side=56) for i, image in images.items()]
    return Pictures(f"Contact sheet: {len(pictures)} {title}", pictures, "sheet")


def sheet_images(night: ReportNight) -> tuple[str, list[np.ndarray]]:
    """Return what a PNG of the contact sheet is of."""
    title, ids = shown_images(night, SHOWN)
    return title, list(night.images(ids).values())


def _refusals(night: ReportNight) -> list[Rows | Say]:
    rows = night.ask(
        """SELECT reason, count(*) AS n,
                  min({'uri': source_uri, 'row': source_row, 'member': source_member,
                       'message': message}) AS example
           FROM quarantine WHERE dataset = ? AND night = ? GROUP BY reason
           ORDER BY n DESC, reason""",
        night.dataset,
        night.night,
    )
    if not rows:
        return [Say("Nothing was refused on this night.")]
    rows_shown = [
        (row["reason"], number(row["n"]), row["example"]["message"] or "", where(row["example"]))
        for row in rows[:REASONS]
    ]
    columns = ("reason", "rows", "an example's message", "its source")
    found: list[Rows | Say] = [Rows("Refused on this night, by reason", columns, rows_shown)]
    if len(rows) > REASONS:
        found.append(Say(f"{len(rows) - REASONS} further reasons are not shown."))
    return found


def where(example: dict[str, Any]) -> str:
    """Return a row of a source, in words."""
    member = f", {example['member']}" if example["member"] else ""
    place = f", row {example['row']}" if example["row"] is not None and example["row"] >= 0 else ""
    return f"{example['uri']}{member}{place}"
