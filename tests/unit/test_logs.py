"""What the library logs is never the end of what it does."""

import logging

import pytest

from messaging import App, Reject, RetryPolicy
from tests.unit.topics import jobs


def breaks(record: logging.LogRecord) -> bool:
    raise RuntimeError("the log is broken")


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        breaks(record)


@pytest.fixture(params=["handler", "filter of a handler", "filter of the logger"])
def broken_log(request):
    logger, handler = logging.getLogger("messaging"), Broken()
    if request.param == "filter of the logger":
        logger.addFilter(breaks)
    else:
        logger.addHandler(handler)
    if request.param == "filter of a handler":
        handler.addFilter(breaks)
    yield
    logger.removeHandler(handler)
    logger.removeFilter(breaks)


@pytest.mark.usefixtures("broken_log")
@pytest.mark.parametrize("event", ["dead letter", "lost connection"])
async def test_a_log_that_raises_ends_no_subscription_and_is_told_of(bus, clock, capsys, event):
    app, handled = App("a", retry=RetryPolicy(1)), []

    @app.subscribe(jobs)
    async def handle(job: str):
        if job == "bad":
            raise ValueError(job)
        handled.append(job)

    async with app.running(bus):
        if event == "dead letter":
            await bus.publish(jobs, "bad")
            await clock.advance(1)
            assert await bus.dead_letters(jobs, group="a").count() == 1
        else:
            bus.native.disconnect()
            await clock.advance(1)
            bus.native.reconnect()
        await bus.publish(jobs, "good")
        await clock.advance(60)

    assert handled == ["good"]
    assert "RuntimeError: the log is broken" in capsys.readouterr().err


@pytest.mark.parametrize("event", ["told of", "not to be told of", "nowhere to tell it"])
def test_an_error_of_a_log_goes_where_logging_tells_of_those(monkeypatch, capsys, event):
    monkeypatch.setattr(logging, "raiseExceptions", event != "not to be told of")
    logger, handler = logging.getLogger("messaging"), Broken()
    logger.addHandler(handler)
    try:
        with monkeypatch.context() as patched:
            if event == "nowhere to tell it":
                patched.setattr("sys.stderr", 0)
            logger.warning("something")
    finally:
        logger.removeHandler(handler)

    assert ("the log is broken" in capsys.readouterr().err) == (event == "told of")


def test_a_log_that_ends_the_program_ends_it():
    def leave(record: logging.LogRecord) -> bool:
        raise SystemExit(3)

    logger = logging.getLogger("messaging")
    logger.addFilter(leave)
    try:
        with pytest.raises(SystemExit):
            logger.warning("something")
    finally:
        logger.removeFilter(leave)


async def test_a_reason_that_quotes_a_whole_payload_floods_no_log(bus, clock, caplog):
    app = App("a")

    @app.subscribe(jobs)
    async def handle(job: str) -> None:
        raise Reject(f"cannot read {job}")

    async with app.running(bus):
        await bus.publish(jobs, "x" * 100_000)
        await clock.advance(1)

    (line,) = (record.getMessage() for record in caplog.records)
    assert "became a dead letter" in line
    assert "cannot read xxx" in line
    assert len(line) < 5000
