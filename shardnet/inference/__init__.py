"""Layer-range inference on stock llama.cpp: reading checkpoints, reading and cutting GGUF files, proving the cut, running shards in an engine process.

Knows nothing of the network, the DHT, BitTorrent or the daemons.
"""
