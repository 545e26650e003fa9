"""The state machine of a node: what it holds, and what to do about it. Pure.

Knows events, effects, commands and who waits for a shard. Refuses I/O, clocks and the event loop. Begin with `machine`, then `rule` (what is done
next about a shard) and `commands`.
"""
