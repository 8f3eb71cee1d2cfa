"""What prefect is told before it is imported."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from flows.prefect_env import prepare_prefect, private_folder
from jobs.errors import InputError


def test_a_user_does_not_set_how_often_a_run_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch of a server would take a run that is heard of less often for lost."""
    own = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "300", "PREFECT_LOGGING_LEVEL": "DEBUG"}
    monkeypatch.setattr(os, "environ", os.environ.copy() | own)
    prepare_prefect()
    assert os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert os.environ["PREFECT_LOGGING_LEVEL"] == "DEBUG"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the private folder will be."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"latentlake-{os.getuid()}"


def test_the_private_folder_is_shut(own: Path) -> None:
    assert private_folder() == own
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.chmod(0o755)  # others could look into it, and put nothing there
    assert private_folder() == own
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["open", "open to a group", "a link", "a file"])
def test_a_private_folder_that_others_may_have_made_is_refused(own: Path, what: str) -> None:
    if what == "a link":
        own.with_name("elsewhere").mkdir(0o700)
        own.symlink_to(own.with_name("elsewhere"))
    elif what == "a file":
        own.touch()
    else:
        own.mkdir()
        own.chmod(0o777 if what == "open" else 0o770)
    with pytest.raises(InputError, match="not yours alone"):
        private_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="another user's folder is made by root")
def test_another_user_s_folder_is_refused(own: Path) -> None:
    own.mkdir(0o700)
    os.chown(own, 12345, 12345)
    with pytest.raises(InputError, match="not yours alone"):
        private_folder()
