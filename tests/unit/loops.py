"""What the event loop tells its exception handler, as of errors that nobody read."""

import asyncio
from contextlib import contextmanager


@contextmanager
def complaints():
    """The complaints of the running loop within."""
    heard = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    try:
        yield heard
    finally:
        loop.set_exception_handler(before)
