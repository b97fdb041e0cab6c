"""Tokens for OAUTHBEARER: a setting, a file or a function, asked at each connection.

Only errors of aiokafka's own root pass through it: whatever goes wrong here becomes one, and what it was is kept.
"""

from __future__ import annotations

import asyncio
import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from messaging.errors import ConfigurationError
from messaging.shielded import shielded
from messaging_kafka import library
from messaging_kafka.library import Errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from messaging_kafka.settings import KafkaSettings


class TokenUnavailable(Errors.KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """There is no token at the moment."""

    def __init__(self, text: str, *, misconfigured: bool = False) -> None:
        Exception.__init__(self, text)
        self.misconfigured = misconfigured
        """Nothing will change until somebody mends the settings."""


class Tokens(library.TokenProvider):  # type: ignore[misc]  # aiokafka asks for its own class
    """Asks for a token. Raises ConfigurationError for a function that cannot be loaded."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._read, self._what = _reader(settings)
        self._within = settings.connect_timeout / 2
        self._asking: asyncio.Task[str] | None = None
        self.failure: TokenUnavailable | None = None
        """Why there was none when it was last asked for."""

    async def token(self) -> str:
        """A token. Raises TokenUnavailable; who asks while another waits has the same answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="messaging-kafka-token")
        try:
            async with asyncio.timeout(self._within):
                token = await shielded(self._asking)
        except TimeoutError:
            self.failure = TokenUnavailable(f"{self._what} gave no token within {self._within:g} s")
            raise self.failure from None
        except TokenUnavailable as error:
            self.failure = error
            raise
        self.failure = None
        return token

    async def _ask(self) -> str:
        try:
            token = await self._read()
        except Exception as error:
            if isinstance(error, OSError) and isinstance(self._read, _File):
                text = f"{self._what} cannot be read: {error.strerror}"
                raise TokenUnavailable(text, misconfigured=True) from error
            # Its text may have a secret: whoever wants it looks at the cause.
            raise TokenUnavailable(f"{self._what} failed: {type(error).__name__}") from error
        if not isinstance(token, str) or not token:
            raise TokenUnavailable(f"{self._what} has no token", misconfigured=True)
        return token

    async def close(self) -> None:
        """End what is asked. A function in a thread ends when it likes."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))


class _File:
    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def __call__(self) -> str:
        return (await asyncio.to_thread(self._path.read_text, encoding="utf-8")).strip()


def _reader(settings: KafkaSettings) -> tuple[Callable[[], Awaitable[Any]], str]:
    """What reads a token, and what it is called."""
    if settings.oauth_token_file is not None:
        return _File(settings.oauth_token_file), f"oauth_token_file {settings.oauth_token_file!r}"
    if settings.oauth_provider is not None:
        return _called(_loaded(settings.oauth_provider)), f"oauth_provider {settings.oauth_provider!r}"
    secret = settings.oauth_token

    async def read() -> str | None:
        return None if secret is None else secret.get_secret_value()

    return read, "oauth_token"


def _called(function: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    if inspect.iscoroutinefunction(function):
        return function

    async def call() -> Any:
        token = await asyncio.to_thread(function)  # it may wait for a server
        return await token if inspect.isawaitable(token) else token

    return call


def _loaded(path: str) -> Callable[[], Any]:
    module, _, name = path.partition(":")
    try:
        function: Callable[[], Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"oauth_provider {path!r} cannot be loaded, it is package.module:function: {error}"
        ) from None
    return function
