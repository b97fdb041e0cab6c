"""Servers that are no Debian packages: fetched once into the cache, by the ordinary clients of their registries."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
import subprocess
from typing import TYPE_CHECKING

from messaging_contracts.brokers.broker import BrokerUnavailable
from messaging_contracts.brokers.process import cache, what_went_wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

FETCH_TIMEOUT = 900.0

logger = logging.getLogger("messaging_contracts.brokers")


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by `fetch` when it is not complete.

    Others that want the same folder wait meanwhile, in other processes too. What a fetch that failed, or was
    ended, left behind is removed by the next one.
    """
    folder = _folder(name)
    if is_fetched(name):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_fetched(name):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            logger.warning("fetching %s, once", name)
            fetch(folder)
            _mark(folder).touch()
    return folder


def is_fetched(name: str) -> bool:
    """Whether nothing has to be fetched any more."""
    return _mark(_folder(name)).exists()


def run(
    command: Sequence[str],
    purpose: str,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = FETCH_TIMEOUT,
) -> None:
    """Run a command to its end; with this process' environment unless another is given.

    :raises BrokerUnavailable: it failed, or took more than `timeout` seconds; one line with what it said
    """
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise BrokerUnavailable(f"{purpose} took more than {timeout:g} s") from None
    if done.returncode:
        raise BrokerUnavailable(f"{purpose} failed: {what_went_wrong(done.stderr + done.stdout)}")


def check_sums(name: str, folder: Path, sums: Path) -> None:
    """Compare the folder's jars with the sums written down in `sums`, in the form of `sha256sum`.

    :raises BrokerUnavailable: one is missing, one more is there, or one has another sum; all are named
    """
    lines = (line.split(maxsplit=1) for line in sums.read_text().splitlines())
    wanted = {jar: digest for digest, jar in lines}
    came = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.glob("*.jar")}
    faults = [
        *(f"{jar} is missing" for jar in sorted(wanted.keys() - came.keys())),
        *(f"{jar} is not expected" for jar in sorted(came.keys() - wanted.keys())),
        *(
            f"{jar} has the SHA-256 {came[jar]} instead of {wanted[jar]}"
            for jar in sorted(came.keys() & wanted.keys())
            if came[jar] != wanted[jar]
        ),
    ]
    if faults:
        raise BrokerUnavailable(
            f"what was downloaded for {name} is not what {sums.name} says, so it is not run: {'; '.join(faults)}"
        )


def _folder(name: str) -> Path:
    return cache() / "servers" / name


def _mark(folder: Path) -> Path:
    return folder / ".complete"
