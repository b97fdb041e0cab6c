"""Where a broker comes from: the environment, Docker, or a program of this machine, in this order."""

from __future__ import annotations

import logging
import os
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from messaging_contracts.brokers.broker import Broker, BrokerUnavailable, FoundBroker, Kind, NotReady, Options
from messaging_contracts.brokers.docker import start_container
from messaging_contracts.brokers.elasticmq import ElasticMQ
from messaging_contracts.brokers.fetched import run
from messaging_contracts.brokers.kafka import Kafka
from messaging_contracts.brokers.process import LOOPBACK, start_native
from messaging_contracts.brokers.rabbitmq import RabbitMQ
from messaging_contracts.brokers.redis import Redis
from messaging_contracts.brokers.sqs import SQS

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Redis(), RabbitMQ(), Kafka(), SQS(), ElasticMQ())}
NAMES = tuple(KINDS)
DEBIAN = Path("/etc/debian_version")
INSTALL_TIMEOUT = 600.0

logger = logging.getLogger("messaging_contracts.brokers")


def environment_variable(name: str) -> str:
    """The variable that names a running broker of this kind."""
    return f"MESSAGING_TEST_{name.upper()}_URL"


def with_an_adapter() -> tuple[str, ...]:
    """Those of `NAMES` that an installed adapter takes the URL of; of several servers for one adapter the first."""
    schemes = entry_points(group="messaging.adapters").names
    first: dict[str, str] = {}
    for name, kind in KINDS.items():
        first.setdefault(urlsplit(kind.url(LOOPBACK, 1, Options())).scheme, name)
    return tuple(name for scheme, name in first.items() if scheme in schemes)


def start(
    name: str,
    *,
    own: bool = False,
    native: bool = False,
    user: str = "",
    password: str = "",
    config: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> Broker:
    """Find or start the broker `name`, one of `NAMES`; returns when it serves.

    A broker named by the environment is used as it is, unless `own` is set: a test that kills, pauses or
    configures its broker needs one that nobody else uses. Giving a user, a password or configuration sets
    `own`, and so does `native`.

    :param own: never use a broker named by the environment
    :param native: never in a container: for configuration that names files or ports of this machine, which are out
    of a container's reach
    :param user: its one user; Redis without one has the default user, RabbitMQ `guest`; SQS has none
    :param password: that user's password; Redis and Kafka without one ask for none, RabbitMQ has `guest`
    :param config: lines for the server's own file: redis.conf, rabbitmq.conf, server.properties,
    elasticmq.conf; for `sqs`, LocalStack's environment. Where a container cannot have them, a native process
    is started
    :param timeout: seconds until it has to serve; pulling an image and installing a package have bounds of
    their own
    :raises BrokerUnavailable: it can be had in no way; the text says what to install
    """
    if name not in KINDS:
        raise BrokerUnavailable(f"there is no broker {name!r} to start; there are {', '.join(NAMES)}")
    kind = KINDS[name]
    options = Options(user, password, dict(config or {}))
    url = os.environ.get(environment_variable(name))
    if url and not own and not native and options == Options():
        return _found(kind, url)
    container = None if native else start_container(kind, options, timeout)
    if container is not None:
        return container
    return start_native(kind, native_program(kind), options, timeout)


def native_program(kind: Kind) -> Path:
    """The server's program; as root on Debian it is installed when it is not there.

    :raises BrokerUnavailable: it is not there and cannot be installed
    """
    found = kind.program()
    failure = ""
    if found is None and _may_install():
        logger.warning("installing %s with apt-get", kind.package)
        try:
            _install(kind.package)
        except BrokerUnavailable as error:
            failure = f" ({error})"
        found = kind.program()
    if found is None:
        wanted = f"set {environment_variable(kind.name)}, start Docker, or install {kind.package}"
        raise BrokerUnavailable(f"no {kind.name}: {wanted}{failure}")
    return found


def _found(kind: Kind, url: str) -> Broker:
    variable = environment_variable(kind.name)
    try:
        return FoundBroker(kind.name, url, kind.version(url, timeout=10))
    except PermissionError:
        raise BrokerUnavailable(f"the {kind.name} that {variable} names refuses its credentials") from None
    except (OSError, NotReady) as error:
        raise BrokerUnavailable(f"the {kind.name} that {variable} names does not answer: {error}") from None


def _may_install() -> bool:
    return DEBIAN.exists() and os.geteuid() == 0 and shutil.which("apt-get") is not None


def _install(package: str) -> None:
    environment = {
        **os.environ,
        "DEBIAN_FRONTEND": "noninteractive",
        "RUNLEVEL": "1",  # installs the service without starting it
    }
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    what = "apt-get"
    for command in (
        ["apt-get", "-qq", "update"],
        ["apt-get", "-qq", "-y", "--no-install-recommends", *lock, "install", *package.split()],
    ):
        run(command, what, environment=environment, timeout=INSTALL_TIMEOUT)
