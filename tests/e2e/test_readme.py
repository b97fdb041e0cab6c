"""The README is true: its files run as they stand there, and its commands and links exist."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FILES = dict(re.findall(r"^`([\w.]+)`\n\n```(?:python|ini)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))

DEAD_LETTERS = [line.split() for line in re.findall(r"^\.venv/bin/messaging (.*)$", README, re.MULTILINE)]


@pytest.fixture
def service(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def environment(broker_url: str) -> dict[str, str]:
    separator = "&" if urlsplit(broker_url).query else "?"
    return {"MESSAGING_URL": f"{broker_url}{separator}namespace=readme-{uuid.uuid4().hex[:8]}"}


def test_every_python_block_is_a_file_that_is_tested():
    assert README.count("```python\n") + README.count("```ini\n") == len(FILES)
    assert set(FILES) == {
        "billing.py",
        "test_billing.py",
        "pytest.ini",
        "place_order.py",
        "mend.py",
        "prices.py",
        "test_on_brokers.py",
    }


def test_the_files_pass_strict_type_checks(python, service):
    run = python(["-m", "mypy", "--strict", "--cache-dir", "mypy", *_modules()], cwd=service)

    assert run.returncode == 0, run.stdout + run.stderr


def test_the_service_is_tested_without_a_broker(python, service):
    run = python(["-m", "pytest", "-q", "-W", "error", "test_billing.py"], cwd=service)

    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout


def test_asking_and_answering_prints_what_the_readme_says(python, service):
    run = python(["prices.py"], cwd=service)

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "1200 None\n"


def test_the_tests_on_brokers_run_on_each(python, service, redis_url, rabbitmq_url):
    run = python(
        [
            *("-m", "pytest", "-q", "-W", "error"),
            *("--messaging-broker", "memory,redis,rabbitmq", "test_on_brokers.py"),
        ],
        cwd=service,
        environment={"MESSAGING_TEST_REDIS_URL": redis_url, "MESSAGING_TEST_RABBITMQ_URL": rabbitmq_url},
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


@pytest.mark.parametrize(
    "broker_url",
    [
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ],
    indirect=True,
)
def test_the_service_runs_on_a_broker_and_its_dead_letter_is_mended(python, service, environment):
    for order in (["o1", "c1", "500"], ["o2", "c2", "0"], ["o3", "c2", "700"]):
        placed = python(["place_order.py", *order], cwd=service, environment=environment)
        assert placed.returncode == 0, placed.stdout + placed.stderr

    charged = _serve(service, environment, {"charged c1 500", "charged c2 700"})
    looked = [
        python(["-m", "messaging", *command], cwd=service, environment=environment)
        for command in DEAD_LETTERS
    ]
    mended = python(["mend.py"], cwd=service, environment=environment)
    charged_later = _serve(service, environment, {"charged c2 100"})

    assert charged == {"charged c1 500", "charged c2 700"}
    assert [run.returncode for run in looked] == [0, 0, 0], [run.stderr for run in looked]
    assert re.search(r"^o2 .* rejected .* nothing to charge$", looked[0].stdout, re.MULTILINE)
    assert [run.stdout for run in looked[1:]] == ["would redrive 1\n", "would purge 1\n"]
    assert mended.stdout == "o2 rejected nothing to charge\n1 redriven\n", mended.stderr
    assert charged_later == {"charged c2 100"}


def _modules() -> list[str]:
    return sorted(name for name in FILES if name.endswith(".py"))


def _serve(service: Path, environment: dict[str, str], expected: set[str]) -> set[str]:
    """Run the service until it has printed what is expected, then end it: it drains and exits with 0."""
    with subprocess.Popen(
        [sys.executable, "billing.py"],
        cwd=service,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        # The pipe ends with the process: a service that prints nothing ends this test, too.
        overdue = threading.Timer(40, process.kill)
        overdue.start()
        try:
            assert process.stdout is not None
            printed: set[str] = set()
            while not expected <= printed and (line := process.stdout.readline()):
                printed.add(line.strip())
            process.send_signal(signal.SIGTERM)
            printed.update(process.stdout.read().splitlines())
            assert process.wait() == 0, printed
            return printed
        finally:
            overdue.cancel()
            process.kill()


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_the_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_no_link_of_the_documentation_is_broken(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())

    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert not missing
