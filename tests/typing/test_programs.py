"""Both strict type checkers accept what is right and refuse what is wrong, as a user runs them: without any flag."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
NAMES = sorted(path.name for path in PROGRAMS.glob("*.py"))
Found = dict[str, dict[int, str]]


def marked(name: str) -> set[int]:
    lines = (PROGRAMS / name).read_text().splitlines()
    return {number for number, line in enumerate(lines, start=1) if line.endswith("# error")}


def collected(errors: Iterable[tuple[str, int, str]]) -> Found:
    found: Found = {name: {} for name in NAMES}
    for file, line, message in errors:
        found.setdefault(Path(file).name, {})[line] = message
    return found


@pytest.fixture(scope="module")
def pyright(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What pyright says of all programs, by file and line."""
    project = tmp_path_factory.mktemp("pyright")
    (project / "pyrightconfig.json").write_text(
        json.dumps({"typeCheckingMode": "strict", "pythonVersion": "3.11"})
    )
    shutil.copytree(PROGRAMS, project / "programs")  # pyright looks below its project only
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(project)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(NAMES)
    return collected(
        (item["file"], item["range"]["start"]["line"] + 1, item["message"])
        for item in report["generalDiagnostics"]
        if item["severity"] == "error"
    )


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What mypy says of all programs, by file and line."""
    project = tmp_path_factory.mktemp("mypy")
    (project / "mypy.ini").write_text("[mypy]\nstrict = true\npython_version = 3.11\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            "mypy.ini",
            "--cache-dir",
            str(ROOT / ".mypy_cache" / "typing"),
            "--no-error-summary",
            "--hide-error-context",
            *(str(PROGRAMS / name) for name in NAMES),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=project,
    )
    assert done.returncode in {0, 1}, done.stderr + done.stdout
    lines = [re.fullmatch(r"(.+?\.py):(\d+): error: (.*)", line) for line in done.stdout.splitlines()]
    return collected((line[1], int(line[2]), line[3]) for line in lines if line)


@pytest.mark.parametrize("name", NAMES)
def test_pyright_strict_refuses_the_marked_lines_and_no_other(name: str, pyright: Found) -> None:
    assert {line: pyright[name].get(line, "") for line in pyright[name].keys() | marked(name)} == {
        line: pyright[name].get(line, "nothing was refused here") for line in marked(name)
    }


@pytest.mark.parametrize("name", NAMES)
def test_mypy_strict_refuses_the_marked_lines_and_no_other(name: str, mypy: Found) -> None:
    assert {line: mypy[name].get(line, "") for line in mypy[name].keys() | marked(name)} == {
        line: mypy[name].get(line, "nothing was refused here") for line in marked(name)
    }


def test_a_refused_program_has_something_to_refuse() -> None:
    assert "accepted.py" in NAMES
    assert {name: bool(marked(name)) for name in NAMES} == {
        name: name.startswith("refused") for name in NAMES
    }
