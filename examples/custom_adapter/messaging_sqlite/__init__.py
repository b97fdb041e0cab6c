"""Messaging on one SQLite file, for the processes of one machine. The entry point names the class below."""

from messaging_sqlite.adapter import SQLiteAdapter

__all__ = ["SQLiteAdapter"]
