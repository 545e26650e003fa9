"""What should run where, and what it would cost.

Knows the cluster as plain data, manifests, the law of a step's time. Refuses to send anything; only `catalogue` touches a disk. Begin with
`cluster` (events in, effects out), then `planning` and `assign`; `law` is shared with `shardnet plan` and `shardnet bench`.
"""
