"""What is left of a broker on this machine."""

import time
from pathlib import Path


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
