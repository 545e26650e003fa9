"""What a GGUF says, and writing one.

Knows the format: header fields, tensors, element types, which layer a tensor belongs to, which file a folder means. Refuses to know families,
llama.cpp and what a shard is. Begin with `header` (reading, every length checked), then `layout` (what tensors are for) and `writer`.
"""
