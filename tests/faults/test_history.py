"""What a process recorded is there after it was killed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from messaging_contracts.faults import Begun, Buried, Ended, Journal, Published, Redriven, Struck, read

EVENTS = [
    Published(at=1.0, fate="sent", id="m", key="k", sequence=3, publisher="p"),
    Begun(at=2.0, handling="a-1", id="m", group="g", member="a", key="k", sequence=3, attempt=2, fence=7),
    Ended(at=3.0, handling="a-1", how="failed", after=0.5),
    Struck(at=4.0, kind="killed", member="a", fatal=True, ids=("m",)),
    Buried(at=5.0, id="m", group="g", reason="no", cause="rejected", attempts=3, failed_at=4.5),
    Redriven(at=6.0, fate="sent", id="m", group="g"),
]

DIES = """
import os, pathlib, signal, sys
from messaging_contracts.faults import Journal, Published
journal = Journal(pathlib.Path(sys.argv[1]) / "died.jsonl")
for number in range(100):
    journal.record(Published(at=float(number), fate="sent", id=str(number)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_events_are_read_as_they_were_recorded_in_the_order_of_their_times(tmp_path):
    with Journal(tmp_path / "a.jsonl") as one, Journal(tmp_path / "b.jsonl") as other:
        for index, event in enumerate(reversed(EVENTS)):
            (one if index % 2 else other).record(event)
    assert read(tmp_path) == EVENTS


def test_a_killed_process_loses_nothing_that_it_recorded(tmp_path):
    ended = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert ended.returncode == -9
    assert len(read(tmp_path)) == 100


def test_a_line_that_its_process_did_not_live_to_finish_is_left_out(tmp_path):
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.record(EVENTS[0])
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"event": "beg')
    assert read(tmp_path) == EVENTS[:1]


def test_a_line_that_is_no_event_is_told_with_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"event": "published"}\n')
    with pytest.raises(ValueError, match=r"line 1 of a\.jsonl"):
        read(tmp_path)
