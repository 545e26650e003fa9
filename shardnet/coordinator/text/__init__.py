"""Between words and tokens: chat templates, vocabularies, text that is held back until it is whole.

Knows one model's template and tokenizer at a time. Refuses to know requests, nodes and HTTP. Begin with `words`.
"""
