"""A simulated member that answers requests as well."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from messaging import Reject, Release, Retry
from messaging.app import RESPONDERS
from messaging.message import seconds
from messaging_contracts.simulation.loop import EPOCH, RESOLUTION
from messaging_contracts.simulation.process import Member
from messaging_contracts.simulation.requested import ENDPOINT
from messaging_contracts.simulation.requester import telling

if TYPE_CHECKING:
    from messaging import App, Delivery


class RespondingMember(Member):
    """A member that also answers requests, with the same faults as its handler has."""

    def extend(self, app: App) -> None:
        requests = self.world.scenario.requests
        assert requests is not None, "a history with a responder has requests"
        app.respond(
            ENDPOINT,
            concurrency=requests.concurrency,
            timeout=requests.timeout,
            idempotent=requests.idempotent,
        )(self._respond)
        self._requests = requests

    async def _respond(self, request: str, delivery: Delivery[Any]) -> tuple[str, str]:
        token = self.store.tokens[request] if self._requests.idempotent else 0
        name = self.begun(delivery, request, group=RESPONDERS, token=token)
        self._check(request, delivery)
        begun = self.now()
        self.answering += 1
        if self.answering > self._requests.concurrency and not self.dead:
            self.world.problem(f"{self.name} answers {self.answering} requests")
        try:
            outcome = await self.behave(delivery)
        except asyncio.CancelledError:
            self.end(name, "rejected" if self.timed_out(begun, self._requests.timeout) else "cancelled")
            raise
        except Exception as error:
            self.end(name, "rejected")
            raise RuntimeError(telling(request, name)) from error
        finally:
            self.answering -= 1
        if isinstance(outcome, Release):
            self.end(name, "released", seconds(outcome.after or 0.0))
            return outcome  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  given back, unanswered
        if isinstance(outcome, Retry | Reject):
            self.end(name, "rejected")  # a responder runs once: its failure is the answer
            raise type(outcome)(telling(request, name))
        self.end(name, "succeeded")
        return request, name

    def _check(self, request: str, delivery: Delivery[Any]) -> None:
        """A request always expires, and nobody answers it then (22)."""
        expires_at = delivery.message.expires_at
        until = EPOCH + self.world.requested.until[request] + RESOLUTION
        if expires_at is None or not self.clock.time() < expires_at.timestamp() <= until:
            self.world.problem(
                f"{self.name} answers {request}, which expired at {expires_at}, and has to at {until}"
            )
        if delivery.attempt > 1:
            self.world.problem(f"{self.name} answers {request} with attempt {delivery.attempt}")
