"""A broker ends with the process that started it, in whatever way that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from messaging_contracts.brokers.resp import Connection
from tests.brokers.processes import left_behind, wait_until_nothing_is_left

pytestmark = pytest.mark.redis

STARTER = """
import os, signal, sys, time
from messaging_contracts import brokers
broker = brokers.start("redis", own=True)
print(broker.home, flush=True)
{end}
"""

ENDS = {
    "return": "",
    "exception": "raise SystemExit(1)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)",
    # What runs in the background of a shell ignores SIGINT.
    "SIGINT": "signal.signal(2, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); time.sleep(30)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "os._exit": "os._exit(0)",
    "killed broker": "broker.kill()",
}


def environment() -> dict[str, str]:
    # Without Docker: the starter is another process, out of reach of a monkeypatch.
    hidden = ("DOCKER_HOST", "TC_HOST", "MESSAGING_TEST_REDIS_URL", "MESSAGING_TEST_REDIS_IMAGE")
    return {name: value for name, value in os.environ.items() if name not in hidden}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_it_ends_with_its_starter(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTER.format(end=end)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment(),
    )
    assert done.stdout, done.stderr
    wait_until_nothing_is_left(Path(done.stdout.strip()))


def test_it_does_not_end_with_a_forked_child_of_its_starter() -> None:
    code = STARTER.format(
        end="if os.fork() == 0: sys.exit()\nos.wait()\nprint(open(f'/proc/{broker.pid}/comm').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment(),
    )
    assert "redis-server" in done.stdout, done.stderr


def test_up_prints_urls_and_ends_what_it_started_on_sigterm(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "messaging_contracts", "up", "redis"],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "MESSAGING_CACHE": str(tmp_path)},
    ) as up:
        assert up.stdout is not None
        name, _, url = up.stdout.readline().strip().partition("=")
        assert name == "MESSAGING_TEST_REDIS_URL"
        assert "SIGTERM" in up.stdout.readline()
        with Connection(url, timeout=10) as connection:
            assert connection.call("PING") == "PONG"
        up.send_signal(signal.SIGTERM)
        assert up.wait(10) == 128 + signal.SIGTERM
    assert not left_behind(tmp_path)
    assert not list(tmp_path.iterdir())


def test_run_hands_urls_over_and_ends_with_the_commands_status() -> None:
    command = "import os; print(os.environ['MESSAGING_TEST_REDIS_URL']); raise SystemExit(3)"
    done = subprocess.run(
        [sys.executable, "-m", "messaging_contracts", "run", "redis", "--", sys.executable, "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment(),
    )
    assert done.stdout.startswith("redis://127.0.0.1:")
    assert done.returncode == 3


@pytest.mark.parametrize("arguments", [["up", "redis", "--", "true"], ["run", "redis"], ["up", "pigeon"], []])
def test_what_cannot_be_meant_is_refused(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "messaging_contracts", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert "usage:" in done.stderr
