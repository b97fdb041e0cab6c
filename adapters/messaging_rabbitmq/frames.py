"""Handing a batch of messages to aiormq."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel

    from messaging_rabbitmq.properties import Parcel


async def hand_over(channel: AbstractChannel, parcels: Sequence[Parcel]) -> Sequence[asyncio.Future[Any]]:
    """Queue all for the socket, in order; a future for each, done when the broker has confirmed it.

    The futures fail as aiormq's `basic_publish` does.
    """
    return [_publish(channel, parcel) for parcel in parcels]


def _publish(channel: AbstractChannel, parcel: Parcel) -> asyncio.Future[Any]:
    task = asyncio.ensure_future(
        channel.basic_publish(
            parcel.body,
            exchange=parcel.exchange,
            routing_key=parcel.routing_key,
            properties=parcel.properties,
            mandatory=parcel.mandatory,
            wait=False,
        )
    )
    task.add_done_callback(_read)
    return task


def _read(task: asyncio.Future[Any]) -> None:
    """Whoever waited may be gone: a failure that nobody reads is no news."""
    if not task.cancelled():
        task.exception()
