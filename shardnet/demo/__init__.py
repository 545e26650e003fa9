"""`shardnet demo`: a model over nodes on one machine, beside the unsplit one. Begin with `run`."""
