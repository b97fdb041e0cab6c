"""The example shop keeps its promises on each broker, chosen by URL alone, and notices when one is broken."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from examples.checkout.catalogue import SHELF
from examples.checkout.orders import BadLine, OrderPlaced, read_orders
from examples.checkout.report import Ledger, judge

ORDERS = Path(__file__).parents[2] / "examples" / "checkout" / "orders.jsonl"
BAD_LINES = [17, 29, 46, 73, 95, 102, 118, 142, 166, 185, 213, 231, 258, 297]
PROMISES = 8

SABOTAGE = """
import sys
from examples.checkout.__main__ import main
from examples.checkout.report import Ledger

keep = Ledger.handled

def handled(ledger, group, order, *, attempt):
    if (group, order.order_id) != ("email", "o-40100"):
        keep(ledger, group, order, attempt=attempt)

Ledger.handled = handled
sys.exit(main(["--patience", "3"]))
"""

# Nobody looks at the run for a while, as on a machine that is busy with other things or was asleep.
STANDSTILL = """
import sys, time
from examples.checkout import __main__ as shop

clock, look, stood_still = time.monotonic, shop.settled, 0

async def look_late(bus):
    global stood_still
    stood_still = 10
    return await look(bus)

time.monotonic = lambda: clock() + stood_still
shop.settled = look_late
sys.exit(shop.main(["--patience", "5"]))
"""

SLOW_CATALOGUE = """
import sys
from examples.checkout import gateway
from examples.checkout.__main__ import main

gateway.TIMEOUT = 1e-6
sys.exit(main())
"""


def test_the_shop_keeps_its_promises_on_every_broker(python, broker_url):
    run = python(["-m", "examples.checkout"], environment={"MESSAGING_URL": broker_url})

    assert run.returncode == 0, run.stdout + run.stderr
    assert not run.stderr
    assert "file        302 orders, 3 sent twice, 14 bad lines" in run.stdout
    assert re.search(r"payment +302 orders, 7 after retries, 0 duplicates", run.stdout)
    assert re.search(r"inventory +302 orders, 0 after retries, 0 duplicates", run.stdout)
    assert re.search(r"email +302 orders, \d+ after retries, 0 duplicates", run.stdout)
    assert re.search(r"analytics +302 orders, 0 after retries, [3-9]\d* duplicates", run.stdout)
    assert run.stdout.count("  kept  ") == PROMISES
    assert "BROKEN" not in run.stdout
    assert [int(number) for number in re.findall(r"line (\d+) is no order", run.stdout)] == BAD_LINES
    assert (urlsplit(broker_url).password or "secret") not in run.stdout


@pytest.mark.kafka
@pytest.mark.rabbitmq
def test_named_topics_go_to_kafka_and_the_rest_to_rabbitmq_by_settings_alone(
    python, kafka_url, rabbitmq_url, tmp_path
):
    settings = tmp_path / "messaging.toml"
    settings.write_text(f'[routes]\n"catalogue.*" = "log"\n"checkout.payments" = "{kafka_url}"\n')

    run = python(
        ["-m", "examples.checkout"],
        environment={
            "MESSAGING_URL": rabbitmq_url,
            "MESSAGING_CONFIG": str(settings),
            "MESSAGING__BROKER__LOG__URL": kafka_url,
        },
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert not run.stderr
    assert re.search(r"checkout\.orders lives on amqp://", run.stdout)
    assert re.search(r"checkout\.payments lives on (log|kafka://)", run.stdout)
    assert "catalogue.product lives on log" in run.stdout
    assert run.stdout.count("  kept  ") == PROMISES
    assert "BROKEN" not in run.stdout


def test_a_broker_that_is_not_there_is_told_in_one_line(python):
    run = python(["-m", "examples.checkout"], environment={"MESSAGING_URL": "redis://me:s3cret@127.0.0.1:1"})

    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "127.0.0.1" in run.stderr
    assert "s3cret" not in run.stdout + run.stderr


def test_the_shop_runs_on_memory_when_no_url_is_given(python):
    run = python(["-m", "examples.checkout"])

    assert run.returncode == 0, run.stdout + run.stderr
    assert "memory://" in run.stdout


def test_a_broken_promise_makes_the_shop_exit_non_zero(python):
    run = python(["-c", SABOTAGE])

    assert run.returncode == 1, run.stdout + run.stderr
    assert "BROKEN  every group handles every order" in run.stdout
    assert "email did not handle o-40100" in run.stdout


def test_the_shop_waits_for_what_goes_on_however_slow_the_machine_is(python):
    run = python(["-c", STANDSTILL])

    assert run.returncode == 0, run.stdout + run.stderr


def test_a_page_that_is_late_is_told_as_a_broken_promise(python):
    run = python(["-c", SLOW_CATALOGUE])

    assert run.returncode == 1, run.stdout + run.stderr
    assert not run.stderr
    assert "no page of MUG-BLUE: No reply from catalogue." in run.stdout
    assert "BROKEN  a page is put together from three replies" in run.stdout
    assert run.stdout.count("  kept  ") == PROMISES - 1


def test_a_bad_line_loses_no_good_one():
    read = list(read_orders(ORDERS, SHELF))

    bad = [line for line in read if isinstance(line, BadLine)]
    good = [line for line in read if isinstance(line, OrderPlaced)]
    assert [line.number for line in bad] == BAD_LINES
    assert all(line.problem for line in bad)
    assert len(good) + len(bad) == sum(bool(line.strip()) for line in ORDERS.read_bytes().split(b"\n"))


def test_every_promise_of_the_shop_can_be_seen_broken():
    """The judge is not blind: a run that did nothing and one that did too much break all of them."""
    good = [line for line in read_orders(ORDERS, SHELF) if isinstance(line, OrderPlaced)]
    idle = Ledger(good)
    wild = Ledger(good)
    for order in [*reversed(good), good[0]]:
        wild.handled("inventory", order, attempt=1)
        wild.handled("payment", order, attempt=1)

    broken = {
        promise.text
        for ledger in (idle, wild)
        for promise in judge(ledger, lines=0, slow={good[0].order_id}, poison={good[1].order_id})
        if not promise.kept
    }

    assert len(broken) == PROMISES
