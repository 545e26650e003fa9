"""One request's life, from its prompt to its last token, whatever is lost on the way.

Knows sequences, steps under way, proposals, what is kept of finished ones, when to try again. Refuses to know HTTP, and how a step reaches its
node (`stages` asks `nodes`). Begin with `driver` (the loop), then `pipeline` and `attempt` (sans-I/O).
"""
