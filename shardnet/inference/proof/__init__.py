"""The shards against the unsplit model.

Knows how both are run, and what a certificate says. Refuses to know nodes: a proof needs one machine. Begin with `verify` (the command's side,
which outlives whatever llama.cpp does), then `parity` (the arithmetic, in a process of its own).
"""
