"""A whole swarm on one machine: for `shardnet demo`, `shardnet bench` and the integration tests. Real processes, real sockets."""
