"""RabbitMQ: how it is started and asked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from messaging_contracts.brokers.amqp import handshake
from messaging_contracts.brokers.broker import BrokerUnavailable, Command, Container, Options
from messaging_contracts.brokers.process import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Behind the wrapper in /usr/sbin, which would change to the user `rabbitmq` and lose sight of our folders.
SCRIPT_FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")


class RabbitMQ:
    """A node of its own beside any other: own name, ports, port mapper, cookie and folders."""

    name = "rabbitmq"
    package = "rabbitmq-server"
    client_environment: Mapping[str, str] = {}

    def program(self) -> Path | None:
        folders = os.pathsep.join([*SCRIPT_FOLDERS, os.environ.get("PATH", "")])
        found = shutil.which("rabbitmq-server", path=folders)
        return Path(found) if found else None

    def url(self, host: str, port: int, options: Options) -> str:
        user, password = options.user or "guest", options.password or "guest"
        return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}/"

    def prepare(self, program: Path, home: Path, port: int, options: Options) -> Sequence[Command]:
        mapper = shutil.which("epmd")
        if mapper is None:
            raise BrokerUnavailable("rabbitmq-server is there but Erlang's epmd is not: install erlang-base")
        settings = {**_settings(options), **options.config}
        file = home / "rabbitmq.conf"
        file.touch(mode=0o600)
        file.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        advanced = home / "advanced.config"
        advanced.write_text(_ADVANCED)
        plugins = home / "enabled_plugins"
        plugins.write_text("[].\n")
        mapper_port = str(free_port())
        environment = {
            "HOME": str(home),  # Erlang keeps its cookie there
            "ERL_EPMD_PORT": mapper_port,
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": f"messaging-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
            "RABBITMQ_CONFIG_FILE": str(file),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(advanced),
            "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            # Busy waiting of its schedulers would take the tests' own processor.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none"
            " -kernel inet_dist_use_interface {127,0,0,1}",
            # The start script then becomes the server instead of staying in front of it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        # Started by us, so that it is also ended by us: Erlang's own would stay behind as a daemon.
        mapper_command = Command([mapper, "-address", LOOPBACK, "-port", mapper_port])
        return [mapper_command, Command([str(program)], environment)]

    def container(self, options: Options, host: str, port: int) -> Container | None:
        if options.config:  # the image has no place for lines of configuration
            return None
        return Container(
            image=os.environ.get("MESSAGING_TEST_RABBITMQ_IMAGE", "rabbitmq:4"),
            port=5672,
            command=os.environ.get("MESSAGING_TEST_RABBITMQ_COMMAND", ""),
            environment={
                "RABBITMQ_DEFAULT_USER": options.user or "guest",
                "RABBITMQ_DEFAULT_PASS": options.password or "guest",
            },
        )

    def version(self, url: str, timeout: float) -> str:
        return handshake(url, timeout)


_ADVANCED = (
    "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}, {channel_tick_interval, 1000}]}].\n"
)
"""Milliseconds until a delay queue hands over again what was not confirmed, as while the broker starts; else 180 s.
And how often a channel looks whether it waits for longer than `consumer_timeout`; else every 60 s."""


def _settings(options: Options) -> dict[str, str]:
    return {
        "default_user": options.user or "guest",
        "default_pass": options.password or "guest",
        "loopback_users": "none",
        "vm_memory_high_watermark.absolute": "1GB",
        "disk_free_limit.absolute": "50MB",
        "raft.wal_max_size_bytes": "67108864",  # the default of 512 MB is kept in memory too
        "log.console": "false",
        "log.file.level": "warning",
    }
