"""Runs cases against mutants in processes of their own: they wait more than they work, so several run at once."""

import asyncio
import multiprocessing
import secrets
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from messaging_contracts.case import all_cases
from messaging_contracts.cases import generations as changes
from messaging_contracts.ledger import Patience
from messaging_contracts.runner import run
from messaging_contracts.targets import target_of, with_options
from tests.contract.mutants import (  # noqa: F401  they register theirs
    checking,
    consuming,
    delaying,
    garbage,
    generations,
    handling,
    operating,
    publishing,
    requesting,
    uncertain,
)
from tests.contract.mutants.mutant import MUTANTS

CASES = {case.name: case for case in all_cases()}
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
AT_ONCE = 4
"""Processes."""
PATIENCE = 0.6
"""Seconds that a case waits here for what must come: a mutant may make it wait for ever."""
SLOW = {
    "a_backlog_in_two_generations_is_handled_in_order": 2.0,
    "a_delayed_message_is_never_early_and_hardly_late": 1.8,
    "a_delayed_message_is_retried_and_given_up_as_any_other": 1.0,
    "a_delayed_message_outlives_the_member_that_received_it": 4.0,
    "a_delayed_retry_outlives_the_member_that_failed": 1.2,
    "a_delivery_whose_lease_has_ended_belongs_to_another": 2.0,
    "a_failing_key_does_not_stall_other_keys": 1.4,
    "a_failing_key_holds_its_messages_of_the_next_generation": 3.0,
    "a_frozen_member_loses_its_messages_and_spoils_nothing": 3.0,
    "a_member_that_joins_takes_part": 1.6,
    "a_message_that_kills_its_process_ends_as_a_dead_letter_alone": 1.2,
    "a_policy_says_how_long_to_wait": 1.2,
    "a_program_may_describe_any_kept_generation_and_no_other": 2.0,
    "a_release_waits_as_long_as_it_says": 1.0,
    "a_retry_is_never_early_and_hardly_late": 1.8,
    "a_slow_handler_keeps_its_message": 3.2,
    "a_topic_without_order_changes_and_loses_nothing": 2.0,
    "a_woken_member_starts_nothing_that_others_have_handled": 3.0,
    "an_attempt_survives_the_member_that_failed": 1.6,
    "an_expired_message_becomes_a_dead_letter_where_that_is_asked": 2.0,
    "failing_messages_do_not_stall_the_others": 0.9,
    "garbage_is_handled_or_given_up_with_a_reason": 2.0,
    "garbage_stops_no_ordered_topic": 2.0,
    "members_of_a_group_share_its_messages": 1.0,
    "order_begins_while_programs_run": 3.0,
    "order_holds_while_the_partitions_change": 3.0,
    "order_is_given_up_while_programs_run": 3.0,
    "what_a_killed_member_was_giving_up_is_kept": 1.2,
}
"""Cases that need longer, when all is well."""
OURS = (AttributeError, NameError, TypeError, ImportError, RecursionError)
"""A mutant that fails in one of these ways is broken itself."""


class Lab:
    """Starts runs, each in some process; each result is what the cases raise, by name, as text."""

    def __init__(self):
        spawned = multiprocessing.get_context("spawn")
        self._processes = ProcessPoolExecutor(AT_ONCE, mp_context=spawned)

    def start(self, mutant, names, server):
        """A run of these cases on a mutant, or on what is no mutant."""
        return self._processes.submit(failures_on, mutant, tuple(names), server)

    def close(self):
        self._processes.shutdown(cancel_futures=True)


def failures_on(mutant, names, server):
    changes.INTERVAL, changes.GRACE = 0.1, 0.4
    Patience.seconds = max(SLOW.get(name, PATIENCE) for name in names)
    url = f"memory://{secrets.token_hex(6)}"
    if server is not None:
        url = with_options(server, namespace=secrets.token_hex(6))
    if mutant is None:
        failures = _on_the_broker_itself(names, url)
    else:
        with BY_NAME[mutant].applied():
            failures = asyncio.run(_failures(names, url, at_once=8))
    return {name: (isinstance(error, OURS), repr(error)[:2000]) for name, error in failures.items()}


def _on_the_broker_itself(names, url):
    """On a busy machine a healthy case may need longer, too: what fails is run again, with nothing beside it."""
    failures = asyncio.run(_failures(names, url, at_once=3))
    for _ in range(3):
        failures = asyncio.run(_failures(failures, url, at_once=1))
    return failures


async def _failures(names, url, at_once):
    gate, failures = asyncio.Semaphore(at_once), {}

    async def one(name):
        async with gate:
            try:
                await run(replace(CASES[name], limit=6.0), target_of(url))
            except Exception as error:
                failures[name] = error

    async with asyncio.TaskGroup() as running:
        for name in names:
            running.create_task(one(name))
    return failures
