"""What a job on a cluster tells through its log, and what is heard of it."""

from __future__ import annotations

import logging

import pytest

from jobs.dispatch import log_protocol
from jobs.engine.progress import Progress, listening
from jobs.errors import ClusterError, InputError, JobError, LatentlakeError, StorageError


def heard(text: str) -> log_protocol.LogReader:
    found = log_protocol.LogReader()
    found.text(text, all_of_it=True)
    return found


def test_a_result_comes_through_whole(capsys: pytest.CaptureFixture[str]) -> None:
    report = {"job": "stage", "counts": {"staged": 3, "share": 0.5}, "note": "ü\n@latentlake {}"}
    log_protocol.tell("result", report)
    assert heard(capsys.readouterr().out).result == report


@pytest.mark.parametrize("kind", [InputError, StorageError, ClusterError, JobError])
def test_an_error_keeps_its_class(
    kind: type[LatentlakeError], capsys: pytest.CaptureFixture[str]
) -> None:
    log_protocol.tell_error(kind("it is wrong"))
    error = heard(capsys.readouterr().out).error
    assert type(error) is kind
    assert str(error) == "it is wrong"


def test_an_error_of_an_unknown_class_is_one_of_the_job(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Odd(LatentlakeError):
        pass

    log_protocol.tell_error(Odd("odd"))
    assert type(heard(capsys.readouterr().out).error) is JobError


def test_progress_reaches_listeners(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("embed d", "embedded")
    progress.planned, progress.done = 4, 1
    log_protocol.tell_progress(progress)
    seen: list[tuple[str, str, int, int]] = []
    with listening(lambda p: seen.append((p.title, str(p), p.done, p.planned))):
        heard(capsys.readouterr().out)
    assert seen == [("embed d", str(progress), 1, 4)]


def test_log_lines_keep_their_level(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    record = logging.LogRecord("latentlake", logging.WARNING, "f", 1, "a %s", ("b",), None)
    log_protocol.LogLines().emit(record)
    with caplog.at_level(logging.INFO, "latentlake"):
        heard(capsys.readouterr().out)
    assert [(line.levelname, line.message) for line in caplog.records] == [("WARNING", "a b")]


def test_lines_of_others_are_passed_on_and_the_last_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "latentlake"):
        found = heard("\n".join(f"\x1b[33mline\x1b[0m {number}" for number in range(20)))
    assert found.result is None
    assert found.last == [f"line {number}" for number in range(10, 20)]
    assert len(caplog.records) == 20


def test_a_line_after_one_without_an_end_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    log_protocol.tell("result", {"a": 1})
    told = "no line end" + capsys.readouterr().out
    assert heard(told).result == {"a": 1}


@pytest.mark.parametrize("odd", ["@latentlake {", "@latentlake []", "@latentlake 3", "@latentlake"])
def test_what_only_looks_like_ours_is_someone_elses(odd: str) -> None:
    found = heard(odd)
    assert found.last == [odd]


def test_a_log_that_grows_is_heard_once_and_only_whole_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress("embed d", "embedded")
    for progress.done in range(5):
        log_protocol.tell_progress(progress)
    log_protocol.tell("result", {"a": 1})
    log = capsys.readouterr().out
    found, seen = log_protocol.LogReader(), []
    with listening(lambda p: seen.append(p.done)):
        for end in range(0, len(log), 10):
            found.text(log[:end])
        assert found.result is None
        found.text(log)
        assert found.result == {"a": 1}
        assert seen == [0, 1, 2, 3, 4]
        # Who comes later hears how far it is, not how it came there.
        seen.clear()
        log_protocol.LogReader().text(log)
    assert seen == [4]


def test_the_log_of_an_id_that_was_used_before_begins_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_protocol.tell_error(JobError("of old"))
    log = capsys.readouterr().out + "Running entrypoint for job x: python\n"
    assert heard(log).error is None
