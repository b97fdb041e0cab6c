"""How a command ends where its output or its user does not wait for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from messaging.cli import main


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith("MESSAGING_"):
            monkeypatch.delenv(variable)


def test_who_reads_the_output_may_leave_early(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "messaging", "config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()

        assert command.stderr.read() == ""
        assert command.wait(60) == 1


def test_an_output_that_has_not_all_characters_shows_them_escaped(tmp_path: Path) -> None:
    (tmp_path / "größe.toml").write_text('namespace = "staging"\n')

    done = subprocess.run(
        [sys.executable, "-m", "messaging", "config"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "MESSAGING_CONFIG": "größe.toml", "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
    )

    (line,) = [line for line in done.stdout.splitlines() if line.startswith("namespace ")]
    assert line.split()[1:] == ['"staging"', r"gr\xf6\xdfe.toml"]


def test_an_interrupted_command_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "interrupted_app.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert main(["config", "interrupted_app:app"]) == 130

    assert capsys.readouterr().err == "interrupted\n"
