"""A conversation in a terminal: `shardnet chat`.

Knows what was said, what a line that begins with a slash asks for, and how an answer is shown while it comes. Refuses to know how an answer is
made: it asks the HTTP API like any other client. `conversation` and `commands` are plain data; `terminal` reads and shows; `talking` joins them.
"""
