"""What an idempotency store does, however its server is reached."""

from messaging.clock import SystemClock
from messaging.registry import store_for
from messaging.store import Begun, Completed


async def keeps_keys(url: str, count: int = 1) -> None:
    """Begin and complete `count` keys in a store at this URL, and find them done."""
    store = store_for(url, clock=SystemClock())
    await store.open()
    try:
        for number in range(count):
            begun = await store.begin(f"k{number}", digest="d", lease=30)
            assert isinstance(begun, Begun)
            assert await store.extend(f"k{number}", begun.fence, lease=30)
            assert await store.complete(f"k{number}", begun.fence, result=b"reply", ttl=30)
        for number in range(count):
            assert await store.begin(f"k{number}", digest="d", lease=30) == Completed(b"reply")
    finally:
        await store.close()
