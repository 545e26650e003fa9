"""The daemon's side of the engine process.

Knows how that process is started, kept running, asked and answered, and what a shard takes in memory. Refuses to import llama.cpp. Begin with
`interface` (the engine as the daemon sees it) and `protocol` (what the two say), then `host` and `child`.
"""
