"""A Hugging Face checkpoint made into a GGUF that is nowhere yet: a header whose tensors make their bytes when they are asked for.

Knows what llama.cpp calls things, what it computes for each family, and what a family's weights need before it does: other rows, another norm,
experts put together. Takes only what it can make exact, and refuses the rest by name.
Refuses to know shards, other element types than those of the checkpoint, and how anything is written.
Begin with `convert.convert`.
"""
