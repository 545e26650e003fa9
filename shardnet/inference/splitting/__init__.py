"""Where a model may be cut, what each shard gets, and writing it.

Knows families and their rules, plans, manifests and shard files on disk. Refuses to run anything: whether a cut is right is for `proof`. Begin with
`plan` (decided with plain data), then `cutting` (written whole or not at all); `families` turns `family_table` into rules.
"""
