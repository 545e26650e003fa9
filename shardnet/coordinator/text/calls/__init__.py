"""What a model wrote, taken apart: reasoning, content, calls of tools. One file for each family of formats, the choice among them in `formats`.

Everything here is pure and takes text as it comes, in pieces of any size: where a text is cut changes nothing of what is found.
Knows marks and JSON. Refuses to know tokens, requests and HTTP. Begin with `answer`, then `formats`.
"""
