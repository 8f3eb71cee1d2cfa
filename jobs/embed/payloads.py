"""What an embed unit is given, by its kind."""

from __future__ import annotations

import dataclasses

from jobs.embed.anomalies import FlaggedBatch
from jobs.engine.corrections import Correction
from jobs.engine.plan import Unit


@dataclasses.dataclass(frozen=True)
class EmbedRows:
    """Rows of a shard of images, to be embedded.

    Attributes:
        path: of the shard, within the images table.
        span: first row and the one behind the last.
        rows: those of them that are meant; None for all.
        tables: what is to be written: embeddings, reconstructions, or both.
    """

    path: str
    span: tuple[int, int]
    rows: list[int] | None
    tables: list[str]

    def unit(self, fingerprint: str) -> Unit:
        """Make it a unit."""
        inputs = {"path": self.path, "tables": self.tables, "span": list(self.span)}
        return Unit.of(fingerprint, {**inputs, "rows": self.rows})


@dataclasses.dataclass(frozen=True)
class EmbedRewrite:
    """A published file, to be written again without images that have left the dataset.

    Attributes:
        table: its table's name.
        path: within the table.
        images: version of the dataset's images table that says which there are.
    """

    table: str
    path: str
    images: int

    def unit(self, fingerprint: str) -> Unit:
        """Make it a unit."""
        inputs = {"rewrite": self.table, "path": self.path, "images": self.images}
        return Unit.of(fingerprint, inputs, "rewrite")


@dataclasses.dataclass(frozen=True)
class FlagBatch:
    """A batch whose anomalies are to be flagged, once all of its images are embedded.

    Attributes:
        batch: which one, and by what rule.
        paths: files of its embeddings, within their table.
    """

    batch: FlaggedBatch
    paths: list[str]

    def unit(self, fingerprint: str) -> Unit:
        """Make it a unit, which the job does itself."""
        inputs = {"batch": dataclasses.asdict(self.batch), "paths": self.paths}
        return Unit.of(fingerprint, inputs, "closing")

    @classmethod
    def of_unit(cls, unit: Unit) -> FlagBatch:
        """Read what a closing unit is given."""
        batch = {**unit.inputs["batch"], "image_shape": tuple(unit.inputs["batch"]["image_shape"])}
        return cls(FlaggedBatch(**batch), unit.inputs["paths"])


def payload_of(unit: Unit) -> EmbedRows | EmbedRewrite | Correction:
    """Read what a unit is given that a worker does."""
    inputs = unit.inputs
    match unit.kind:
        case "work":
            first, stop = inputs["span"]
            return EmbedRows(inputs["path"], (first, stop), inputs["rows"], inputs["tables"])
        case "rewrite":
            return EmbedRewrite(inputs["rewrite"], inputs["path"], inputs["images"])
        case "correction":
            return Correction.of_unit(unit)
    raise AssertionError(f"embed's workers have no units of kind {unit.kind}")
