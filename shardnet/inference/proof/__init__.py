"""The shards against the unsplit model.

Knows how both are run, what that reads and how long it takes, and what a certificate says. Refuses to know nodes: a proof needs one machine. Begin
with `verify` (the command's side, which outlives whatever llama.cpp does), then `planning` (which kind of proof) and `parity` (the arithmetic, in a
process of its own).
"""
