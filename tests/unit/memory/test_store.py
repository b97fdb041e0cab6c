import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from messaging.errors import ConfigurationError, IdempotencyConflict
from messaging.store import Begun, Completed, InProgress
from messaging.testing import VirtualClock
from messaging_memory import MemoryStore


@pytest.fixture
async def store(clock):
    store = MemoryStore.from_url("memory://", clock=clock)
    await store.open()
    yield store
    await store.close()


async def test_a_key_in_progress_tells_the_rest_of_its_lease(store, clock):
    assert isinstance(await store.begin("k", digest="d", lease=30), Begun)
    await clock.advance(10)

    assert await store.begin("k", digest="d", lease=30) == InProgress(20)


async def test_a_completed_key_keeps_its_result_until_its_ttl(store, clock):
    begun = await store.begin("k", digest="d", lease=30)
    assert await store.complete("k", begun.fence, result=b"r", ttl=60)

    await clock.advance(59)
    assert await store.begin("k", digest="d", lease=30) == Completed(b"r")
    await clock.advance(1)
    assert isinstance(await store.begin("k", digest="d", lease=30), Begun)


async def test_what_failed_or_was_extended_leaves_no_memory_behind(store):
    """A key that is cleared with every failure would else be remembered for a day, once for each of them."""
    for number in range(2000):
        begun = await store.begin(f"k{number % 3}", digest="d", lease=30)
        await store.extend(f"k{number % 3}", begun.fence, lease=30)
        await store.clear(f"k{number % 3}", begun.fence)

    assert len(store._table.ends) < 200


async def test_keys_are_still_forgotten_in_time_when_old_ends_were_thrown_away(store, clock):
    for _ in range(200):
        begun = await store.begin("k", digest="d", lease=30)
        await store.clear("k", begun.fence)
    begun = await store.begin("done", digest="d", lease=30)
    await store.complete("done", begun.fence, result=None, ttl=60)

    await clock.advance(60)
    await store.begin("another", digest="d", lease=30)

    assert set(store._table.states) == {"another"}


async def test_another_payload_under_the_same_key_is_an_error(store):
    begun = await store.begin("k", digest="d", lease=30)
    with pytest.raises(IdempotencyConflict, match="'k'"):
        await store.begin("k", digest="other", lease=30)
    await store.complete("k", begun.fence, result=None, ttl=60)
    with pytest.raises(IdempotencyConflict):
        await store.begin("k", digest="other", lease=30)


async def test_a_paused_first_owner_cannot_overwrite(store, clock):
    first = await store.begin("k", digest="d", lease=30)
    await clock.advance(31)
    second = await store.begin("k", digest="d", lease=30)

    assert second.fence > first.fence
    assert not await store.complete("k", first.fence, result=b"first", ttl=60)
    assert not await store.extend("k", first.fence, lease=30)
    await store.clear("k", first.fence)
    assert await store.complete("k", second.fence, result=b"second", ttl=60)
    assert await store.begin("k", digest="d", lease=30) == Completed(b"second")


async def test_a_cleared_key_never_sees_a_fence_again(store):
    first = await store.begin("k", digest="d", lease=30)
    await store.clear("k", first.fence)
    second = await store.begin("k", digest="other", lease=30)

    assert second.fence > first.fence
    assert not await store.complete("k", first.fence, result=None, ttl=60)


async def test_what_is_over_leaves_no_memory_behind(store, clock):
    for number in range(100):
        begun = await store.begin(f"done-{number}", digest="d", lease=30)
        await store.complete(f"done-{number}", begun.fence, result=None, ttl=60)
        await store.begin(f"left-{number}", digest="d", lease=30)
    await clock.advance(3 * 86_400)

    await store.begin("k", digest="d", lease=30)

    assert list(store._table.states) == ["k"]


async def test_a_name_is_shared_while_a_store_is_open(clock):
    first, second, other = (
        MemoryStore.from_url(url, clock=clock)
        for url in ("memory://shared", "memory://shared", "memory://other")
    )
    for store in (first, second, other):
        await store.open()
        await store.open()
    await first.begin("k", digest="d", lease=30)

    assert isinstance(await second.begin("k", digest="d", lease=30), InProgress)
    assert isinstance(await other.begin("k", digest="d", lease=30), Begun)
    for store in (first, first, second, other):
        await store.close()
    late = MemoryStore.from_url("memory://shared", clock=clock)
    await late.open()
    assert isinstance(await late.begin("k", digest="d", lease=30), Begun)
    await late.close()
    assert not MemoryStore.shared


@pytest.mark.parametrize("url", ["redis://x", "memory://x?ttl=5", "memory://x/path"])
def test_an_illegal_url_is_refused(url, clock):
    with pytest.raises(ConfigurationError):
        MemoryStore.from_url(url, clock=clock)


class Owners(RuleBasedStateMachine):
    """Two owners of one key, either of which may be paused for any time: the newest fence decides."""

    def __init__(self):
        super().__init__()
        self.clock = VirtualClock()
        self.store = MemoryStore("", clock=self.clock)
        self.fences: dict[int, int] = {}
        self.newest = 0
        self.owner = None
        self.until = 0.0
        self.done = None

    def run(self, awaitable):
        coroutine = awaitable.__await__()
        try:
            next(coroutine)
        except StopIteration as stop:
            return stop.value
        raise AssertionError("the memory store never waits")

    @rule(seconds=st.sampled_from([1.0, 10.0, 31.0]))
    def time_passes(self, seconds):
        self.clock._now += seconds

    @rule(who=st.sampled_from([0, 1]))
    def begin(self, who):
        now = self.clock.monotonic()
        result = self.run(self.store.begin("k", digest="d", lease=30))
        if self.done is not None and self.done[1] > now:
            assert result == Completed(self.done[0])
        elif self.done is None and self.owner is not None and self.until > now:
            assert result == InProgress(self.until - now)
        else:
            assert isinstance(result, Begun)
            assert result.fence > self.newest
            self.newest = self.fences[who] = result.fence
            self.owner, self.until, self.done = who, now + 30, None

    def owns(self, who):
        return self.done is None and self.owner is not None and self.fences.get(who) == self.newest

    @rule(who=st.sampled_from([0, 1]))
    def extend(self, who):
        if who not in self.fences:
            return
        owned = self.owns(who)
        assert self.run(self.store.extend("k", self.fences[who], lease=30)) == owned
        if owned:
            self.until = self.clock.monotonic() + 30

    @rule(who=st.sampled_from([0, 1]))
    def complete(self, who):
        if who not in self.fences:
            return
        owned = self.owns(who)
        result = str(self.fences[who]).encode()
        assert self.run(self.store.complete("k", self.fences[who], result=result, ttl=60)) == owned
        if owned:
            self.done = (result, self.clock.monotonic() + 60)

    @rule(who=st.sampled_from([0, 1]))
    def clear(self, who):
        if who not in self.fences:
            return
        owned = self.owns(who)
        self.run(self.store.clear("k", self.fences[who]))
        if owned:
            self.owner = None


Owners.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestOwners = Owners.TestCase
