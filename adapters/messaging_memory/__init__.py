"""The memory broker of `messaging`: a real broker's semantics in one process.

Nothing survives the process. `memory://` is private to its adapter; `memory://name` is shared by all adapters
of the process that say the same name, and is gone when the last of them closes.
"""

from messaging_memory.adapter import MemoryAdapter
from messaging_memory.broker import Broker
from messaging_memory.store import MemoryStore

__all__ = ["Broker", "MemoryAdapter", "MemoryStore"]
