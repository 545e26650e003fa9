"""Shard files by BitTorrent v2: make a torrent of one file, seed it, fetch it whole and verified. Knows nothing of models, nodes or the DHT."""
