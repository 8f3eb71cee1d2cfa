"""The login of a server's home, and that every server of ours has one."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from flows import prefect_env
from flows.login import login_of, new_login
from flows.prefect_env import prepare_prefect, server_environment
from jobs.errors import InputError
from tests.helpers import run_cli

SERVER, CLIENT = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"


def test_a_home_has_one_login_that_only_its_user_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first = login_of(tmp_path)
    finally:
        os.umask(before)
    assert login_of(tmp_path) == first
    assert stat.S_IMODE((tmp_path / "login").stat().st_mode) == 0o600
    user, _, password = first.partition(":")
    assert user == "latentlake"
    assert len(password) >= 43  # 256 bits


def test_logins_are_never_alike() -> None:
    assert len({new_login() for _ in range(100)}) == 100


def test_those_who_come_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(login_of(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8


@pytest.mark.parametrize("what", ["readable", "writable", "a link", "short", "no user"])
def test_a_login_that_others_may_read_or_that_is_none_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "login"
    path.touch(0o600)
    path.write_text({"short": "a:b", "no user": ":" + 40 * "x"}.get(what, new_login()))
    if what in ("readable", "writable"):
        path.chmod(0o640 if what == "readable" else 0o620)
    if what == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="login"):
        login_of(tmp_path)


def test_show_login_prints_what_commands_need_and_starts_nothing(tmp_path: Path) -> None:
    shown = run_cli("serve", "--show-login", "--home", tmp_path / "home")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == login_of(tmp_path / "home") + "\n"
    assert run_cli("serve").code == 2


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(prefect_env, "private_folder", lambda: tmp_path)
    return monkeypatch


def test_a_temporary_server_has_a_login_that_its_command_knows(clean: pytest.MonkeyPatch) -> None:
    prepare_prefect()
    login = os.environ[SERVER]
    assert os.environ[CLIENT] == login
    assert len(login) > 43
    assert os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "https://nowhere.invalid"
    prepare_prefect()
    assert os.environ[SERVER] == login


@pytest.mark.parametrize("how", ["the environment", "a profile"])
def test_another_server_s_login_is_left_alone(
    clean: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    if how == "the environment":
        os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    else:
        profile = 'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
        (tmp_path / "profiles.toml").write_text(profile)
        os.environ["PREFECT_HOME"] = str(tmp_path)
    prepare_prefect()
    assert not {SERVER, CLIENT} & set(os.environ)


def test_a_server_answers_its_own_page_alone(tmp_path: Path) -> None:
    env = server_environment("http://127.0.0.1:4200/api", tmp_path, login_of(tmp_path))
    assert env[SERVER] == env[CLIENT] == login_of(tmp_path)
    assert env["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    assert env["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
