"""The tables of the catalog: one each in a lake."""

from __future__ import annotations

import pyarrow as pa

from jobs.schemas.spec import TableSpec, column, provenance

EVALUATIONS = TableSpec(
    "evaluations",
    owner="catalog",
    schema=pa.schema(
        [
            column("model", pa.string(), "the model", required=True),
            column("model_version", pa.string(), "version of the bundle", required=True),
            column("dataset", pa.string(), "dataset of the images", required=True),
            column("images_version", pa.int64(), "snapshot whose test split was read"),
            column("metric", pa.string(), "name of the number", required=True),
            column("of", pa.string(), "the score, label column or latent dimension; null: of all"),
            column("value", pa.float64(), "null where it could not be had: see note"),
            column("low", pa.float64(), "lower end of its interval; null where it has none"),
            column("high", pa.float64(), "upper end of its interval; null where it has none"),
            column("confidence", pa.float64(), "of the interval", unit="probability"),
            column("unit", pa.string(), "of value"),
            column("better", pa.string(), "higher / lower / none"),
            column("images", pa.int64(), "images that it stands on"),
            column("note", pa.string(), "what has to be known of it; why there is none"),
            *provenance(),
        ]
    ),
    stats=("model", "model_version", "dataset", "images_version", "metric", "night"),
)
DRIFT = TableSpec(
    "drift",
    owner="catalog",
    schema=pa.schema(
        [
            column("model", pa.string(), "the model", required=True),
            column("model_version", pa.string(), "version of the bundle", required=True),
            column("dataset", pa.string(), "dataset of the images", required=True),
            column(
                "sequence",
                pa.int64(),
                "grows by one a judgement of a model version and dataset; the last one holds",
            ),
            column("first_version", pa.int64(), "of the images table: the first of the arrivals"),
            column("last_version", pa.int64(), "of the images table: the last of the arrivals"),
            column(
                "test",
                pa.string(),
                "combined / hotelling / mmd / classifier / ks / fisher; combined decides",
                required=True,
            ),
            column("sample", pa.string(), "embeddings / scores / pixels / source; null: all"),
            column("of", pa.string(), "the score, column or latent dimension; null: of all"),
            column("p_value", pa.float64(), "that no drift explains it", unit="probability"),
            column("effect", pa.float64(), "how large the change is; null where there is no one"),
            column("effect_unit", pa.string(), "of effect"),
            column("arrivals", pa.int64(), "images of the night that were compared with it"),
            column("reference", pa.int64(), "images of the model's snapshot, of its test split"),
            column("alpha", pa.float64(), "what this night may spend", unit="probability"),
            column("drifted", pa.bool_(), "of combined: whether drift was found; null: not tested"),
            column("note", pa.string(), "what has to be known of it; why nothing was tested"),
            column(
                "embed_jobs",
                pa.list_(pa.field("element", pa.string())),
                "of combined: the jobs that embedded the arrivals",
            ),
            *provenance(),
        ]
    ),
    stats=("model", "model_version", "dataset", "last_version", "test", "night"),
)


ALIASES = TableSpec(
    "aliases",
    owner="catalog",
    schema=pa.schema(
        [
            column("sequence", pa.int64(), "grows by one a change; the last one holds"),
            column("model", pa.string(), "the model", required=True),
            column("alias", pa.string(), "the name", required=True),
            column("version", pa.string(), "version of the bundle it names", required=True),
            column("reason", pa.string(), "why it was moved"),
            column("moved_by", pa.string(), "who moved it; null before release 0.2"),
            column("night", pa.string(), "logical night of the run (YYYY-MM-DD)"),
            column("job_id", pa.string(), "the job that moved it"),
        ]
    ),
    stats=("sequence",),
)


RUNS = TableSpec(
    "runs",
    owner="catalog",
    schema=pa.schema(
        [
            column("job_id", pa.string(), "the job", required=True),
            column(
                "job",
                pa.string(),
                "stage / train / embed / evaluate / drift / promote / …",
            ),
            column("target", pa.string(), "dataset or model it worked on"),
            column("night", pa.string(), "logical night"),
            column("finished_at", pa.timestamp("us", "UTC"), "wall clock at the commit"),
            column(
                "sequence",
                pa.int64(),
                "grows with each job that finishes, whatever the clock says; null before "
                "release 0.2",
            ),
            column("seconds", pa.float64(), "wall time of the process that finished it", unit="s"),
            column("counts", pa.string(), "JSON: what was counted"),
            column("versions", pa.string(), "JSON: version of each table it published"),
            column("config", pa.string(), "JSON: the config that made it"),
            column("code", pa.string(), "version of latentlake"),
        ]
    ),
    stats=("job", "night"),
)
