"""The lines of all daemons' logs as one stream: `GET /logs`, which `shardnet logs` shows.

Knows which lines are wanted, how clocks differ, and who may read. Refuses to keep anything: each daemon keeps its own last lines
(`shardnet.journal`), and is asked for them while somebody reads. Begin with `merging`, which is pure, then `collecting`, then `endpoint`.
"""
