"""Hugging Face checkpoints: weights in one or many SafeTensors files, and the config.json beside them.

Knows which files belong to a checkpoint, what their headers promise, and whether index, headers and config.json agree; all that is checked
before a weight is read.
Refuses to know what a tensor means to llama.cpp, GGUF names, and how anything is converted.
Begin with `sharded.ShardedSafeTensors`.
"""
