"""EXECUTE_TASK: the path that every token takes through a node.

Knows stages, steps on their way, sequences that were begun here. Refuses to know files and why shards are loaded. Begin with `runner`, then
`onward` (where a step goes when the engine is done with it).
"""
