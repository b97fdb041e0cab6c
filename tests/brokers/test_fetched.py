import hashlib
import sys
import threading
from pathlib import Path

import pytest

from messaging_contracts.brokers import BrokerUnavailable, kafka
from messaging_contracts.brokers.fetched import check_sums, fetched, is_fetched, run
from messaging_contracts.brokers.java import class_path
from messaging_contracts.brokers.process import what_went_wrong


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESSAGING_CACHE", str(tmp_path))


def test_it_is_fetched_once_by_all_who_want_it() -> None:
    fetches: list[Path] = []
    threads = [threading.Thread(target=fetched, args=("server-1", fetches.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetches) == 1
    assert is_fetched("server-1")


def test_a_fetch_that_failed_is_begun_anew() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise BrokerUnavailable("no network")

    with pytest.raises(BrokerUnavailable, match="no network"):
        fetched("server-1", fail)
    assert not is_fetched("server-1")
    assert not (fetched("server-1", lambda folder: (folder / "whole").touch()) / "half").exists()


def test_what_came_is_compared_with_the_sums_written_down(tmp_path: Path) -> None:
    sums = tmp_path / "server.sha256"
    sums.write_text("".join(f"{hashlib.sha256(b'x').hexdigest()}  {name}.jar\n" for name in "abc"))
    for name, content in {"a": b"x", "b": b"y", "d": b"x"}.items():
        (tmp_path / f"{name}.jar").write_bytes(content)
    with pytest.raises(BrokerUnavailable) as raised:
        check_sums("server-1", tmp_path, sums)
    text = str(raised.value)
    assert "server-1" in text
    assert "c.jar is missing" in text
    assert "d.jar is not expected" in text
    assert f"b.jar has the SHA-256 {hashlib.sha256(b'y').hexdigest()}" in text
    assert "a.jar" not in text


def test_a_server_that_is_not_what_was_written_down_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    maven = programs / "mvn"
    maven.write_text(
        '#!/bin/sh\nfor a; do case "$a" in *outputDirectory=*) : > "${a#*=}/evil.jar";; esac; done\n'
    )
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(BrokerUnavailable, match=r"evil\.jar is not expected"):
        class_path(kafka.SERVER, kafka.ARTIFACTS)
    assert not is_fetched(kafka.SERVER)


def test_a_command_that_fails_tells_why_in_one_line() -> None:
    with pytest.raises(BrokerUnavailable, match=r"^a download failed: ERROR: no such thing$"):
        run([sys.executable, "-c", "print('ERROR: no such thing\\nbye'); exit(1)"], "a download")
    with pytest.raises(BrokerUnavailable, match="a download took more than"):
        run([sys.executable, "-c", "input(); import time; time.sleep(9)"], "a download", timeout=0)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", "it said nothing"),
        ("starting\nwrong port\n\n", "wrong port"),
        ("[ERROR] no such artifact\n[ERROR] see the manual", "[ERROR] no such artifact"),
        ("WARN x\njava.lang.Error: a\n\tat b.c(D.java:1)\n\t... 2 more\n", "java.lang.Error: a"),
        ("java.lang.Error: a\nCaused by: b\n\tat c\nCaused by: d\nbye", "Caused by: d"),
    ],
)
def test_of_what_a_program_said_the_line_that_tells_most_is_shown(output: str, line: str) -> None:
    assert what_went_wrong(output) == line
