"""The SQLite adapter of `examples/custom_adapter` is an outsider's package: it has nothing that a stranger has not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from messaging_contracts import all_cases

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
LIBRARIES = ("redis", "aiormq", "aiokafka", "boto3")
LEFT_OUT = 2
"""Cases of stopped processes: one that is stopped inside a transaction holds SQLite's lock, and with it all others."""
OWN = 1
"""Tests of its own beside the suite."""
PROGRAM = """
import asyncio, sys
from importlib.util import find_spec
from messaging import App, Topic, connect

assert not [name for name in {libraries} if find_spec(name)]
orders = Topic("orders", str)

async def main():
    async with connect() as bus:
        if "publish" in sys.argv:
            await bus.declare(orders, groups=["billing"])
            await bus.publish(orders, "from another process")
        else:
            async with bus.consume(orders, group="billing") as pull:
                print((await anext(pull)).payload)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run the Python of an environment that has only this package with its extra, in a folder of its own."""
    folder = tmp_path_factory.mktemp("outside")
    package = shutil.copytree(
        ROOT / "examples" / "custom_adapter", folder / "package", ignore=shutil.ignore_patterns("__pycache__")
    )
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESSAGING")}

    def run(*arguments: str, **variables: str) -> str:
        done = subprocess.run(
            [interpreter, *arguments],
            cwd=package,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    options = ("--quiet", "--disable-pip-version-check", "--no-input")
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    run("-m", "pip", "install", *options, *constraints, str(ROOT), f"{package}[test]")
    return run


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_passes_the_suite_where_only_its_extra_is_installed(outside):
    shown = outside("-m", "pytest", "-q", "-p", "no:cacheprovider")

    passed = re.search(r"^(\d+) passed in", shown, re.MULTILINE)
    assert passed is not None, shown
    assert int(passed[1]) == len(all_cases()) - LEFT_OUT + OWN


@pytest.mark.slow
def test_the_scenarios_break_it_as_they_break_our_own_brokers(outside):
    broker = ("--broker", "tests.ground:SQLiteGround")

    shown = outside("-m", "messaging_contracts", "faults", *broker, "--only", "killed_member")

    assert shown.startswith("held killed_member on sqlite")


@pytest.mark.slow
def test_what_one_process_published_another_handles_after_it(outside, tmp_path):
    program = PROGRAM.format(libraries=LIBRARIES)
    url = f"sqlite:///{tmp_path / 'orders.db'}"

    outside("-c", program, "publish", MESSAGING_URL=url)

    assert outside("-c", program, "consume", MESSAGING_URL=url) == "from another process\n"
