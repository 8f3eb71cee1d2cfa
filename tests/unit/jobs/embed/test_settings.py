"""Settings of embed that do not go together."""

from __future__ import annotations

import pytest

from jobs.embed.settings import EmbedSettings
from jobs.errors import InputError
from jobs.settings import build


def test_settings_that_contradict_each_other_are_refused() -> None:
    for values, message in (
        ({"scores": "none", "reconstructions": "all"}, "reconstructions come with scores"),
        ({"redo": True, "commit_every": 2}, "without commit_every"),
        ({"reconstructions": "some"}, "'none', 'anomalies', 'sample' or 'all'"),
    ):
        with pytest.raises(InputError, match=message):
            build(EmbedSettings, {"dataset": "d", "model": "m", **values})
