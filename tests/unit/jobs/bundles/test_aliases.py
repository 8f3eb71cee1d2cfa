"""What an alias named before, as a rollback has it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.bundles.aliases import before, was_taken_back


def told(*steps: str) -> list[dict[str, Any]]:
    """Rows of an alias: `a` is a promotion, `<a` what a rollback went back to."""
    return [
        {"version": step[-1], "job_id": ("rollback-1" if step[0] == "<" else "promote-1")}
        for step in steps
    ]


@pytest.mark.parametrize(
    ("steps", "goes_to"),
    [
        ("", None),
        ("a", None),
        ("a b", "a"),
        ("a b c", "b"),
        ("a b c <b", "a"),  # on, not back and forth
        ("a b c <b <a", None),
        ("a b <a c", "a"),  # what was rolled back does not come up again
        ("a b <a c <a", None),
        ("a b a", "b"),  # promoted back on purpose
        ("a b a <b", "a"),
        ("a b a <b <a", None),
        ("a a b", "a"),
        ("a a", None),
    ],
)
def test_a_rollback_undoes_the_last_promotion_that_still_holds(steps: str, goes_to) -> None:
    assert before(told(*steps.split())) == goes_to


@pytest.mark.parametrize(
    ("steps", "version", "taken_back"),
    [
        ("a b <a", "b", True),
        ("a b <a", "a", False),
        ("a b c", "b", False),  # another one was promoted on top
        ("a b <a b c", "b", False),  # promoted again on purpose
        ("a", "a", False),
        ("a", "b", False),
    ],
)
def test_what_was_rolled_back_is_known(steps: str, version: str, taken_back: bool) -> None:
    """So that no night promotes it by itself."""
    assert was_taken_back(told(*steps.split()), version) is taken_back
