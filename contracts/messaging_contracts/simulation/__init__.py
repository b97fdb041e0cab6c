"""Deterministic simulation: the portable layer on a memory broker and virtual time, with faults at every call.

`simulate(seed)` runs one history and judges it by the checker of `messaging_contracts.faults`; the same seed gives the
same history in every process.
"""

from messaging_contracts.simulation.world import Result, simulate

__all__ = ["Result", "simulate"]
