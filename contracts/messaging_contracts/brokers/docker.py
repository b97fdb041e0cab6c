"""Brokers in containers, through testcontainers, where an engine answers and the image can be had."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from messaging_contracts.brokers.broker import Broker, BrokerUnavailable, Kind, Options
from messaging_contracts.brokers.process import LOOPBACK, free_port, wait_until_ready, what_went_wrong

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINE_TIMEOUT = 5
PULL_TIMEOUT = int(os.environ.get("MESSAGING_TEST_PULL_TIMEOUT", "120"))

logger = logging.getLogger("messaging_contracts.brokers")


class ContainerBroker(Broker):
    """A broker that runs in a container. The host's port is fixed, so that it stays the same over
    `restart`.
    """

    def __init__(
        self, kind: Kind, options: Options, image: str, timeout: float, testcontainer: Callable[..., Any]
    ) -> None:
        self._kind = kind
        self._timeout = timeout
        self._owner = os.getpid()
        self._stopped = False
        port = free_port()
        wanted = testcontainer(image)
        # An engine on this machine need not offer a broker without a password to the network.
        engine = str(wanted.get_docker_client().host())
        local = engine == "localhost"
        spec = kind.container(options, LOOPBACK if local else engine, port)
        assert spec is not None
        # `with_bind_ports` takes no address.
        wanted.ports[f"{spec.port}/tcp"] = (LOOPBACK, port) if local else port
        for name, value in spec.environment.items():
            wanted = wanted.with_env(name, value)
        self._started = wanted.with_command(spec.command) if spec.command else wanted
        try:
            self._started.start()
            self._container = self._started.get_wrapped_container()
            host = LOOPBACK if local else self._started.get_container_host_ip()
            super().__init__(kind.name, kind.url(host, port, options), "", kind.client_environment)
            self._wait()
        except BaseException:  # interrupted, too, it leaves no container
            self.stop()
            raise
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        self._container.reload()
        return int(self._container.attrs["State"]["Pid"])

    def stop(self) -> None:
        if self._stopped or os.getpid() != self._owner:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        # Not there any more is as good as stopped.
        with suppress(Exception):
            self._started.stop(force=True, delete_volume=True)

    def kill(self) -> None:
        self._container.kill()

    def restart(self) -> None:
        self._container.reload()
        if self._container.status == "paused":
            self._container.unpause()
        self._container.restart(timeout=15)
        self._wait()

    def pause(self) -> None:
        self._container.pause()

    def resume(self) -> None:
        self._container.unpause()

    def _wait(self) -> None:
        self.version = wait_until_ready(
            self.name, lambda limit: self._kind.version(self.url, limit), self._watch, self._timeout
        )

    def _watch(self, seconds: float) -> None:
        """Let time pass, but not beyond the end of the container."""
        time.sleep(seconds)
        self._container.reload()
        if self._container.status in {"exited", "dead"}:
            said = what_went_wrong(self._container.logs(tail=50).decode(errors="replace"))
            raise BrokerUnavailable(f"{self.name} ended in its container: {said}")


def start_container(kind: Kind, options: Options, timeout: float) -> Broker | None:
    """Start the broker in a container; None where there is no engine, no testcontainers or no image, and where
    a container cannot have these options.

    The wait for the engine, for the image and for the broker is bounded each.

    :raises BrokerUnavailable: it did not serve in time; or the environment names an image that cannot be run,
    which must not become another version in silence
    """
    spec = kind.container(options, LOOPBACK, 0)  # host and port do not matter yet
    if spec is None:
        return None
    variable = image_variable(kind.name)
    try:
        return _started(kind, options, spec.image, timeout)
    except _NoContainer as error:
        if os.environ.get(variable):
            raise BrokerUnavailable(
                f"no {kind.name} by Docker: {error}; {variable} names the image {spec.image}: unset it, or see "
                "that the image can be run"
            ) from None
        logger.log(error.level, "no %s by Docker: %s", kind.name, error)
        return None


def image_variable(name: str) -> str:
    """The variable that names an image for this kind of broker."""
    return f"MESSAGING_TEST_{name.upper()}_IMAGE"


class _NoContainer(Exception):
    """Why there is no container, and how loudly to say it."""

    def __init__(self, reason: str, level: int = logging.INFO) -> None:
        super().__init__(reason)
        self.level = level


def _started(kind: Kind, options: Options, image: str, timeout: float) -> Broker:
    if not _engine_in_sight():
        raise _NoContainer("no engine is in sight")
    try:
        with warnings.catch_warnings():
            # What these libraries say on import is not about the tests that run with warnings as errors.
            warnings.simplefilter("ignore")
            import docker
            from testcontainers.core.config import testcontainers_config
            from testcontainers.core.container import DockerContainer
    except ImportError:
        raise _NoContainer("testcontainers is not installed") from None
    try:
        client: Any = docker.from_env(timeout=ENGINE_TIMEOUT)
        try:
            client.ping()
            found = _image(client, image)
            # Without its image the reaper would fail the start; what was started is then ended by `stop`.
            if found and not _present(client, testcontainers_config.ryuk_image):
                testcontainers_config.ryuk_disabled = True
        finally:
            client.close()
    except Exception as error:
        raise _NoContainer(str(error)) from error
    if not found:
        raise _NoContainer(f"the image {image} is not there and was not pulled within {PULL_TIMEOUT} s")
    try:
        return ContainerBroker(kind, options, image, timeout, DockerContainer)
    except BrokerUnavailable:
        raise
    except Exception as error:
        raise _NoContainer(f"its image is there, but {error}", logging.WARNING) from error


def _engine_in_sight() -> bool:
    """Whether asking is worth the import: an engine's address or socket is there."""
    if os.environ.get("DOCKER_HOST") or os.environ.get("TC_HOST"):
        return True
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", "/run"))
    home = Path(os.environ.get("HOME", "/"))
    sockets = (
        Path("/var/run/docker.sock"),
        runtime / "docker.sock",
        home / ".docker/run/docker.sock",
        home / ".docker/desktop/docker.sock",
    )
    return any(path.exists() for path in sockets)


def _present(client: Any, image: str) -> bool:
    from docker.errors import ImageNotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        return False
    return True


def _image(client: Any, image: str) -> bool:
    """Whether the image is there, or could be pulled in time."""
    if _present(client, image):
        return True
    done = threading.Event()

    def pull() -> None:
        import docker

        with suppress(Exception):  # who waits for it tells that the image is not there
            puller = docker.from_env(timeout=PULL_TIMEOUT)
            try:
                puller.images.pull(image)
            finally:
                puller.close()
        done.set()

    # The engine's own time limit holds per answer, not for the whole pull.
    threading.Thread(target=pull, daemon=True, name=f"pull {image}").start()
    done.wait(PULL_TIMEOUT)
    return _present(client, image)
