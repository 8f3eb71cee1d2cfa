"""`latentlake` commands, one after the other in one process: the far side of CommandProcess.

A line of JSON on stdin is a command; a line of JSON on stdout says how it ended. What a command
prints goes to the two files that it names.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any


def loop() -> None:
    commands = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for line in commands:
        answers.write(json.dumps({"code": run(**json.loads(line))}) + "\n")
        answers.flush()


def run(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> int:
    """The exit code that the command would end a process of its own with."""
    held = os.dup(1), os.dup(2)
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    os.chdir(cwd)
    # Below sys.stdout and sys.stderr, which loggers keep hold of.
    for path, number in ((out, 1), (err, 2)):
        written = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(written, number)
        os.close(written)
    try:
        return _command(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in enumerate(held, 1):
            os.dup2(kept, number)
            os.close(kept)
        _restore(before)


def _command(arguments: list[str]) -> int:
    from flows.cli.main import main

    sys.argv = ["latentlake", *arguments]
    try:
        main()
    except SystemExit as ended:
        code: Any = ended.code
        return code if isinstance(code, int) else int(code is not None)
    except BaseException:  # noqa: BLE001 - as an interpreter ends with it
        traceback.print_exc()
        return 1
    return 0


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


if __name__ == "__main__":
    loop()
