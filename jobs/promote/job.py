"""promote: an alias moves to a bundle that has shown enough; rollback: it moves back.

One commit to the aliases table, fenced: a move that was decided on what the alias named is not
published once somebody else has moved it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NoReturn

from typing_extensions import override

from jobs.bundles import aliases as bundles_aliases
from jobs.bundles.aliases import ROLLBACK
from jobs.bundles.manifest import is_there, read_about
from jobs.engine import records
from jobs.engine.job import Job, StalePlan
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit
from jobs.errors import InputError, JobError, unknown_name
from jobs.evaluate.compare import compare
from jobs.evaluate.results import standing
from jobs.hashing import digest
from jobs.lake.paths import LakePaths, valid_name
from jobs.promote import gate
from jobs.promote.gate import Verdict
from jobs.promote.settings import PromoteSettings
from jobs.schemas.catalog import ALIASES, EVALUATIONS
from jobs.tables import catalog
from jobs.tables.conflicts import CommitConflict
from jobs.tables.delta import Snapshot, Table, open_snapshot


class PromoteJob(Job):
    """One call of promote or rollback.

    A challenger that the rule refuses is no failure: the job ends without a row and its counts
    say why.
    """

    name = "promote"
    rows_counted = "rows"

    def __init__(self, lake: LakePaths, settings: PromoteSettings, night: str) -> None:
        """Raise InputError where the model or the version is not there."""
        self.alias = valid_name("alias", settings.alias)
        if settings.back:
            self.name = ROLLBACK
            model, self._version = _model(lake, settings), None
        else:
            model, self._version = _challenger(lake, settings)
        super().__init__(lake, model)
        self.settings = settings
        self.night = night
        self.by = settings.by or bundles_aliases.user()
        self._planned: set[str] = set()
        self._finished: set[str] = set()
        self._verdicts: dict[tuple[str, str | None], Verdict] = {}

    @property
    @override
    def first_table(self) -> str:
        return self.lake.catalog(ALIASES.name)

    @property
    @override
    def relies_on(self) -> list[str]:
        return [self.first_table, self.lake.catalog(EVALUATIONS.name)]

    @override
    def tables(self, plan: Plan) -> list[Table]:
        return [Table(self.first_table, ALIASES)]

    @property
    def _fingerprint(self) -> str:
        settings = self.settings.model_dump(mode="json", exclude={"model", "by", "back_from"})
        return digest(settings, self.by, self._version)

    def plan(self) -> Plan:
        """Empty where the alias names the version already.

        Raises InputError where there is nothing to go back to, or where the rule asks for an
        evaluation that has not been made.
        """
        rows = bundles_aliases.moves(self.lake, self.target, self.alias)
        current = rows[-1]["version"] if rows else None
        version = self._version or self._goes_back_to(rows)
        head = open_snapshot(self.first_table)
        values = {"version": version, "held": current, "moves": len(rows), "by": self.by}
        # Judged anew where it was evaluated anew; there and back and there again are three moves.
        judged = self._evaluated(version, current) if version != current else None
        plan = Plan(
            job=self.name,
            target=self.target,
            fingerprint=self._fingerprint,
            night=self.night,
            base={"aliases": head.version if head is not None else -1},
            settings={**self.settings.model_dump(mode="json"), **values},
            key=[self.alias, version, len(rows), judged] if version != current else [],
        )
        if plan.job_id in self._finished:
            return dataclasses.replace(plan, key=[])
        self._planned.add(plan.job_id)
        return plan

    def _goes_back_to(self, rows: bundles_aliases.AliasRows) -> str:
        """Where a rollback goes; what the alias names, if it has gone back from there already."""
        left, current = self.settings.back_from, rows[-1]["version"] if rows else None
        if left is None or current is None or current == left:
            return self._before(rows)
        if (
            rows[-2:-1]
            and rows[-2]["version"] == left
            and bundles_aliases.was_taken_back(rows, left)
        ):
            return current
        raise InputError(
            f"{self.alias} of {self.target} names {current}, not {left}; nothing was changed; look "
            f"(latentlake aliases {self.target})"
        )

    def _before(self, rows: bundles_aliases.AliasRows) -> str:
        """Where a rollback goes."""
        version = bundles_aliases.before(rows)
        here = f"{self.alias} of {self.target}"
        if version is None:
            known = sorted(catalog.aliases(self.lake, self.target))
            if not rows:
                raise unknown_name(f"alias of model {self.target!r}:", self.alias, known)
            raise InputError(
                f"{here} has named nothing before {rows[-1]['version']}: there is nothing to go "
                f"back to; latentlake promote {self.target}@VERSION moves it to another bundle"
            )
        if not is_there(self.lake, self.target, version):
            others = ", ".join(catalog.bundle_versions(self.lake, self.target))
            raise InputError(
                f"{here} named {version} before, but that bundle is gone; promote one of: {others}"
            )
        return version

    @override
    def idle(self, plan: Plan) -> tuple[str, dict[str, Any]]:
        version, current = plan.settings["version"], plan.settings["held"]
        why = f"{self.target}@{version} is {self.alias} already"
        return why, {"promoted": False, "version": version, "held": current, "why": why}

    @override
    def owns(self, plan: Plan) -> bool:
        same = self.settings.back_from in (None, plan.settings["held"])
        return same and plan.fingerprint == self._fingerprint

    @override
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        raise AssertionError("nothing has to be worked out")

    @override
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        settings = plan.settings
        rows = bundles_aliases.moves(self.lake, self.target, self.alias)
        if len(rows) != settings["moves"]:
            self._overtaken(plan, rows)
        version, current = settings["version"], settings["held"]
        counts = {"version": version, "held": current, "alias": self.alias, "by": self.by}
        judged = self.verdict(plan)
        if judged is not None:
            counts["checks"] = [dataclasses.asdict(check) for check in judged.checks]
            if not judged.passes:
                why = self._refusal(version, current, judged)
                refused = {"promoted": False, "why": why, **counts}
                return CommitPlan(files={head.uri: []}, counts=refused)
        reason = self._reason(current, judged)
        row = bundles_aliases.next_row(
            self.lake, head, plan, alias=self.alias, version=version, reason=reason, by=self.by
        )
        promoted = {"promoted": True, "why": reason, **counts}
        return CommitPlan(files={head.uri: [row]}, counts=promoted)

    def _overtaken(self, plan: Plan, rows: bundles_aliases.AliasRows) -> NoReturn:
        """Give up: the alias has moved since the plan was made.

        What this call has just planned, its user decided on a champion that is none any more;
        what an earlier call left behind is only dropped.
        """
        if not rows:
            raise StalePlan(f"{self.first_table} has lost its rows")
        text = f"{self.alias} of {self.target} was {bundles_aliases.last_move_text(rows)} meanwhile"
        if any(row["job_id"] == plan.job_id for row in rows):
            raise CommitConflict(text)  # the very same, requested twice at once: it has landed
        is_wish = rows[-1]["version"] == self._version
        if plan.job_id not in self._planned or is_wish:
            raise StalePlan(text)
        records.drop(self.lake, plan.job_id)
        raise JobError(
            f"{text}; nothing was changed; look (latentlake aliases {self.target}), and "
            f"{self.name} again"
        )

    def post_commit(self, plan: Plan) -> None:
        """Stop here: what an earlier call left, and this one finished, is all that was requested.

        Unless others have moved the alias since.
        """
        self._finished.add(plan.job_id)
        since = bundles_aliases.moves(self.lake, self.target, self.alias)[plan.settings["moves"] :]
        theirs = [row for row in since if row["job_id"] != plan.job_id]
        self.stop_after_recovery = self.settings.back and not theirs

    def verdict(self, plan: Plan) -> Verdict | None:
        """Return what the rule says of the plan's version; None where nothing is requested."""
        version, current = plan.settings["version"], plan.settings["held"]
        if self.settings.rule is None or version == current:
            return None
        if (version, current) not in self._verdicts:
            self._verdicts[version, current] = self._judged(version, current)
        return self._verdicts[version, current]

    def _judged(self, version: str, current: str | None) -> Verdict:
        rule = self.settings.rule
        assert rule is not None
        challenger = self._evaluations(version, version, needed=current is not None)
        if current is None:
            return gate.verdict(rule, [], challenger, None)
        first, second = f"{self.target}@{current}", f"{self.target}@{version}"
        found = compare(
            self.lake, first, second, self._dataset(version), confidence=gate.CONFIDENCE
        )
        champion = self._evaluations(current, version)
        return gate.verdict(rule, found.differences, challenger, champion)

    def _evaluated(self, version: str, current: str | None) -> str | None:
        """Return what the verdict stands on, as a digest; None where there is no rule."""
        if self.settings.rule is None:
            return None
        rows = self._evaluations(version, version, needed=current is not None)
        rows += self._evaluations(current, version) if current is not None else []
        return digest([(r["job_id"], r["metric"], r["of"], r["value"]) for r in rows])

    def _evaluations(
        self, version: str, challenger: str, *, needed: bool = True
    ) -> list[dict[str, Any]]:
        dataset, name = self._dataset(challenger), f"{self.target}@{version}"
        try:
            rows = standing(self.lake, self.target, version, dataset)
        except InputError:
            if needed:
                raise
            rows = []
        if needed and not rows:
            raise InputError(
                f"{name} has not been evaluated on {dataset}; run latentlake evaluate --dataset "
                f"{dataset} --model {name}"
            )
        return list(rows)

    def _dataset(self, version: str) -> str:
        own = self.settings.dataset
        return own or read_about(self.lake, self.target, version)["data"]["dataset"]

    def _reason(self, current: str | None, judged: Verdict | None) -> str:
        given = [self.settings.reason] if self.settings.reason else []
        if judged is not None:
            against = f" against {current}" if current is not None else ""
            return "; ".join([*given, f"passed the gate{against}: {judged.why}"])
        plain = f"back from {current}" if self.settings.back else "on request, without the gate"
        return given[0] if given else plain

    def _refusal(self, version: str, current: str | None, judged: Verdict) -> str:
        stays = f"{self.target}@{current} stays {self.alias}"
        return f"{self.target}@{version} did not pass the gate, {stays}: {judged.why}"


def _challenger(lake: LakePaths, settings: PromoteSettings) -> tuple[str, str]:
    if "@" not in settings.model:
        raise InputError(
            f"{settings.model}: say which version becomes {settings.alias}, as in "
            f"{settings.model}@VERSION"
        )
    model, version = catalog.resolve_model(lake, settings.model)
    versions = catalog.bundle_versions(lake, model)
    if version not in versions:
        known = ", ".join(versions) or "none"
        raise InputError(f"the bundle of {model}@{version} is gone; there are: {known}")
    if settings.alias in versions:
        raise InputError(f"alias {settings.alias!r} is the name of a bundle; use another one")
    return model, version


def _model(lake: LakePaths, settings: PromoteSettings) -> str:
    if "@" in settings.model:
        model = settings.model.partition("@")[0]
        raise InputError(
            f"{settings.model}: a rollback goes to the version before; name the model alone, as "
            f"in latentlake rollback {model}"
        )
    known = catalog.models(lake)
    if settings.model not in known:
        raise unknown_name("model", settings.model, known, f"; {lake.uri} has no models")
    return settings.model
