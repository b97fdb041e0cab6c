"""How a command ends where its output or its user does not wait for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from messaging.cli import main

OF_A_GROUP = "--url memory:// --topic orders --group billing --app APP"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith("MESSAGING_"):
            monkeypatch.delenv(variable)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_who_reads_the_output_may_leave_early(unbuffered: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "messaging", "config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        cwd=tmp_path,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()

        assert command.stderr.read() == ""
        assert command.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("command", ["config", "config shop:app", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_an_output_that_cannot_be_written_is_told_in_one_line(
    command: str, unbuffered: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text("import messaging\napp = messaging.App('shop')\n")

    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "messaging", *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            cwd=tmp_path,
        )

    assert done.stderr == "the output was not written: No space left on device\n"
    assert done.returncode == 1


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


@pytest.fixture
def loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, str], str]:
    """Run a command for a program of this source: what it says of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    name = f"broken_{tmp_path.name.replace('-', '_')}"  # never imported before

    def told(command: str, source: str) -> str:
        Path(f"{name}.py").write_text(source)
        assert main([word.replace("APP", f"{name}:app") for word in command.split()]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error.replace(str(tmp_path), "").replace(name, "shop")

    return told


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os\n\nurl = os.environ['NOT_SET']", "KeyError: 'NOT_SET' (/shop.py, line 3)"),
        ("from messaging import App\n\nApp('')", "ConfigurationError: illegal group name ''"),
        ("import sys\n\nsys.exit()", "SystemExit (/shop.py, line 3)"),
        ("raise SystemExit(0)", "SystemExit: 0 (/shop.py, line 1)"),
        (
            "raise ValueError('no database at postgresql://me:secret@db/shop, give up')",
            "ValueError: no database at postgresql://me:***@db/shop, give up (/shop.py, line 1)",
        ),
        ("app = (", "SyntaxError: '(' was never closed (shop.py, line 1)"),
        ("assert False", "AssertionError (/shop.py, line 1)"),
        ("from messaging import Nothing", "ImportError: cannot import name 'Nothing' from 'messaging'"),
        ("def __getattr__(name):\n    1 / 0", "ZeroDivisionError: division by zero (/shop.py, line 2)"),
    ],
)
def test_a_program_that_cannot_be_loaded_is_told_with_its_line(
    loading: Callable[[str, str], str], source: str, told: str
) -> None:
    assert loading("config APP", source).startswith(f"ConfigurationError: shop:app cannot be loaded: {told}")


@pytest.mark.parametrize(
    "command",
    [
        "config APP",
        *(f"dead-letters {verb} {OF_A_GROUP}" for verb in ("list", "redrive --all", "purge --all")),
    ],
)
def test_every_command_tells_a_program_that_cannot_be_loaded_alike(
    loading: Callable[[str, str], str], command: str
) -> None:
    assert loading(command, "1 / 0") == (
        "ConfigurationError: shop:app cannot be loaded: ZeroDivisionError: division by zero (/shop.py, line 1)\n"
    )


def test_an_interrupted_command_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "interrupted_app.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert main(["config", "interrupted_app:app"]) == 130

    assert capsys.readouterr().err == "interrupted\n"
