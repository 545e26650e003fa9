"""Layer-range inference on stock llama.cpp: reading, cutting and proving models, and running shards in an engine process.

Knows nothing of the network, the DHT, BitTorrent or the daemons. Wings, from the ground up: `gguf`; `checkpoints` and `splitting`; `llama`;
`proof`; `engine` and `worker`, the two sides of the engine process.
"""
