"""What is left of a broker on this machine."""

import time
from contextlib import suppress
from pathlib import Path

from messaging_contracts.brokers.process import NativeBroker

# 127.0.0.1, the same as an IPv6 address, and ::1, as the kernel writes them
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
LISTENING = "0A"


def left_behind(home: Path) -> list[str]:
    """The command lines of all processes that run in, or were told of, a broker's folder."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            folder = (process / "cwd").readlink()
        except OSError:
            continue
        if str(home) in arguments or folder.is_relative_to(home):
            found.append(arguments)
    return found


def wait_until_nothing_is_left(home: Path, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while left_behind(home) or home.exists():
        assert time.monotonic() < deadline, f"left behind: {left_behind(home)}, folder: {home.exists()}"
        time.sleep(0.02)


def listening_addresses(broker: NativeBroker) -> set[str]:
    """The addresses that a broker's processes listen on, as the kernel writes them."""
    inodes: set[str] = set()
    for process in broker._processes:
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                inodes.add(str(link.readlink()))
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {
        fields[1].partition(":")[0]
        for fields in lines
        if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes
    }
