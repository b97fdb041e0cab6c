"""The pytest plugin as a user of the library meets it."""

import sys

import pytest

from messaging import Bus
from messaging_contracts.brokers import environment_variable
from messaging_contracts.brokers.sqs import CREDENTIALS

pytest_plugins = ["pytester"]

TESTS_OF_A_USER = """
import asyncio
from messaging import App, Delivery, Topic, connect

orders = Topic("orders", int)

async def test_a_handler(bus):
    app, handled = App("billing"), asyncio.Event()

    @app.subscribe(orders)
    async def charge(order: int) -> None:
        handled.set()

    async with app.running(bus):
        await bus.publish(orders, 1)
        await asyncio.wait_for(handled.wait(), 5)

async def test_a_url(messaging_url):
    async with connect(messaging_url) as bus:
        await bus.declare(orders, groups=["billing"])
        assert [group.group for group in await bus.groups()] == ["billing"]

def test_something_else():
    pass
"""


def run(pytester, *arguments, mode="auto"):
    pytester.makepyfile(TESTS_OF_A_USER)
    pytester.makeini(f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n")
    return pytester.runpytest_subprocess("-q", *arguments)


def test_a_users_tests_run_in_memory_unless_told_otherwise(pytester):
    run(pytester, "-v").assert_outcomes(passed=3)


def test_a_users_tests_run_on_each_broker_that_is_named(pytester):
    result = run(pytester, "-v", "--messaging-broker", "memory,memory://another")
    result.assert_outcomes(passed=5)


def test_a_server_that_the_plugin_starts_comes_with_what_its_clients_need(pytester, monkeypatch):
    for variable in (environment_variable("elasticmq"), *CREDENTIALS):
        monkeypatch.delenv(variable, raising=False)

    run(pytester, "--messaging-broker", "elasticmq").assert_outcomes(passed=3)


def test_a_broker_that_cannot_be_had_fails_and_is_named(pytester):
    result = run(pytester, "--messaging-broker", "nosuch")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*nosuch*"])


def test_no_name_at_all_is_an_error_and_skips_nothing(pytester):
    result = run(pytester, "--messaging-broker", "")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*--messaging-broker '' names no broker*"])


def test_the_plugin_costs_nothing_where_it_is_not_used(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_nothing_was_imported():
            assert not {"messaging", "redis", "aiormq", "messaging_contracts.brokers"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


async def test_the_bus_fixture_is_open_and_alone(bus: Bus):
    assert await bus.groups() == []
    assert (await bus.health()).connected


SUITE_OF_AN_AUTHOR = """
import pytest
from messaging_contracts import BrokerContract

class TestMyBroker(BrokerContract):
    @pytest.fixture
    def url(self) -> str:
        return "memory://mine"
"""


def test_an_author_needs_a_subclass_and_one_fixture(pytester):
    pytester.makepyfile(SUITE_OF_AN_AUTHOR)
    result = pytester.runpytest_subprocess("-q", "-k", "headers_arrive or any_bytes or groups_can_be_listed")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] >= 3
    assert "failed" not in outcomes


def test_without_the_extra_it_is_in_nobodys_way_and_says_what_a_bus_needs(pytester):
    pytester.makepyfile("def test_of_another_project(): pass\ndef test_of_ours(bus): pass")
    pytester.makepyfile(pytest_asyncio="raise ModuleNotFoundError(name=__name__)")

    result = pytester.run(sys.executable, "-m", "pytest", "-p", "no:asyncio")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*pip install 'messaging-ports?contracts?'*"])
