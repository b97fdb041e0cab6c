import asyncio
import logging
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from messaging import ConfigurationError, Settings, Topic
from messaging.adapter import Unrouted
from messaging.catalogue import Catalogue
from messaging.errors import AuthenticationFailed, ConnectionFailed
from messaging.routing import Broker, Routing
from messaging.testing import VirtualClock
from tests.unit.scripted import ScriptedAdapter, outgoing

orders = Topic("orders", str, key=str, ordered=True, partitions=4, retention=timedelta(hours=1))
jobs = Topic("jobs", str)


class Recorder(ScriptedAdapter):
    """Remembers what it was told to declare; refuses what `failing` holds."""

    def __init__(self):
        super().__init__(VirtualClock())
        self.declared = []
        self.failing = []

    async def declare(self, topology):
        await asyncio.sleep(0)
        if self.failing:
            raise self.failing.pop()
        self.declared.append(
            (
                [topic.name for topic in topology.topics],
                [group.name for group in topology.groups],
                topology.mode,
            )
        )


@pytest.fixture
async def adapter():
    return Recorder()


class OneBroker(Routing):
    """Every topic lives on the one adapter of a test."""

    def __init__(self, adapter):
        self.broker = Broker("scripted", "scripted://", None, adapter, adapter.clock)

    @property
    def brokers(self):
        return (self.broker,)

    def of(self, topic):
        return self.broker


def with_settings(adapter, **settings):
    return Catalogue(OneBroker(adapter), Settings(**settings), VirtualClock())


@pytest.fixture
def catalogue(adapter):
    return with_settings(adapter)


# what a topic and a group are


async def test_a_topic_is_as_the_code_says(catalogue):
    spec = catalogue.spec(orders)

    assert (spec.name, spec.ordered, spec.partitions, spec.retention, spec.native) == (
        "orders",
        True,
        4,
        3600.0,
        None,
    )


async def test_settings_override_each_thing_that_the_code_says_of_a_topic(adapter):
    settings = {"orders": {"ordered": False, "partitions": 16, "retention": 60, "native": "legacy"}}
    spec = with_settings(adapter, topics=settings).spec(orders)

    assert (spec.ordered, spec.partitions, spec.retention, spec.native) == (False, 16, 60.0, "legacy")


async def test_one_topic_that_is_described_in_two_ways_is_refused_with_both(catalogue):
    catalogue.spec(Topic("jobs", partitions=4))

    with pytest.raises(ConfigurationError, match="described in two ways: .*partitions=4.*partitions=8"):
        catalogue.spec(jobs)


async def test_the_same_description_twice_is_one_topic_whatever_its_payload(catalogue):
    assert catalogue.spec(jobs) is catalogue.spec(Topic("jobs", bytes, content_type="application/x-job"))


@pytest.mark.parametrize("partitions", [0, -1, 10**9, 2.5, True])
async def test_a_topic_has_a_sensible_number_of_partitions(catalogue, partitions):
    with pytest.raises(ConfigurationError, match=f"Topic none has {partitions} partitions"):
        catalogue.spec(Topic("none", partitions=partitions))


@pytest.mark.parametrize("retention", [0, -1, timedelta(0), float("nan"), float("inf")])
async def test_a_retention_that_keeps_nothing_or_has_no_end_is_refused(catalogue, retention):
    with pytest.raises(ConfigurationError, match="Topic jobs has a retention of"):
        catalogue.spec(Topic("jobs", str, retention=retention))


async def test_a_group_has_its_topics_order_unless_it_gives_it_up(catalogue):
    spec = catalogue.spec(orders)

    assert catalogue.group(spec, "billing").ordered
    assert not catalogue.group(spec, "search", ordered=False).ordered
    assert not catalogue.group(catalogue.spec(jobs), "billing").ordered


async def test_settings_say_whether_a_group_keeps_the_order(adapter):
    catalogue = with_settings(adapter, subscriptions={"orders/billing": {"ordered": False}})
    spec = catalogue.spec(orders)

    assert not catalogue.group(spec, "billing", ordered=True).ordered
    assert catalogue.group(spec, "search").ordered


async def test_order_that_the_topic_does_not_keep_is_refused(catalogue):
    with pytest.raises(
        ConfigurationError, match="Group billing wants the order that topic jobs does not keep"
    ):
        catalogue.group(catalogue.spec(jobs), "billing", ordered=True)


async def test_a_groups_name_is_checked(catalogue):
    with pytest.raises(ConfigurationError):
        catalogue.group(catalogue.spec(jobs), "not a name")


async def test_a_name_alone_means_the_topic_as_it_is_described(catalogue):
    catalogue.spec(orders)
    untyped = catalogue.untyped("orders")

    assert untyped is catalogue.untyped("orders")
    assert catalogue.spec(untyped) == catalogue.spec(orders)
    assert untyped.codec.encode({"any": "thing"})


async def test_a_name_that_nobody_described_is_a_topic_as_it_comes(catalogue):
    spec = catalogue.spec(catalogue.untyped("new"))

    assert (spec.ordered, spec.partitions) == (False, 8)


async def test_a_guess_from_a_name_does_not_bar_the_topic_that_describes_it(catalogue, adapter):
    untyped = catalogue.untyped("orders")
    adapter.failing = [ConfigurationError("the broker's has 4 partitions")]
    with pytest.raises(ConfigurationError, match="4 partitions"):
        await catalogue.declare_topic(untyped)

    described = await catalogue.declare_topic(orders)

    assert (described.ordered, described.partitions) == (True, 4)
    assert await catalogue.declare_topic(untyped) == described
    assert catalogue.untyped("orders") is untyped


async def test_what_was_declared_by_a_name_is_declared_again_as_it_is_described(catalogue, adapter):
    guess = await catalogue.declare_topic(catalogue.untyped("orders"))
    await catalogue.declare([catalogue.group(guess, "billing")], [])

    described = catalogue.spec(orders)

    assert catalogue.declared(orders) is None
    assert await catalogue.declare_topic(orders) == described != guess
    assert catalogue.known_group(orders, "billing", None).topic == described
    assert [topics for topics, _, _ in adapter.declared] == [["orders"], [], ["orders"]]


async def test_a_topic_described_while_its_name_is_declared_is_written_as_described(catalogue, adapter):
    by_name = asyncio.create_task(catalogue.declare_topic(catalogue.untyped("orders")))
    await asyncio.sleep(0)
    described = catalogue.spec(orders)

    assert await by_name == described
    assert catalogue.declared(orders) == described
    assert [topics for topics, _, _ in adapter.declared] == [["orders"], ["orders"]]


# declaring


async def test_a_topic_is_declared_before_its_first_use_and_only_once(catalogue, adapter):
    assert catalogue.declared(jobs) is None

    spec = await catalogue.declare_topic(jobs)
    await catalogue.declare_topic(jobs)

    assert catalogue.declared(jobs) is spec
    assert adapter.declared == [(["jobs"], [], "declare")]


async def test_uses_that_begin_together_declare_once(catalogue, adapter):
    await asyncio.gather(*(catalogue.declare_topic(jobs) for _ in range(5)))

    assert len(adapter.declared) == 1


async def test_a_group_brings_its_topic(catalogue, adapter):
    group = catalogue.group(catalogue.spec(jobs), "billing")

    await catalogue.declare([group], [])
    await catalogue.declare([group], [group.topic])

    assert adapter.declared == [(["jobs"], ["billing"], "declare")]


async def test_only_what_is_new_is_declared(catalogue, adapter):
    await catalogue.declare_topic(jobs)

    await catalogue.declare([catalogue.group(catalogue.spec(jobs), "billing")], [catalogue.spec(orders)])

    assert adapter.declared[1:] == [(["orders"], ["billing"], "declare")]


async def test_a_declaration_that_failed_is_made_again(catalogue, adapter):
    adapter.failing = [ConnectionFailed("gone")]
    with pytest.raises(ConnectionFailed):
        await catalogue.declare_topic(jobs)
    assert catalogue.declared(jobs) is None

    await catalogue.declare_topic(jobs)

    assert adapter.declared == [(["jobs"], [], "declare")]


async def test_a_start_whose_connection_breaks_is_tried_again_for_as_long_as_connecting_may_take(adapter):
    clock = VirtualClock()
    catalogue = Catalogue(OneBroker(adapter), Settings(connect_timeout=10), clock)
    topic = catalogue.spec(jobs)
    group = catalogue.group(topic, "billing")

    adapter.failing = [ConnectionFailed("cut")] * 2
    starting = asyncio.create_task(catalogue.declare([group], [topic], again=True))
    await clock.advance(1)
    assert starting.done() and await starting is None
    assert adapter.declared == [(["jobs"], ["billing"], "declare")]

    adapter.failing = [ConnectionFailed("away")] * 1000
    starting = asyncio.create_task(catalogue.declare([group], [topic], again=True))
    await clock.advance(4)
    assert not starting.done()
    await clock.advance(6)
    assert starting.done()
    with pytest.raises(ConnectionFailed, match="away"):
        await starting


@pytest.mark.parametrize("error", [AuthenticationFailed("no"), ConfigurationError("different")])
async def test_what_trying_again_does_not_heal_ends_a_start_at_once(catalogue, adapter, error):
    adapter.failing = [error]
    with pytest.raises(type(error)):
        await catalogue.declare([], [catalogue.spec(jobs)], again=True)

    assert adapter.declared == []


async def test_a_cancelled_declaration_does_not_stand_in_the_way_of_the_next(catalogue, adapter):
    first = asyncio.create_task(catalogue.declare_topic(jobs))
    await asyncio.sleep(0)
    first.cancel()

    await catalogue.declare_topic(jobs)

    assert first.cancelled()
    assert len(adapter.declared) == 1


async def test_the_mode_is_the_settings_unless_the_caller_says_another(adapter):
    catalogue = with_settings(adapter, topology="verify")

    await catalogue.declare_topic(jobs)
    await catalogue.declare((), [catalogue.spec(orders)], "off")

    assert [mode for _, _, mode in adapter.declared] == ["verify", "off"]


async def test_a_group_that_was_deleted_is_declared_anew(catalogue, adapter):
    spec = catalogue.spec(jobs)
    group, other = catalogue.group(spec, "billing", start="earliest"), catalogue.group(spec, "search")
    await catalogue.declare([group, other], [])

    catalogue.forget(catalogue.group(spec, "billing"))
    await catalogue.declare([group, other], [])

    assert adapter.declared[1:] == [([], ["billing"], "declare")]


@pytest.mark.parametrize("start", ["Latest", "now", "", "2026-07-01", 5, None, date(2026, 7, 1)])
def test_a_start_that_is_none_is_refused_before_anything_is_declared(catalogue, adapter, start):
    with pytest.raises(ConfigurationError, match='start=.*"latest", "earliest" or a datetime'):
        catalogue.group(catalogue.spec(jobs), "billing", start=start)

    assert adapter.declared == []


def test_a_start_without_a_zone_is_utc_as_every_other_time(catalogue):
    spec = catalogue.spec(jobs)
    naive, eastern = datetime(2026, 7, 1, 12), datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=9)))
    assert catalogue.group(spec, "billing", start=naive).start == naive.replace(tzinfo=UTC)
    assert catalogue.group(spec, "billing", start=eastern).start.isoformat() == "2026-07-01T12:00:00+09:00"


async def test_that_nobody_gets_a_topics_messages_is_told_once(adapter, caplog):
    routing = OneBroker(adapter)
    Catalogue(routing, Settings(), VirtualClock())
    with caplog.at_level(logging.WARNING, "messaging"):
        for topic in ("jobs", "orders", "jobs"):
            routing.broker.refusals.judge([outgoing(topic=topic)], [Unrouted("m")])

    assert [record.topic for record in caplog.records] == ["jobs", "orders"]  # type: ignore[attr-defined]
    assert "Topic jobs has no group" in caplog.text
