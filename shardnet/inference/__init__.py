"""Layer-range inference on stock llama.cpp: checkpoints, GGUF files and cutting them, proving the cut, running shards in an engine process.

Knows nothing of the network, the DHT, BitTorrent or the daemons.
"""
