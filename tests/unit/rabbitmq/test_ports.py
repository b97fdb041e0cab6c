"""A channel is sent no more than RabbitMQ takes for certain: else nothing of the whole connection is read."""

from hypothesis import given
from hypothesis import strategies as st

from messaging_rabbitmq.ports import CREDIT, MORE, TOGETHER, WITHHELD, Port


class Channel:
    """What RabbitMQ does with the messages of one channel (`credit_flow`): read, taken, confirmed by the queue."""

    def __init__(self) -> None:
        self.credit = CREDIT
        self.taken = self.confirmed = self.deferred = 0

    def read(self, number: int) -> None:
        self.credit -= number
        assert self.credit > 0, "the connection is not read any more"

    def take(self) -> None:
        """The queue gets a message; while it is behind, its channel gives no more."""
        self.taken += 1
        self.deferred += MORE * (self.taken % MORE == 0)
        self.give()

    def confirm(self) -> None:
        self.confirmed += 1
        self.give()

    def give(self) -> None:
        if self.taken - self.confirmed < WITHHELD:
            self.credit += self.deferred
            self.deferred = 0


@given(st.lists(st.tuples(st.integers(1, TOGETHER), st.integers(0, 400), st.integers(0, 400)), max_size=60))
def test_a_connection_is_read_whenever_a_queue_stops_to_answer(steps):
    port, channel = Port(None), Channel()  # type: ignore[arg-type]
    sent = told = 0
    for number, takes, confirms in steps:
        if port.has_room(number):
            port.send(number)
            channel.read(number)
            sent += number
        for _ in range(min(takes, sent - channel.taken)):
            channel.take()
        for _ in range(min(confirms, channel.taken - channel.confirmed)):
            channel.confirm()
        port.confirm(channel.confirmed - told)
        told = channel.confirmed
        assert port.busy or port.has_room(TOGETHER)
