"""Kafka: how it is started and asked."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from messaging_contracts.brokers import java, kafka_protocol
from messaging_contracts.brokers.broker import Command, Container, Options
from messaging_contracts.brokers.fetched import run
from messaging_contracts.brokers.process import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

VERSION = "4.1.0"
SERVER = f"kafka-{VERSION}"
ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{VERSION}", "org.slf4j:slf4j-simple:1.7.36")

# The parts of these are collected: a listener of one's own is beside ours, not instead of it.
LISTS = ("listeners", "advertised.listeners", "listener.security.protocol.map")
SCRAM = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
ITERATIONS = 4096
LOGIN_MODULES = {
    "plain": "plain.PlainLoginModule",
    "scram-sha-256": "scram.ScramLoginModule",
    "scram-sha-512": "scram.ScramLoginModule",
    "oauthbearer": "oauthbearer.OAuthBearerLoginModule",
}

HEAPS = {"server": 512, "controller": 192}
"""Megabytes."""

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # The defaults of 50 are made when the first group asks, while it waits.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    # A test of a member's death need not wait for the six seconds that are the least otherwise.
    "group.min.session.timeout.ms": "500",
    # After SIGKILL the node waits this long for its own earlier registration to end.
    "broker.session.timeout.ms": "1000",
    "broker.heartbeat.interval.ms": "200",
    "log.cleaner.dedupe.buffer.size": "16777216",
    # Of the default of ten megabytes all comes into memory, for two indexes of each partition.
    "log.index.size.max.bytes": "1048576",
}


CONTROLLER = "1000"
"""The id of the controller of a cluster, below none of its brokers'."""


@dataclass(frozen=True)
class Member:
    """What a broker of a cluster has in common with the others. The first one brings the controller along, as a
    process of its own, which runs on when the broker is killed.
    """

    number: int
    cluster: str
    controller_port: int


class Kafka:
    """One node, broker and controller at once (KRaft), or a member of a cluster. It listens for clients on a port, and
    for itself on two others.

    With a user and a password, clients log in by PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or, with an unsigned token,
    OAUTHBEARER. Configuration of one's own are lines of server.properties; `listener` makes those of another
    listener.
    """

    name = "kafka"
    package = java.PACKAGES
    client_environment: Mapping[str, str] = {}

    def __init__(self, member: Member | None = None) -> None:
        self._member = member

    def program(self) -> Path | None:
        return java.java(SERVER)

    def url(self, host: str, port: int, options: Options) -> str:
        if not options.password:
            return f"kafka://{host}:{port}"
        return f"kafka://{quote(options.user, safe='')}:{quote(options.password, safe='')}@{host}:{port}"

    def prepare(self, program: Path, home: Path, port: int, options: Options) -> Sequence[Command]:
        class_path = java.class_path(SERVER, ARTIFACTS)
        logging = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        member = self._member
        identity = f"--cluster-id={member.cluster if member else secrets.token_urlsafe(16)}"
        files = {"server": _settings(home, port, options)}
        if member is not None:
            files = {"server": files["server"] | _shared(member, files["server"]["listeners"])}
            if member.number == 1:
                files = {"controller": _controller(home, files["server"]), **files}
        commands: list[Command] = []
        for name, settings in files.items():
            file = home / f"{name}.properties"
            file.touch(mode=0o600)
            file.write_text("".join(_lines(settings)), encoding="ascii")
            tool = [
                str(program),
                "-Xmx64m",
                *java.FLAGS,
                logging,
                "-cp",
                class_path,
                "kafka.tools.StorageTool",
            ]
            run([*tool, "format", identity, f"--config={file}", *_scram(options)], "Kafka's format")
            heap = f"-Xmx{HEAPS[name]}m"
            commands.append(
                Command(
                    [str(program), heap, *java.FLAGS, logging, "-cp", class_path, "kafka.Kafka", str(file)]
                )
            )
        return commands

    def container(self, options: Options, host: str, port: int) -> Container | None:
        if options != Options():  # credentials have to be there when the folders are formatted
            return None
        settings = {
            **SETTINGS,
            "controller.quorum.voters": "1@localhost:9093",
            "listeners": "CLIENTS://:9092,BROKER://localhost:9094,CONTROLLER://localhost:9093",
            "advertised.listeners": f"CLIENTS://{host}:{port},BROKER://localhost:9094",
            "listener.security.protocol.map": "CLIENTS:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        }
        return Container(
            image=os.environ.get("MESSAGING_TEST_KAFKA_IMAGE", "apache/kafka:4.1.0"),
            port=9092,
            command=os.environ.get("MESSAGING_TEST_KAFKA_COMMAND", ""),
            environment={f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()},
        )

    def version(self, url: str, timeout: float) -> str:
        return kafka_protocol.ask(url, timeout)


def listener(name: str, port: int, *, advertised: str = "", protocol: str = "PLAINTEXT") -> dict[str, str]:
    """Configuration for one more listener, on loopback.

    Clients that begin there are sent to `advertised`, a host and a port: of a proxy in front of it, for
    instance.

    :param name: capital letters; what else concerns it begins with `listener.name.<name in small letters>.`
    :param protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
    """
    return {
        "listeners": f"{name}://{LOOPBACK}:{port}",
        "advertised.listeners": f"{name}://{advertised or f'{LOOPBACK}:{port}'}",
        "listener.security.protocol.map": f"{name}:{protocol}",
    }


def _settings(home: Path, port: int, options: Options) -> dict[str, str]:
    brokers, controllers = f"{LOOPBACK}:{free_port()}", f"{LOOPBACK}:{free_port()}"
    protocol = "SASL_PLAINTEXT" if options.password else "PLAINTEXT"
    settings = {
        **SETTINGS,
        "log.dirs": str(home / "data"),
        "controller.quorum.voters": f"1@{controllers}",
        "listeners": f"CLIENTS://{LOOPBACK}:{port},BROKER://{brokers},CONTROLLER://{controllers}",
        "advertised.listeners": f"CLIENTS://{LOOPBACK}:{port},BROKER://{brokers}",
        "listener.security.protocol.map": f"CLIENTS:{protocol},BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        **(_logins(options) if options.password else {}),
    }
    own = dict(options.config)
    for key in LISTS:
        if key in own:
            own[key] = f"{settings[key]},{own[key]}"
    return settings | own


def _shared(member: Member, listeners: str) -> dict[str, str]:
    """What a member of a cluster has otherwise than a node that is alone: its defaults are Kafka's own."""
    copies = "3"
    return {
        "process.roles": "broker",
        "node.id": str(member.number),
        "listeners": ",".join(one for one in listeners.split(",") if not one.startswith("CONTROLLER:")),
        "controller.quorum.voters": f"{CONTROLLER}@{LOOPBACK}:{member.controller_port}",
        "default.replication.factor": "1",
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": "2",
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": "2",
    }


def _controller(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The controller's own settings, beside those of the first broker."""
    address = settings["controller.quorum.voters"].partition("@")[2]
    of_brokers = {"inter.broker.listener.name", "listeners", "advertised.listeners"}
    left = {key: value for key, value in settings.items() if key not in of_brokers}
    return {
        **left,
        "process.roles": "controller",
        "node.id": CONTROLLER,
        "log.dirs": str(home / "controller"),
        "listeners": f"CONTROLLER://{address}",
    }


def _logins(options: Options) -> dict[str, str]:
    """The mechanisms to log in by. SCRAM's credentials are in the data, an unsigned token needs none."""
    here = "listener.name.clients"
    modules = {
        mechanism: f"org.apache.kafka.common.security.{module} required"
        for mechanism, module in LOGIN_MODULES.items()
    }
    modules["plain"] += f" user_{options.user}={_quoted(options.password)}"
    modules["oauthbearer"] += f" unsecuredLoginStringClaim_sub={_quoted(options.user)}"
    return {
        f"{here}.sasl.enabled.mechanisms": ",".join(mechanism.upper() for mechanism in modules),
        **{f"{here}.{mechanism}.sasl.jaas.config": f"{module};" for mechanism, module in modules.items()},
    }


def _scram(options: Options) -> Iterator[str]:
    """Credentials for the format tool, salted, for arguments show in the list of processes."""
    if not options.password:
        return
    for mechanism, digest in SCRAM.items():
        salt = secrets.token_bytes(16)
        salted = hashlib.pbkdf2_hmac(digest, options.password.encode(), salt, ITERATIONS)
        fields = {
            "name": options.user,
            "iterations": str(ITERATIONS),
            "salt": f'"{base64.b64encode(salt).decode()}"',
            "saltedpassword": f'"{base64.b64encode(salted).decode()}"',
        }
        yield "--add-scram"
        yield f"{mechanism}=[{','.join(f'{key}={value}' for key, value in fields.items())}]"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _lines(settings: Mapping[str, str]) -> Iterator[str]:
    """Lines of a Java properties file."""
    for key, value in settings.items():
        escaped = value.replace("\\", "\\\\").encode("utf-16-be", "surrogatepass")
        units = (int.from_bytes(escaped[i : i + 2], "big") for i in range(0, len(escaped), 2))
        yield f"{key}=" + "".join(chr(u) if 0x20 <= u < 0x7F else f"\\u{u:04x}" for u in units) + "\n"
