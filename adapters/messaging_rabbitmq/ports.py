"""The channels that publish: what is unconfirmed on one is all of one lane, so that a queue holds up its own lane only.

A lane is what goes to one topic or, past the topics, to one queue. RabbitMQ's process for a channel that publishes to
a quorum queue without a leader waits for that queue, for a minute with each message, or takes no more of what the
connection has for it; and once a channel has been sent 400 messages that it has not taken, nothing of the whole
connection is read. So channels are not shared, and each is sent no more than it takes for certain.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from messaging.errors import ConnectionFailed
from messaging_rabbitmq.connection import abandon, when_closed
from messaging_rabbitmq.outlet import outlet_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractChannel

    from messaging_rabbitmq.confirms import Batch
    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.outlet import Outlet

CREDIT: Final = 400
MORE: Final = 200
"""What a channel is sent before it gives more, and how much: `credit_flow_default_credit` of RabbitMQ."""
WITHHELD: Final = 32
"""Messages that a queue has not confirmed, from which on a channel gives no more: `quorum_commands_soft_limit`."""
TOGETHER: Final = 128
"""Messages that are handed over together: a channel on which nothing is unconfirmed takes so many for certain."""
CHANNELS: Final = 128
"""Of one connection."""
SPREAD: Final = 2
"""Channels of a lane without order: one takes what is sent while the other must first be confirmed."""
PAUSE: Final = 5.0
"""Seconds until another channel is asked for after one was not given."""
RENEWED: Final = 1.0
"""Seconds after which a channel is given up that was refused a message. To a queue whose leader was away when the
channel first sent something to it, RabbitMQ takes nothing of that channel any more, with a new leader either (seen on
3.10.8). Where the queue is full, a new channel each second costs little.
"""


class Port:
    """One channel, and what it takes for certain."""

    __slots__ = ("_allowed", "_confirmed", "_sent", "ended", "lane", "opened", "outlet", "spent")

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.lane = ""
        """What is unconfirmed on it is of this lane."""
        self.ended: Callable[[int, bool], None] | None = None
        """Told of each batch that is over."""
        self.opened = 0.0
        self.spent = False
        """It takes nothing more, and is closed when all on it is over."""
        self._sent = self._confirmed = 0
        self._allowed = CREDIT - 1

    @property
    def busy(self) -> bool:
        """Whether something is unconfirmed."""
        return self._sent != self._confirmed

    def has_room(self, number: int) -> bool:
        """Whether it certainly takes so many more."""
        return self._sent + number <= self._allowed and not self.spent

    def send(self, number: int) -> None:
        """So many are handed over."""
        self._sent += number

    def confirm(self, number: int) -> None:
        """So many are over."""
        self._confirmed = confirmed = self._confirmed + number
        if self._sent - confirmed < WITHHELD:
            self._allowed = CREDIT - 1 + confirmed // MORE * MORE


class Ports:
    """Hands batches over to channels, which are opened when they are needed; those of one lane in their order.

    `outstanding` messages are unconfirmed at most. With `Batch.spread`, several channels may carry a lane at once.
    """

    def __init__(self, link: Link, outstanding: int) -> None:
        self._link = link
        self._outstanding = outstanding
        self.unconfirmed = 0
        self._all: list[Port] = []
        self._homes: dict[str, list[Port]] = {}
        """Of each lane those that carried it last."""
        self._waiting: deque[Batch] = deque()
        self._opening: asyncio.Task[None] | None = None
        self._short = False
        """A batch has found no channel."""
        self._pause: asyncio.TimerHandle | None = None
        """No other channel is asked for until then."""
        self._serving = False
        self._latest = ""
        """The lane of what was handed over last."""

    def send(self, batch: Batch) -> None:
        """Hand it over, now or when there is room; `Batch.unsent` if there will be none."""
        if self._waiting or not self._hand_over(batch):
            self._waiting.append(batch)
            self._serve()

    def withdraw(self, batch: Batch) -> None:
        """Nobody waits for it any more: if it was not handed over, it will not be."""
        if batch.parcels and batch in self._waiting:
            self._waiting.remove(batch)
            self._serve_soon()

    # --- from batches to channels --------------------------------------------------------------------------------

    def _hand_over(self, batch: Batch) -> bool:
        number, lane = len(batch.parcels), batch.lane
        if self.unconfirmed + number > self._outstanding:
            return False
        while (port := self._port_for(lane, number, batch.spread)) is not None:
            batch.ended = port.ended
            # The tasks of other topics run in the same tick: their frames go out together.
            more = self.unconfirmed > 0 and lane != self._latest
            if port.outlet.hand_over(batch, more=more):
                self._latest = lane
                self.unconfirmed += number
                port.send(number)
                return True
            self._gone(port)
        return False

    def _port_for(self, lane: str, number: int, spread: bool) -> Port | None:
        homes = self._homes.get(lane)
        if homes is not None:
            for port in homes:
                if port.has_room(number):
                    return port
            if len(homes) >= (SPREAD if spread else 1):
                return None
        for port in self._all:
            if not port.busy and not port.spent:
                self._leave_home(port)
                port.lane = lane
                self._homes.setdefault(lane, []).append(port)
                return port
        self._short = True
        return None

    def _leave_home(self, port: Port) -> None:
        homes = self._homes.get(port.lane)
        if homes is not None and port in homes:
            homes.remove(port)
            if not homes:
                del self._homes[port.lane]

    def _serve(self) -> None:
        """Hand over what there is room for now. Nothing passes what waits for confirms, or in its lane."""
        self._serving = False
        held: set[str] = set()
        waiting, self._waiting = self._waiting, deque()
        while waiting:
            batch = waiting.popleft()
            if self.unconfirmed + len(batch.parcels) > self._outstanding:
                waiting.appendleft(batch)
                break
            if batch.lane in held or not self._hand_over(batch):
                held.add(batch.lane)
                self._waiting.append(batch)
        self._waiting += waiting
        if self._short:
            self._short = False
            self._open()

    def _serve_soon(self) -> None:
        if self._waiting and not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    # --- from channels to batches --------------------------------------------------------------------------------

    def _over(self, port: Port, channel: AbstractChannel, number: int, refused: bool) -> None:
        self.unconfirmed -= number
        port.confirm(number)
        if refused and asyncio.get_running_loop().time() - port.opened > RENEWED:
            port.spent = True
        # Not before: what follows in its lane must not pass what is on its way.
        if port.spent and not port.busy:
            # Not at once: whoever reads its confirms has not put away the last of them.
            asyncio.get_running_loop().call_soon(self._retire, port, channel)
        if self._waiting:
            self._serve_soon()

    def _retire(self, port: Port, channel: AbstractChannel) -> None:
        if port in self._all:  # else it is gone already
            self._gone(port)
            abandon(channel)

    def _open(self) -> None:
        """One channel more, if there may be one."""
        if self._opening is not None or len(self._all) >= self._link.channel_limit(CHANNELS):
            return
        if self._pause is None or not self._all:
            self._opening = asyncio.create_task(self._add(), name="rabbitmq-publishing-channel")

    async def _add(self) -> None:
        try:
            channel = await self._link.channel(confirms=True, buffer=1024)
        except Exception as error:  # whoever waits for it is told
            self._opening = None
            self._not_opened(error)
            return
        self._opening = None
        port = Port(outlet_of(channel))
        port.opened = asyncio.get_running_loop().time()
        port.ended = partial(self._over, port, channel)
        self._all.append(port)
        when_closed(channel, partial(self._gone, port))
        self._serve()

    def _not_opened(self, error: Exception) -> None:
        if self._all:  # what waits may still go with these
            if self._pause is None:
                self._pause = asyncio.get_running_loop().call_later(PAUSE, self._paused)
            self._serve_soon()
            return
        waiting, self._waiting = self._waiting, deque()
        for batch in waiting:
            batch.unsent = error
            batch.let_go()

    def _paused(self) -> None:
        self._pause = None
        self._serve_soon()

    def _gone(self, port: Port) -> None:
        if port in self._all:
            self._all.remove(port)
            self._leave_home(port)
        port.outlet.lose(ConnectionFailed("the channel was closed"))
        self._serve_soon()
