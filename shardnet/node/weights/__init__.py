"""Files: on this node's disk, from others, to others.

Knows the models cache, torrents, holders, the disk budget. Refuses to decide what is loaded. Begin with `exchange` (what the daemon asks for), then
`swarming` and `fetching`; `store` is every touch of the disk.
"""
