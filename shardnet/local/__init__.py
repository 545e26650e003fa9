"""A whole swarm on one machine: processes, the demo's model. For `shardnet demo`, `shardnet bench` and the integration tests.

Knows how daemons are started, watched and stopped. Refuses to know what is shown or measured. Begin with `processes`.
"""
