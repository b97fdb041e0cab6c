"""AWS lists subscriptions some 30 times a second for a whole account: what only looks is no reason to fail."""

from messaging.adapter import BrokerHealth
from messaging.errors import PublishError
from messaging.message import Receipt
from tests.contract.bench import ids, outgoing, receive
from tests.contract.sqs.support import Bench, Refusal


async def test_publishing_goes_on_while_nobody_may_look_who_gets_it(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    refusal = Refusal(adapter.native.sns, "ListSubscriptionsByTopic", 400, "Throttling", "Rate exceeded")
    needs, plain = await adapter.publish(
        [outgoing(group.topic, "needs", mandatory=True), outgoing(group.topic, "plain")]
    )
    assert isinstance(plain, Receipt)
    assert type(needs) is PublishError
    assert "Rate exceeded" in str(needs)
    refusal.over = True
    (result,) = await adapter.publish([outgoing(group.topic, "again", mandatory=True)])
    assert isinstance(result, Receipt)
    assert sorted(ids(await receive(bench.consumer(adapter, group), 2))) == ["again", "plain"]


async def test_a_probe_that_is_throttled_has_no_figures_and_finds_the_service_reached(bench: Bench):
    adapter = await bench.adapter()
    await bench.group(adapter)
    Refusal(adapter.native.sns, "ListSubscriptionsByTopic", 400, "Throttling", "Rate exceeded")
    assert await adapter.health() == BrokerHealth(connected=True)
