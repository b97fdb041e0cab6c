"""The guide is true: its files run as they stand there, its tables have the defaults of the code."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from messaging import App

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
FILES = dict(re.findall(r"^`([\w.]+)`\n\n```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"


@pytest.fixture
def service(tmp_path: Path) -> Path:
    for name, text in {**FILES, "pytest.ini": INI}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_python_block_is_a_file_that_is_tested():
    assert GUIDE.count("```python\n") == len(FILES)
    assert set(FILES) == {"stock.py", "test_stock.py", "by_hand.py", "ledger.py", "tenants.py", "web.py"}


def test_its_programs_are_called_by_the_python_that_has_the_library():
    calls = re.findall(
        r"^(?:\w+=\S+ )*(\S*python\S*) ",
        "\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)),
        re.MULTILINE,
    )

    assert calls
    assert set(calls) == {".venv/bin/python"}


def test_the_files_pass_strict_type_checks(python, service):
    run = python(["-m", "mypy", "--strict", "--cache-dir", "mypy", *sorted(FILES)], cwd=service)

    assert run.returncode == 0, run.stdout + run.stderr


def test_the_service_is_tested_without_a_broker(python, service):
    run = python(["-m", "pytest", "-q", "-W", "error"], cwd=service)

    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


def test_consuming_by_hand_prints_what_the_guide_says(python, service):
    run = python(["by_hand.py"], cwd=service)

    assert run.stdout == "Invoice(number='d', cents=700)\n", run.stderr


SERVER = """
import asyncio, os
from stock import Invoice, invoices
from web import lifespan

async def serve():
    async with lifespan(None) as state:
        await state["bus"].publish(invoices, Invoice("a", 500))
        print("published", flush=True)
        if {ends}:
            await state["bus"].delete_group(invoices, "warehouse")
            await asyncio.Event().wait()

asyncio.run(serve())
"""


@pytest.mark.parametrize(("ends", "code"), [(False, 0), (True, -signal.SIGTERM)])
def test_a_web_application_ends_when_its_subscription_ended_for_good(python, service, ends, code):
    (service / "server.py").write_text(SERVER.format(ends=ends))
    environment = {"MESSAGING_URL": "memory://", "MESSAGING_STORE": "memory://", "HEALTH_PORT": "0"}

    run = python(["server.py"], cwd=service, environment=environment)

    assert (run.returncode, run.stdout) == (code, "published\n"), run.stderr


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("ledger.py", {"booked for account of p1", "booked for account of p2"}),
        ("tenants.py", {"north WHY"}),
    ],
)
def test_what_is_booked_once_and_carried_on_prints_what_the_guide_says(python, service, program, printed):
    run = python([program], cwd=service)

    assert sorted(run.stdout.splitlines()) == sorted(printed), run.stderr


def test_the_table_has_each_argument_of_subscribe():
    told = re.search(r"^\| argument of `subscribe`.*?\n\n", GUIDE, re.MULTILINE | re.DOTALL)
    assert told is not None
    rows = [row.split("|")[1] for row in told[0].splitlines()[2:] if row]

    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == (
        set(inspect.signature(App.subscribe).parameters) - {"self", "topic"}
    )


@pytest.mark.parametrize(
    "broker_url",
    [
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ],
    indirect=True,
)
def test_the_service_tells_its_health_and_ends_in_peace(service, broker_url, redis_url):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    separator = "&" if urlsplit(broker_url).query else "?"
    environment = {
        **os.environ,
        "MESSAGING_URL": f"{broker_url}{separator}namespace=guide-{uuid.uuid4().hex[:8]}",
        "MESSAGING_STORE": redis_url,
        "HEALTH_PORT": str(port),
    }
    with subprocess.Popen([sys.executable, "stock.py"], cwd=service, env=environment) as process:
        try:
            health = _green(f"http://127.0.0.1:{port}")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=40) == 0
        finally:
            process.kill()

    assert {one["topic"] for one in health["subscriptions"]} == {"stock.moves", "invoices", "stock.level"}


def _green(url: str) -> dict[str, list[dict[str, str]]]:
    """What the program tells of itself as soon as all is well."""
    deadline = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                health = json.load(answer)
            if health["status"] == "green":
                return health
            told = health
        except OSError as error:
            told = error
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
