"""Adapters on a real RabbitMQ, straight or through a proxy that fails on demand."""

from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

from messaging.adapter import Consumer
from messaging_contracts.faults.proxy import LOOPBACK, Proxy
from messaging_rabbitmq import RabbitMQAdapter
from tests.contract.bench import AdapterBench

SomeProxy = TypeVar("SomeProxy", bound=Proxy)


class Bench(AdapterBench[RabbitMQAdapter, Consumer]):
    kind: ClassVar = RabbitMQAdapter

    async def behind(self, kind: type[SomeProxy], **options: object) -> tuple[SomeProxy, RabbitMQAdapter]:
        """A proxy before the broker, which ends with the test, and an open adapter that goes through it."""
        broker = urlsplit(self.url)
        assert broker.hostname is not None and broker.port is not None
        proxy = await self.stack.enter_async_context(kind(broker.hostname, broker.port))
        url = f"amqp://{broker.username}:{broker.password}@{LOOPBACK}:{proxy.port}{broker.path}"
        return proxy, await self.adapter(url, **options)
