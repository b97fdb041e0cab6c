"""The connection to SQS and SNS: every call in a thread, and every error translated, once.

There is no connection that could be lost: each call is a request of its own. `failed` is the last error of one.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    MessagingError,
)
from messaging_sqs.broker_time import BrokerTime
from messaging_sqs.clients import ATTEMPTS, Clients, botocore_errors, make_clients
from messaging_sqs.names import owner_of, queue_name, region_of
from messaging_sqs.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging_sqs.settings import SQSSettings

T = TypeVar("T")
Service: TypeAlias = Literal["sqs", "sns", "sts"]

_AUTHENTICATION = frozenset(
    {
        "InvalidClientTokenId",
        "InvalidClientToken",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "InvalidSignatureException",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "MissingAuthenticationToken",
        "IncompleteSignature",
        "OptInRequired",
    }
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException"})
_DENIED = frozenset(
    {"AccessDenied", "AccessDeniedException", "AuthorizationError", "AuthorizationErrorException"}
)
_ABSENT = frozenset(
    {
        "AWS.SimpleQueueService.NonExistentQueue",
        "QueueDoesNotExist",
        "NotFound",
        "NotFoundException",
        "ResourceNotFound",
        "ResourceNotFoundException",
    }
)
_LIMITS = frozenset(
    {"RequestLimitExceeded", "TooManyRequestsException", "OverLimit", "IDPCommunicationError"}
)
"""What is throttled without saying so."""
_CLOCKS = frozenset({"RequestExpired", "RequestTimeTooSkewed", "RequestInTheFuture"})
_SKEWED = ("signature expired", "signature not yet current")
"""How the text of a refused signature begins where the clocks differ: nothing is wrong with the credentials."""
_REQUEST_TIMEOUT = 408
_TOO_MANY_REQUESTS = 429
_UNSENT = (
    botocore_errors.EndpointConnectionError,
    botocore_errors.ConnectTimeoutError,
    botocore_errors.ProxyConnectionError,
    botocore_errors.SSLError,
)
"""No request has reached the service."""
_NO_CREDENTIALS = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.UnauthorizedSSOTokenError,
)
_NOT_RENEWED = (botocore_errors.CredentialRetrievalError, botocore_errors.TokenRetrievalError)
_STILL_EXPIRED = "refreshed credentials are still expired"
"""botocore raises a bare RuntimeError with it."""


_STORING = frozenset(("publish_batch", "send_message_batch"))
"""What is repeated here and not by boto3, which tells of the last attempt only: one before it may have been taken."""
DOUBTFUL = "doubtful"
"""Beside what the service answers: an attempt before this one may have been taken, with what it says was refused."""


class Absent(MessagingError):
    """The queue, topic or subscription does not exist."""


class Denied(ConfigurationError):
    """This role may not do it: the service was reached, and the credentials are known."""


class Exists(MessagingError):
    """It exists already, with other attributes."""


class DeletedRecently(MessagingError):
    """A queue of this name was deleted within the last minute."""


class Untaken(ConnectionFailed):
    """The service has done nothing with the request: throttled, or not reached. Sending it again makes no copy."""


class Throttled(Untaken):
    """The service was reached, and wants fewer requests."""


class Interrupted(ConnectionFailed):
    """The request may have reached the service: what it did with it is unknown."""


class Connection:
    """The clients, and the threads in which they block."""

    def __init__(self, settings: SQSSettings) -> None:
        self.settings = settings
        self._clients: Clients | None = None
        self._threads = Threads("messaging-sqs", settings.threads)
        self._polls: set[Threads] = set()
        self._account = settings.account
        self._queues: str | None = None
        self._opened = False
        self.failed: str | None = None
        self.time = BrokerTime()

    @property
    def clients(self) -> Clients:
        if self._clients is None:
            raise Closed(f"the connection to {self.address} is not open")
        return self._clients

    @property
    def address(self) -> str:
        """Where the service is, for errors and logs."""
        clients = self._clients
        if clients is None:
            return self.settings.address
        return f"AWS {clients.region}" if clients.is_aws else clients.endpoint

    @property
    def is_aws(self) -> bool:
        return self.settings.is_aws if self._clients is None else self._clients.is_aws

    async def open(self) -> None:
        """Find credentials and ask both services once.

        Raises AuthenticationFailed, ConnectionFailed (naming where, and how long it waited) or ConfigurationError.
        """
        settings = self.settings
        started = time.monotonic()
        try:
            self._clients = await self._run(
                partial(make_clients, settings), "asking the AWS chain", self._threads
            )
            try:
                await self.call("sqs", "get_queue_url", QueueName=f"{settings.prefix}-none")
            except Absent:
                pass
            except ConfigurationError:
                pass  # the credentials are known, and may not ask for this one name
            if settings.fanout == "sns" and self._account is None:
                self._account = (await self.call("sts", "get_caller_identity"))["Account"]
        except ConnectionFailed as error:
            if isinstance(error, AuthenticationFailed):
                raise
            raise ConnectionFailed(
                f"cannot reach SQS at {self.address} (gave up after {time.monotonic() - started:.1f} s): {error}"
            ) from error
        self._opened = True

    def close(self) -> None:
        """No further call. Those that run end by themselves; their threads hold up nothing."""
        self._threads.close()
        for threads in self._polls:
            threads.close()

    # --- names -------------------------------------------------------------------------------------------------

    def topic_arn(self, name: str) -> str:
        clients = self.clients
        return f"arn:{clients.partition}:sns:{clients.region}:{self._account}:{name}"

    def remember(self, url: str) -> str:
        """The URL of a queue of this account tells those of the others."""
        self._queues = url.rpartition("/")[0]
        return url

    def is_elsewhere(self, reference: str) -> bool:
        """Whether an ARN or URL is of another region, where nothing of this connection reaches it."""
        there, here = region_of(reference), region_of(f"{self.clients.region}/")
        return None not in (there, here) and there != here

    def check_region(self, reference: str) -> None:
        """Raises ConfigurationError for another region: what has the same name here is not what was meant."""
        if self.is_elsewhere(reference):
            raise ConfigurationError(
                f"{reference!r} is in region {region_of(reference)}, and this connection is to "
                f"{self.clients.region}: use a bus of its own for it, with sqs://{region_of(reference)}"
            )

    async def queue_url(self, reference: str) -> str:
        """Of a queue by its name in this account, or by its ARN or URL. Raises Absent, or ConfigurationError for one
        of another region.
        """
        self.check_region(reference)
        owner = owner_of(reference)
        more: dict[str, Any] = {} if owner is None else {"QueueOwnerAWSAccountId": owner}
        answer = await self.call("sqs", "get_queue_url", QueueName=queue_name(reference), **more)
        url: str | None = answer.get("QueueUrl")
        if url is None:
            raise ConnectionFailed(f"GetQueueUrl at {self.address} was answered by something that is not SQS")
        return self.remember(url) if owner in (None, self._account) else url

    async def likely_url(self, reference: str) -> str:
        """The URL that a queue of this name in this account, or of this ARN, has, if there is one. Raises Absent."""
        if self._queues is None:
            return await self.queue_url(reference)
        owner = owner_of(reference)
        queues = self._queues if owner is None else f"{self._queues.rpartition('/')[0]}/{owner}"
        return f"{queues}/{queue_name(reference)}"

    # --- calls -------------------------------------------------------------------------------------------------

    def poll_threads(self, size: int) -> Threads:
        """Threads for the receives of one consumer, which must not keep others waiting."""
        threads = Threads("messaging-sqs-poll", size)
        self._polls.add(threads)
        return threads

    def release(self, threads: Threads) -> None:
        """These threads are needed no more."""
        threads.close()
        self._polls.discard(threads)

    async def call(
        self, service: Service, operation: str, /, *, once: bool = False, **parameters: Any
    ) -> Any:
        """One request and its answer. Cancelling leaves the request to end by itself.

        `once`: of what nothing deduplicates, a request that stores is repeated only where nothing was taken (20). Once
        an attempt may have been taken, an error of a later one is Interrupted, and its answer is marked `DOUBTFUL`.
        Raises Absent, Exists, DeletedRecently, Denied, AuthenticationFailed,
        ConnectionFailed (nothing was done), Interrupted (unknown), MessagingError (it cannot be sent).
        """
        if operation not in _STORING:
            return await self._answer(
                partial(getattr(getattr(self.clients, service), operation), **parameters), operation
            )
        request = partial(getattr(self.clients.sends[service], operation), **parameters)
        attempt, doubtful = 0, False
        while True:
            attempt += 1
            try:
                answer = await self._answer(request, operation)
                return {**answer, DOUBTFUL: True} if doubtful else answer
            except MessagingError as error:
                again = isinstance(error, Untaken) or (isinstance(error, Interrupted) and not once)
                if again and attempt < ATTEMPTS:
                    doubtful = doubtful or isinstance(error, Interrupted)
                elif doubtful:
                    raise Interrupted(f"{error}; an attempt before this one may have been taken") from error
                else:
                    raise
            await asyncio.sleep(random.uniform(0, 2.0 ** (attempt - 1)))  # as boto3 does

    async def _answer(self, request: Callable[[], Any], operation: str) -> Any:
        answer = await self._run(request, _spoken(operation), self._threads)
        self.time.heard(answer)
        return answer

    async def poll(
        self, threads: Threads, abandoned: Callable[[], bool], **parameters: Any
    ) -> tuple[Sequence[dict[str, Any]], float]:
        """The messages of one receive, and when they came, in monotonic seconds.

        Where they are `abandoned` by then, they go back at once. Raises as `call` does.
        """
        client = self.clients.polls

        def receive() -> tuple[Sequence[dict[str, Any]], float]:
            answer = client.receive_message(**parameters)
            self.time.heard(answer)
            messages = answer.get("Messages") or ()
            came = time.monotonic()
            if messages and abandoned():
                # The last first: the order of a message group is kept.
                entries = [
                    {"Id": str(at), "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0}
                    for at, message in enumerate(reversed(messages))
                ]
                client.change_message_visibility_batch(QueueUrl=parameters["QueueUrl"], Entries=entries)
            return messages, came

        return await self._run(receive, _spoken("receive_message"), threads)

    async def _run(self, request: Callable[[], T], what: str, threads: Threads) -> T:
        try:
            answer = await threads.run(request)
        except Exception as error:
            raise self.translated(error, what) from error
        self.failed = None
        return answer

    def translated(self, error: Exception, what: str) -> MessagingError:
        """Any error of boto3 as one of ours; `what` names the call."""
        where = f"{what} at {self.address}"
        if isinstance(error, MessagingError):
            return error
        if isinstance(error, _NO_CREDENTIALS):
            return AuthenticationFailed(f"{where}: the AWS chain has no usable credentials: {error}")
        if isinstance(error, _NOT_RENEWED) or _STILL_EXPIRED in str(error):
            return self._not_renewed(f"{where}: the AWS chain has no usable credentials: {error}")
        if isinstance(error, botocore_errors.ClientError):
            return self._refused(error, where)
        if isinstance(error, botocore_errors.ParamValidationError):
            return MessagingError(f"{where} was not sent: {error}")
        # Anything else, such as an answer that nobody can read: the service may have done it.
        self.failed = f"{where} had no answer: {str(error) or repr(error)}"
        return Untaken(self.failed) if isinstance(error, _UNSENT) else Interrupted(self.failed)

    def _not_renewed(self, text: str) -> ConnectionFailed:
        """Credentials that were good once may be renewed by the next call (25): only at `open` they are wrong."""
        if not self._opened:
            return AuthenticationFailed(text)
        self.failed = text
        return ConnectionFailed(text)

    def _refused(self, error: Any, where: str) -> MessagingError:
        self.time.heard(error.response)
        details: dict[str, Any] = error.response.get("Error", {})
        code, text = str(details.get("Code", "")), str(details.get("Message", ""))
        codes = {code, str(details.get("QueryErrorCode", ""))}
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        if codes & _CLOCKS or text.lower().startswith(_SKEWED):
            self.failed = f"{where} was refused for now, the clock of this machine is wrong: {code} {text}"
            return Untaken(self.failed)
        if codes & _AUTHENTICATION:
            return AuthenticationFailed(f"{where}: the credentials were refused: {code}")
        if codes & _EXPIRED:
            text = f"{where}: the credentials were refused: {code}"
            return self._not_renewed(text) if self.clients.renewing else AuthenticationFailed(text)
        if codes & _DENIED:
            self.failed = None  # it is an answer
            return Denied(
                f"{where} is not permitted: {text}. The documentation lists the least policy to grant"
            )
        if codes & _ABSENT:
            return Absent(f"{where}: {text}")
        if code.endswith("QueueDeletedRecently") or "QueueDeletedRecently" in codes:
            return DeletedRecently(f"{where}: {text}")
        if "QueueNameExists" in codes or "already exists with different" in text:
            return Exists(f"{where}: {text}")
        if any(map(throttled, codes)) or status == _TOO_MANY_REQUESTS:
            self.failed = None  # it is an answer
            return Throttled(f"{where} was refused for now: {code} {text}")
        if status >= 500 or status == _REQUEST_TIMEOUT:  # a gateway's, which may have passed the request on
            self.failed = f"{where} failed in the service: {code} {text}"
            return Interrupted(self.failed)
        # What is not known to last passes by itself (25), and none of it was done.
        return ConnectionFailed(f"{where} was refused: {code} {text}")


def throttled(code: str) -> bool:
    """Whether a call, or an entry of one, that is refused with this code may be sent again soon: nothing was done."""
    return "throttl" in code.lower() or code.rpartition(".")[2] in _LIMITS


def _spoken(operation: str) -> str:
    return operation.title().replace("_", "")
