"""Where everything in a report comes from, and the commands to dig further."""

from __future__ import annotations

import json
import shlex

from jobs.lake.documents import json_column
from jobs.report.blocks import Block, Commands, Fold, Missing, Rows, Say, Section, counted, number
from jobs.report.night import ReportNight

SOURCES = 20


def lineage_section(night: ReportNight) -> Section:
    """Source → images → bundle → jobs. What there is not is said, the others are still shown."""
    blocks: list[Block] = [_sources(night), _chain(night)]
    try:
        blocks += _bundle(night)
    except Missing as missing:
        blocks.append(Say(str(missing)))
    blocks.append(_jobs(night))
    return Section("lineage", "Lineage", blocks)


def _sources(night: ReportNight) -> Rows | Say:
    rows = night.ask(
        """SELECT source_uri, count(*) AS n FROM images WHERE dataset = ? AND night = ?
           GROUP BY source_uri ORDER BY n DESC, source_uri""",
        night.dataset,
        night.night,
    )
    if not rows:
        return Say("No image of the dataset came on this night.")
    rows_shown = [(row["source_uri"], number(row["n"])) for row in rows[:SOURCES]]
    if len(rows) > SOURCES:
        rest = sum(row["n"] for row in rows[SOURCES:])
        rows_shown.append((f"… {len(rows) - SOURCES} further files", number(rest)))
    return Rows("Source files of the night's images", ("file", "images"), rows_shown)


def _chain(night: ReportNight) -> Rows:
    steps = [("lake", night.lake.uri), ("dataset", night.dataset)]
    if night.images_version is not None:
        steps.append(("images", f"version {night.images_version}"))
    steps.append(("model", night.name if night.version else f"{night.model}: none yet"))
    steps += [("champion before", night.previous)] if night.previous else []
    for run in night.runs:
        published = json_column(run, "versions").items()
        versions = ", ".join(f"{table} version {version}" for table, version in published)
        steps.append((f"{run['job']} published", versions or "nothing"))
    return Rows("From source to tables", ("step", "what"), steps)


def _bundle(night: ReportNight) -> list[Block]:
    about = night.about
    data, metrics = about["data"], about["metrics"]
    libraries = ", ".join(f"{name} {version}" for name, version in about["libraries"].items())
    facts = [
        ("bundle", night.name),
        ("trained on", f"{data['dataset']}, version {data['images_version']}"),
        ("training images", number(data["train_images"])),
        ("calibration images", number(data["calibration_images"])),
        ("parameters", number(metrics["parameters"])),
        ("decision score", about["decision_score"]),
        ("job", about["job_id"]),
        ("workers", number(about["workers"])),
        ("hardware", about["trained_on"]),
        ("code", f"latentlake {about['code']}"),
        ("libraries", libraries),
    ]
    settings = {
        name: about[name] for name in ("config", "objective", "scoring", "settings", "data")
    }
    folded = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True)
    return [Rows("The bundle", ("", "value"), facts), Fold("The bundle's config (JSON)", folded)]


def _jobs(night: ReportNight) -> Rows | Say:
    if not night.runs:
        return Say("No job finished on this night.")
    rows = [
        (
            run["job_id"],
            run["job"],
            f"{run['finished_at']:%Y-%m-%d %H:%M:%S} UTC",
            f"{run['seconds']:,.1f} s",
            run["code"],
        )
        for run in night.runs
    ]
    columns = ("job", "kind", "finished", "took", "code")
    return Rows(f"{counted(len(rows), 'job')} of the night", columns, rows)


def commands_section(night: ReportNight) -> Section:
    """Three commands of `latentlake`, as they may be pasted into a shell."""
    return Section("commands", "Dig further", [Commands(commands_of(night))])


def commands_of(night: ReportNight) -> list[tuple[str, str]]:
    """Return what each tells, and the command."""
    at = ["--lake", night.lake.uri]
    found = [("The dataset in full", ["describe", "--dataset", night.dataset, *at])]
    if night.version is None:
        found += [
            ("What was refused", ["query", "sql", _refused_sql(night), *at]),
            ("All there is in the lake", ["list", *at]),
        ]
    else:
        name, of = f"{night.model}@{night.version}", ["--dataset", night.dataset]
        anomalies = ["query", "anomalies", "--model", name, *of, "--night", night.night]
        if night.flagged:
            anomalies.append("--flagged")
            worst = night.anomalies(1)[0]["image_id"][:12]
            last = ["query", "neighbours", "--model", name, "--image-id", worst, *at]
            command = ("What is nearest to the first anomaly", last)
        else:
            command = ("What was refused", ["query", "sql", _refused_sql(night), *at])
        found.insert(0, ("The anomalies of the night", [*anomalies, *at]))
        found.append(command)
    return [(command, " ".join(["latentlake", *map(_quoted, words)])) for command, words in found]


def _quoted(word: str) -> str:
    """For a shell; SQL with its own quotes in double ones, so that it can be read."""
    if "'" in word and not set(word) & set('"\\$`!'):
        return f'"{word}"'
    return shlex.quote(word)


def _refused_sql(night: ReportNight) -> str:
    return (
        "SELECT source_uri, source_row, reason, message FROM quarantine "
        f"WHERE dataset = '{night.dataset}' AND night = '{night.night}'"
    )
