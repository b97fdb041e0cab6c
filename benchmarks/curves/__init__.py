"""How cost and memory change with members, topics, keys and what waits."""
