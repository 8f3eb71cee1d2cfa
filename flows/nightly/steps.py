"""The steps of a run, one after the other, with what they reported and what has to be shown."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flows.prefect_env import prepare_prefect

prepare_prefect()

from prefect import Task  # noqa: E402
from prefect.context import TagsContext  # noqa: E402

from flows.nightly import tasks  # noqa: E402
from flows.nightly.artifacts import show  # noqa: E402
from flows.nightly.run_context import Opened  # noqa: E402
from jobs.bundles import aliases as bundles_aliases  # noqa: E402
from jobs.bundles.manifest import is_there  # noqa: E402
from jobs.engine.report import JobReport  # noqa: E402
from jobs.errors import InputError, JobError  # noqa: E402
from jobs.promote.settings import PromoteSettings  # noqa: E402
from jobs.tables import catalog  # noqa: E402

if TYPE_CHECKING:
    from jobs.report.write import Report

log = logging.getLogger("latentlake")


class Steps:
    """A run's, in a block: at its end, also by an error, what was done is shown and logged.

    notes: sentences for whoever reads the run's summary. model: that embedded; the config's if
    None.
    """

    def __init__(self, run: Opened, model: str | None = None) -> None:
        self.run = run
        self.model = model
        self.page: Report | None = None
        self.reports: list[JobReport] = []
        self.notes: list[str] = []
        self.mistakes: list[InputError] = []
        # Tasks would have the run's tags, and Prefect asks its server for a slot for each of them
        # before each task, which takes a second or more.
        self._untagged = TagsContext(current_tags=set())

    def __enter__(self) -> Self:
        self._untagged.__enter__()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._untagged.__exit__()
        if error is not None and not isinstance(error, Exception):
            return  # it is being stopped, and has no time
        if error is not None:
            self.notes.append(f"**The run ended early**: {error}")
        try:
            show(self.run, self.reports, self.notes, self.model, self.page)
        except Exception:
            if error is None:
                raise
            log.exception("what was done cannot be shown")

    def run_required(
        self, task: Task[Any, JobReport], settings: Any, seconds: float | None
    ) -> JobReport:
        """One job; given up after as many seconds."""
        report = tasks.limited(task, seconds)(settings, *self.run.at)
        done = {(each.job, each.target) for each in self.reports}
        if report.job_ids or (report.job, report.target) not in done:
            self.reports.append(report)
        return report

    def run_deferred(
        self, task: Task[Any, JobReport], settings: Any, seconds: float | None
    ) -> JobReport | None:
        """Run a job without which others still can be done: a user's mistake waits for `end`."""
        try:
            return self.run_required(task, settings, seconds)
        except InputError as error:
            self.mistakes.append(error)
            return self._not_done(task, settings, error)

    def end(self) -> list[JobReport]:
        """Return what was reported; raise the first mistake, now that all else is done and
        reported."""
        if self.mistakes:
            raise self.mistakes[0]
        return self.reports

    def run_advisory(
        self, task: Task[Any, JobReport], settings: Any, seconds: float | None
    ) -> JobReport | None:
        """Run a job that only judges: what it cannot is reported, and the night
        goes on.

        settings: None where the config asks for none of it.
        """
        if settings is None:
            return None
        try:
            return self.run_required(task, settings, seconds)
        except (InputError, JobError, TimeoutError) as error:
            return self._not_done(task, settings, error)

    def _not_done(self, task: Task[Any, JobReport], settings: Any, error: Exception) -> None:
        note = f"{task.name} {settings.model}: {error}"
        log.warning("%s", note)
        self.notes.append(f"Not done: {note}.")

    def look_for_drift(self, only_by_a_champion: bool = False) -> None:
        """Embeds what is new, and holds it against the images that the model learnt from.

        only_by_a_champion: not at all where there is none yet.
        """
        settings, limit = self.run.settings, self.run.settings.timeouts
        if only_by_a_champion and (settings.drift is None or not self._has_champion()):
            return
        # What a champion cannot embed any more, the next one may.
        do = self.run_advisory if only_by_a_champion else self.run_deferred
        do(tasks.embed, settings.embed, limit.embed_s)
        self.run_advisory(tasks.drift, settings.drift_test, limit.drift_s)

    def _has_champion(self) -> bool:
        try:
            model, version = catalog.resolve_model(self.run.lake, self.run.settings.embed.model)
        except InputError:
            return False
        return is_there(self.run.lake, model, version)

    def report(self) -> None:
        """Write the night's page where one is wanted. A night is no worse where it fails."""
        settings = self.run.settings
        if not settings.report:
            return
        write = tasks.limited(tasks.report, settings.timeouts.report_s)
        try:
            at = self.run.lake.uri, self.run.night
            self.page = write(self.run.dataset, settings.embed.model, *at)
        except Exception as error:
            log.exception("no report")
            self.notes.append(f"No report: {error or type(error).__name__}.")

    def train(self, promote: bool, why: str | None = None) -> None:
        """Trains, and lets the gate decide about the new model; the first one has no rival.

        promote: whether it may become champion. why: logged where a model came of it.
        """
        settings, limit = self.run.settings, self.run.settings.timeouts
        training = settings.training if promote else settings.train
        trained = self.run_deferred(tasks.train, training, limit.train_s)
        if trained is None:
            return
        if why is not None and trained.job_ids:
            self.notes.append(f"Trained because {why}.")
        model, version = training.model, trained.counts["version"]
        current = catalog.aliases(self.run.lake, model).get(training.alias)
        if not promote or current in (None, version):
            return
        moves = bundles_aliases.moves(self.run.lake, model, training.alias)
        if bundles_aliases.was_taken_back(moves, version):
            self.notes.append(f"{model}@{version} was rolled back: it is not promoted by itself.")
            return
        for one in (current, version):
            self.run_advisory(
                tasks.evaluate, settings.evaluation(f"{model}@{one}"), limit.evaluate_s
            )
        challenge = PromoteSettings(
            model=f"{model}@{version}",
            alias=training.alias,
            dataset=training.dataset,
            rule=settings.gate,
            by="nightly",
        )
        decided = self.run_advisory(tasks.promote, challenge, limit.evaluate_s)
        if decided is not None and decided.counts.get("why"):
            self.notes.append(f"{model}@{version}: {decided.counts['why']}")
