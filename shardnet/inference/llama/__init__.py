"""Stock llama.cpp, as little of it as layer ranges need.

Knows its models, contexts, batches and devices, how a range's output comes out of the graph and how a token is drawn. Refuses to know shards on
disk, sequences, frames and processes. Begin with `model`, then `capture` (the evaluation callback; its C form is in `native/`) and `sampling`.
"""
