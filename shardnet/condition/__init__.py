"""How a daemon is, for whoever watches over it: a service manager, by its socket; containers and people, by a file and `shardnet health`.

Knows states and one sentence about each; refuses to know what a daemon does. Begin with `telling`; `notify` is the service manager's protocol,
`record` the file.
"""
