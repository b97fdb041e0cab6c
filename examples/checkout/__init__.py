"""A small shop: several services that talk by messages, in one process. It runs as a module."""
