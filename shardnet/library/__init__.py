"""What programs import: the functions and classes that `shardnet` exports (docs/python-api.md).

Knows what a caller wants and in which words: paths, texts, plain numbers, context managers. Refuses to know how anything is done: each name here is
a thin front of the room that does it, and none holds up `import shardnet`. Begin with `runner`.
"""
