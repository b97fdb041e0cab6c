"""The clients of redis-py that the adapter uses: pools per node, none of which ever repeats a command."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import redis.asyncio as aio
from redis import exceptions as redis_errors
from redis.asyncio import cluster, connection, sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from messaging.slots import Slots
from messaging.tls import client_context
from messaging_redis.line import Line
from messaging_redis.sentinels import Sentinels

if TYPE_CHECKING:
    from messaging_redis.settings import RedisSettings

# Their parameters are not typed, or differ between the versions of redis-py that we take.
_cluster = cast("Any", cluster)
_connection = cast("Any", connection)
_sentinel = cast("Any", sentinel)
_aio = cast("Any", aio)

_ANY_NODE = ""

Use: TypeAlias = Literal["commands", "reads", "leases"]


class Pool:
    """Connections to one node, and how many may be in use.

    redis-py's pool makes them, and says how; what it does for each use costs as much as the exchange itself.
    """

    __slots__ = ("_kept", "_lost", "connections", "slots")

    def __init__(self, connections: Any, size: int) -> None:
        self.connections = connections
        self.slots = Slots(size)
        """An `asyncio.Semaphore` costs as much as the rest of an exchange."""
        self._kept: list[Line] = []
        self._lost = 0

    def distrust(self) -> None:
        """After a fault no connection from before it is used again: another server may be the master now."""
        self._lost += 1

    def _fits(self, line: Line) -> bool:
        """Whether nothing has happened since it was kept."""
        return line.epoch == self._lost and line.sound

    def kept(self) -> Line | None:
        """A connection that was kept and may be used again."""
        return self._kept.pop() if self._kept and self._fits(self._kept[-1]) else None

    async def connect(self) -> Line:
        """A connection of redis-py's pool, after those that were lost went back to it."""
        while self._kept and not self._fits(self._kept[-1]):
            await self.end(self._kept.pop())
        epoch = self._lost
        return self.kept() or Line(await self.connections.get_connection(), epoch)

    def keep(self, line: Line) -> bool:
        """Keep it for the next exchange, after one that went well; False where it cannot be kept."""
        if line.lasting and line.epoch == self._lost:
            self._kept.append(line)
            return True
        return False

    async def give_back(self, line: Line) -> None:
        """What cannot be kept goes back to redis-py's pool."""
        if line.epoch != self._lost:
            await self.end(line)
        else:
            await self.connections.release(line.connection)

    async def end(self, line: Line) -> None:
        """Close it, without waiting."""
        try:
            await line.connection.disconnect(nowait=True)
        finally:
            await self.connections.release(line.connection)


class Clients:
    """One server, the nodes of a cluster, or the master that sentinels name."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._cluster: Any = None
        self._sentinel: Sentinels | None = None
        self._pools: dict[tuple[str, Use], Pool] = {}
        self._lock = asyncio.Lock()
        self.native: Any = None
        self.stale = False
        """A node was lost: ask the cluster anew before the next command."""

    async def open(self) -> None:
        settings = self._settings
        if settings.tls:
            # redis-py reads the files at each connection, where one that cannot be read looks like a lost server.
            await asyncio.to_thread(
                client_context,
                f"Redis at {settings.address}",
                ca=settings.ca,
                cert=settings.cert,
                key=settings.key,
                check_hostname=settings.check_hostname,
            )
        if settings.mode == "cluster":
            nodes = [_cluster.ClusterNode(host, port) for host, port in settings.hosts]
            options = self._options()
            for absent in ("db", "socket_keepalive"):
                options.pop(absent, None)
            self._cluster = _cluster.RedisCluster(
                startup_nodes=nodes,
                ssl=settings.tls,
                **(options | {"socket_timeout": settings.socket_timeout}),
            )
            self.native = self._cluster
            await self._cluster.initialize()
            return
        if settings.mode == "sentinel":
            self._sentinel = Sentinels(settings, self._security(), self._distrust_all)
        self.native = _aio.Redis(
            connection_pool=self._make_pool(
                _ANY_NODE, {"socket_timeout": settings.socket_timeout}, settings.max_connections
            )
        )

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.connections.aclose()
        self._pools.clear()
        if self._cluster is not None:
            await self._cluster.aclose()
        elif self.native is not None:
            await self.native.aclose()
            await self.native.connection_pool.aclose()
        if self._sentinel is not None:
            await self._sentinel.close()

    async def refresh(self) -> None:
        """Ask the cluster who has which slots now; nothing to do elsewhere."""
        if self._cluster is not None:
            async with self._lock:
                await self._cluster.aclose()
                await self._cluster.initialize()
        self.stale = False

    def _distrust_all(self) -> None:
        """There is another master: what one program says must not go to both."""
        for pool in self._pools.values():
            pool.distrust()

    def node_of(self, key: str) -> str:
        """The node that has a key; one for all keys where there is no cluster."""
        if self._cluster is None:
            return _ANY_NODE
        node = self._cluster.get_node_from_key(key) if key else self._cluster.get_primaries()[0]
        if node is None:
            raise redis_errors.ClusterDownError(f"no node has the slot of {key!r}")
        return f"{node.host} {node.port}"

    def pool(self, key: str, use: Use) -> Pool:
        """The connections to the node that has a key. Reads that wait must not take those for commands, and no command
        those of leases: to make another takes three round trips, on a slow network most of a lease.
        """
        node = self.node_of(key)
        pool = self._pools.get((node, use))
        if pool is None:
            size = self._settings.max_connections if use == "commands" else 10_000
            pool = self._pools[node, use] = Pool(
                self._make_pool(node, {"socket_timeout": None}, size + 1), size
            )
        return pool

    def _make_pool(self, node: str, more: dict[str, Any], size: int) -> Any:
        settings = self._settings
        options = self._options() | more | {"max_connections": size}
        if self._sentinel is not None:
            return _sentinel.SentinelConnectionPool(
                settings.master, self._sentinel, ssl=settings.tls, **options
            )
        if settings.mode == "socket":
            options.pop("socket_keepalive")
            kind = _connection.UnixDomainSocketConnection
            return _connection.ConnectionPool(connection_class=kind, path=settings.path, **options)
        kind = _connection.SSLConnection if settings.tls else _connection.Connection
        host, port = settings.hosts[0]
        if node:
            host, _, written = node.rpartition(" ")
            port = int(written)
        return _connection.ConnectionPool(connection_class=kind, host=host, port=port, **options)

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {
            **self._security(),
            "db": settings.db,
            "username": settings.username,
            "password": None if settings.password is None else settings.password.get_secret_value(),
            "socket_connect_timeout": settings.connect_timeout,
            "socket_keepalive": True,
            # A repeated command is a duplicated message: only the dispatcher decides to try again.
            "retry": Retry(NoBackoff(), 0),
        }
        if "maint_notifications_config" in inspect.signature(_connection.ConnectionPool.__init__).parameters:
            from redis.maint_notifications import MaintNotificationsConfig

            # With them on, the pool does not notice that an idle connection was closed.
            options["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
        return options

    def _security(self) -> dict[str, Any]:
        settings = self._settings
        if not settings.tls:
            return {}
        return {
            "ssl_ca_certs": settings.ca,
            "ssl_certfile": settings.cert,
            "ssl_keyfile": settings.key,
            "ssl_check_hostname": settings.check_hostname,
        }
