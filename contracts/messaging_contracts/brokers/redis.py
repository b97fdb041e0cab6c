"""Redis: how it is started and asked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from messaging_contracts.brokers.broker import Command, Container, NotReady, Options
from messaging_contracts.brokers.process import LOOPBACK
from messaging_contracts.brokers.resp import Connection, ReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Redis:
    """As durable as an adapter may ask for: an append-only file synced every second, nothing evicted."""

    name = "redis"
    package = "redis-server"
    client_environment: Mapping[str, str] = {}

    def program(self) -> Path | None:
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        return Path(found) if found else None

    def url(self, host: str, port: int, options: Options) -> str:
        if not options.password:
            return f"redis://{host}:{port}"
        return f"redis://{quote(options.user, safe='')}:{quote(options.password, safe='')}@{host}:{port}"

    def prepare(self, program: Path, home: Path, port: int, options: Options) -> Sequence[Command]:
        settings = {
            "bind": LOOPBACK,
            "port": str(port),
            "dir": _quoted(str(home)),
            "daemonize": "no",
            **_settings(options),
        }
        # A file and not arguments: arguments show in the list of processes, passwords too.
        file = home / "redis.conf"
        file.touch(mode=0o600)
        file.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        return [Command([str(program), str(file)])]

    def container(self, options: Options, host: str, port: int) -> Container:
        arguments = " ".join(f"--{key} {value}" for key, value in _settings(options).items())
        return Container(
            image=os.environ.get("MESSAGING_TEST_REDIS_IMAGE", "redis:8"),
            port=6379,
            command=os.environ.get("MESSAGING_TEST_REDIS_COMMAND", "redis-server") + " " + arguments,
        )

    def version(self, url: str, timeout: float) -> str:
        try:
            with Connection(url, timeout) as connection:
                connection.call("PING")
                information = connection.call("INFO", "server")
        except ReplyError as error:
            if error.code == "NOAUTH":
                raise PermissionError("Redis asks for a password and the URL has none") from None
            raise NotReady(error.code) from None
        if not isinstance(information, str):
            raise NotReady("INFO has no text")
        fields = dict(line.split(":", 1) for line in information.splitlines() if ":" in line)
        return fields["redis_version"]


def _settings(options: Options) -> dict[str, str]:
    settings = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "protected-mode": "no",
    }
    if options.user:
        # The default user goes, so that a client that forgets its name is refused.
        settings["user default"] = "off"
        settings[f"user {options.user}"] = f"on >{options.password} ~* &* +@all"
    elif options.password:
        settings["requirepass"] = _quoted(options.password)
    return settings | dict(options.config)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
