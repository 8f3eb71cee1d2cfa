"""The latent map of a report: embeddings as points on a plane, a thumbnail under the pointer."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jobs.report.blocks import LEFT_OUT, Block, Chart, Limits, Missing, Say, Section, p_text
from jobs.report.data_uris import data_uri, rgb, smaller
from jobs.report.figures import COLOURS, FLAGGED, Points, float32, map_figure
from jobs.report.night import ReportNight, Row
from jobs.tables import catalog

POINTS = 2000
THUMB = 28  # pixels of a thumbnail's longer side
SHOWN = 84  # CSS pixels of it
AT_ONCE = 100  # images that are read before they are made small
LABELS = 10  # that have a colour each
METHODS = ("umap", "pca")  # a map by the first of these that there is


def map_section(night: ReportNight, limits: Limits) -> Section:
    """Return a sample by id, with the night's anomalies. Raises Missing where nothing is
    embedded."""
    most = limits.of(POINTS)
    rows = _sample(night, most)
    if not most:
        raise Missing(LEFT_OUT)
    if not rows:
        raise Missing(f"{night.name} has embedded no image of {night.dataset} yet.")
    points_N2, way = _plane(night, rows)
    flagged = {row["image_id"] for row in rows if row["flagged"]}
    sheet = _sprites(night, [row["image_id"] for row in rows])
    groups = _Drawn(night, rows, points_N2, flagged, sheet).groups()
    size = sheet.shown
    chart = map_figure(groups, (*size, sheet.columns * size[0], sheet.pixelated))
    sentence = (
        f"{len(rows):,} images of {night.dataset} as {night.name} embeds them, {way}. Near points "
        f"are images that the model takes to be alike. {_told_of_flagged(flagged)} To move it, "
        "choose Pan beside it and drag; turn the wheel to zoom; a click on a name in the legend "
        "hides its points."
    )
    blocks: list[Block] = [Chart("map", "Embeddings on a plane", sentence, chart, sheet.uri)]
    if not night.has_labels:
        blocks.append(Say("The images have no labels: points are coloured by when they came."))
    return Section("map", "Latent map", blocks)


def _told_of_flagged(flagged: set[str]) -> str:
    if not flagged:
        return "None of them was flagged this night."
    return (
        "Images that were flagged this night are chosen first; the "
        f"{len(flagged):,} among these are red diamonds."
    )


def _sample(night: ReportNight, most: int) -> list[Row]:
    """Rows of the embeddings, with the coordinates of the newest map where it has them."""
    _ = night.name
    return night.ask(
        f"""
        WITH flagged AS (
            SELECT image_id FROM anomalies WHERE model = ? AND model_version = ?
              AND dataset = ? AND night = ?
        ), chosen AS (
            SELECT image_id, dataset, model, model_version, p_value, night
            FROM embeddings WHERE model = ? AND model_version = ? AND dataset = ? AND night <= ?
            ORDER BY image_id NOT IN (SELECT image_id FROM flagged), image_id LIMIT ?
        )
        SELECT e.image_id, e.p_value, e.night, {night.label} AS label,
               e.image_id IN (SELECT image_id FROM flagged) AS flagged
        FROM chosen e JOIN images i USING (image_id, dataset) ORDER BY e.image_id
        """,
        *(night.model, night.version, night.dataset, night.night),
        *(night.model, night.version, night.dataset, night.night),
        most,
    )


def _plane(night: ReportNight, rows: Sequence[Row]) -> tuple[np.ndarray, str]:
    """(N, 2), and how they were laid out."""
    ids = [row["image_id"] for row in rows]
    for method in METHODS:
        points = _of_the_map(night, method, ids)
        if all(image_id in points for image_id in ids):
            return np.array([points[i] for i in ids]), f"on the plane of latentlake map ({method})"
    vectors = {
        row["image_id"]: row["embedding"]
        for row in night.ask(
            """SELECT image_id, embedding FROM embeddings WHERE model = ? AND model_version = ?
               AND dataset = ? AND night <= ? AND image_id IN (SELECT unnest(?))""",
            *(night.model, night.version, night.dataset, night.night),
            ids,
        )
    }
    plane = pca_plane(np.array([vectors[i] for i in ids]))
    return plane, "on the plane of their largest variance (PCA)"


def _of_the_map(night: ReportNight, method: str, ids: list[str]) -> dict[str, tuple[float, float]]:
    if not catalog.published_versions(night.lake).get(f"models/{night.model}/maps"):
        return {}
    rows = night.ask(
        """SELECT image_id, x, y FROM maps WHERE model = ? AND model_version = ? AND dataset = ?
           AND method = ? AND image_id IN (SELECT unnest(?))""",
        *(night.model, night.version, night.dataset),
        method,
        ids,
    )
    return {row["image_id"]: (row["x"], row["y"]) for row in rows}


def pca_plane(vectors_ND: np.ndarray) -> np.ndarray:
    """Return the plane of the largest variance, (N, 2); each axis points to where its largest
    weight is positive. Of a single dimension y is zero."""
    centred_ND = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0, dtype=np.float64)
    _, axes_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    plane_D2 = axes_DD[:, ::-1][:, :2]
    largest = np.abs(plane_D2).argmax(axis=0)
    plane_D2 = plane_D2 * np.sign(plane_D2[largest, np.arange(plane_D2.shape[1])])
    return centred_ND @ np.pad(plane_D2, ((0, 0), (0, 2 - plane_D2.shape[1])))


@dataclasses.dataclass(frozen=True)
class Sprites:
    """Thumbnails on one picture. places: of each id, as CSS background positions. shown: width and
    height of one in CSS pixels."""

    uri: str
    places: dict[str, str]
    columns: int
    shown: tuple[int, int]
    pixelated: bool


def _thumbs(night: ReportNight, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """By image id; read once for pages of all sizes, and never all images in full."""
    new = [image_id for image_id in ids if image_id not in night.thumbs]
    for at in range(0, len(new), AT_ONCE):
        for image_id, image in night.images(new[at : at + AT_ONCE]).items():
            night.thumbs[image_id] = smaller(image, THUMB)
    return {image_id: night.thumbs[image_id] for image_id in ids if image_id in night.thumbs}


def _sprites(night: ReportNight, ids: Sequence[str]) -> Sprites:
    thumbs = _thumbs(night, ids)
    height, width, channels = next(iter(thumbs.values())).shape
    columns = math.ceil(math.sqrt(len(thumbs)))
    lines = math.ceil(len(thumbs) / columns)
    sheet = np.zeros((lines * height, columns * width, channels), np.uint8)
    shown = (SHOWN * width // max(height, width), SHOWN * height // max(height, width))
    places = {}
    for index, (image_id, thumb) in enumerate(thumbs.items()):
        line, column = divmod(index, columns)
        sheet[line * height : (line + 1) * height, column * width : (column + 1) * width] = thumb
        places[image_id] = f"{-column * shown[0]}px {-line * shown[1]}px"
    uri = data_uri(rgb(sheet), lossy=True)
    return Sprites(uri, places, columns, shown, pixelated=max(night.image_shape[:2]) <= THUMB)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """The sample as it is drawn: rows of the embeddings, their places, what is shown of each."""

    night: ReportNight
    rows: Sequence[Row]
    points_N2: np.ndarray
    flagged: set[str]
    sheet: Sprites

    def points(self, name: str, chosen: Sequence[int], colour: str) -> Points:
        some = [self.rows[n] for n in chosen]
        columns = {
            "x": float32(self.points_N2[chosen, 0]),
            "y": float32(self.points_N2[chosen, 1]),
            "place": [self.sheet.places.get(row["image_id"], "0 0") for row in some],
            "image_id": [row["image_id"][:12] for row in some],
            "p_value": [p_text(row["p_value"]) for row in some],
            "label": ["" if row["label"] is None else f"label {row['label']}" for row in some],
            "fate": [self._fate(row) for row in some],
        }
        return Points(name, columns, colour)

    def _fate(self, row: Row) -> str:
        if row["image_id"] in self.flagged:
            doubt = "" if self.night.calibration_is_valid else ", calibration not valid"
            return f"flagged this night{doubt}"
        return f"embedded {row['night']}"

    def groups(self) -> list[Points]:
        """One of each label that is frequent, or of arrivals and earlier ones; then the flagged."""
        kinds = [_kind(row, self.night) for row in self.rows]
        frequent = [name for name, _ in Counter(kinds).most_common()]
        most = LABELS if len(frequent) <= LABELS else LABELS - 1
        named = sorted(frequent[:most], key=_in_order)
        groups = []
        for name, colour in zip(named, COLOURS, strict=False):
            chosen = [n for n, kind in enumerate(kinds) if kind == name]
            groups.append(self.points(name, chosen, colour))
        others = [n for n, kind in enumerate(kinds) if kind not in named]
        if others:
            groups.append(self.points("others", others, "#808080"))
        marked = [n for n, row in enumerate(self.rows) if row["image_id"] in self.flagged]
        if marked:
            made = self.points("flagged this night", marked, FLAGGED)
            groups.append(dataclasses.replace(made, marker="diamond", size=13))
        return groups


def _in_order(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before names."""
    return (0, float(name), name) if name.isdecimal() else (1, 0.0, name)


def _kind(row: Row, night: ReportNight) -> str:
    if night.has_labels:
        return "no label" if row["label"] is None else str(row["label"])[:40]
    return "arrived this night" if row["night"] == night.night else "earlier"
