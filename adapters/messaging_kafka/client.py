"""aiokafka's client, for a cluster of which some brokers do not answer: none holds up what is asked of others."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

from messaging_kafka import library
from messaging_kafka.library import Errors, KafkaError

HEAD_START = 0.5
"""Seconds that an address has to answer before the next one is asked beside it."""


class Client(library.Client):  # type: ignore[misc]  # aiokafka has no types
    """Connections to all brokers, made when they are needed."""

    def __init__(self, options: dict[str, Any], *, patience: float) -> None:
        """`patience`: seconds for an answer, where nobody says less."""
        milliseconds = int(patience * 1000)
        base: Any = super()
        base.__init__(**options, request_timeout_ms=milliseconds)
        self._synchronized: asyncio.Task[None] | None = None
        addresses = {"bootstrap_servers", "retry_backoff_ms"}
        self._options = {name: value for name, value in options.items() if name not in addresses}
        self._options["request_timeout_ms"] = milliseconds
        self._connecting: WeakValueDictionary[tuple[Any, Any], asyncio.Lock] = WeakValueDictionary()

    async def bootstrap(self) -> None:
        """Learn which brokers there are from any of the addresses, or of the brokers that were told of before.

        Raises why the last of them does not tell.
        """
        addresses: list[tuple[str, int]] = [(host, port) for host, port, _ in self.hosts]
        # Those of the URL may be away for long, or for good, while the cluster is well.
        known = sorted((one.host, one.port) for one in self.cluster.brokers())
        rest = list(dict.fromkeys([*addresses, *known]))
        asking: set[asyncio.Task[Any]] = set()
        failure: BaseException = Errors.NoBrokersAvailable()
        try:
            while rest or asking:
                if rest:
                    host, port = rest.pop(0)
                    asking.add(
                        asyncio.create_task(self._learn_from(host, port), name="messaging-kafka-bootstrap")
                    )
                done, asking = await asyncio.wait(
                    asking, timeout=HEAD_START if rest else None, return_when=asyncio.FIRST_COMPLETED
                )
                failures = [task.exception() for task in done]
                for task, failed in zip(done, failures, strict=True):
                    if failed is None:
                        self._begin(task.result())
                        return
                    failure = failed
                    if not isinstance(failure, (OSError, KafkaError, TimeoutError)):
                        raise failure
            raise failure
        finally:
            for task in asking:
                task.cancel()
                task.add_done_callback(_read)
            if asking:
                await asyncio.wait(asking)

    def _begin(self, metadata: Any) -> None:
        self.cluster.update_metadata(metadata)
        if self._synchronized is None:
            self._sync_task = self._synchronized = asyncio.create_task(self._md_synchronizer())

    async def _learn_from(self, host: str, port: int) -> Any:
        connection = await library.connect(host, port, **self._options)
        try:
            return await connection.send(library.Metadata([]))
        finally:
            connection.close()

    @property
    def _get_conn_lock(self) -> AbstractAsyncContextManager[None]:
        """One for all of them would let whoever wants another broker wait for one that does not answer."""
        return nullcontext()

    async def _get_conn(
        self, node_id: Any, *, group: Any = library.DEFAULT_CHANNEL, no_hint: bool = False
    ) -> Any:
        wanted = node_id, group
        connection = self._conns.get(wanted)
        if connection is not None and connection.connected():
            return connection
        lock = self._connecting.get(wanted)
        if lock is None:
            lock = self._connecting[wanted] = asyncio.Lock()
        base: Any = super()
        async with lock:
            return await base._get_conn(node_id, group=group, no_hint=no_hint)  # noqa: SLF001  there is no public way


def _read(task: asyncio.Task[Any]) -> None:
    """What went wrong with an address that nobody waits for any more is nobody's concern."""
    if not task.cancelled():
        task.exception()
