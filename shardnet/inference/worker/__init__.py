"""The engine process itself: `python -m shardnet.inference.worker.process`.

Knows shards in memory, sequences, steps, batches, runs and their rows. Refuses to know the network's members and the daemon's reasons; the links
between engines (`row_links`) are given to it. Begin with `process`, then `step_queue` (what runs next) and `chains` (running it);
`batching` and `pacing` decide with plain data.
"""
