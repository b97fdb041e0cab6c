"""The cases that LocalStack is too kind for: FIFO blocking, delays and limits as AWS has them, on ElasticMQ.

Without SNS, so all of it goes by `fanout=client`. ElasticMQ takes 256 KiB, and one case of `delivery` sends more.
"""

import asyncio

import pytest

from messaging_contracts import run
from messaging_contracts.case import all_cases
from messaging_contracts.targets import target_of

AREAS = ("order", "retry", "delay", "settlement", "dead_letters")
CASES = [case for case in all_cases() if case.area in AREAS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_promise_is_kept_with_the_limits_of_aws(case, elasticmq_url):
    assert asyncio.run(run(case, target_of(f"{elasticmq_url}&max_message_bytes=262144"))) == "kept"
