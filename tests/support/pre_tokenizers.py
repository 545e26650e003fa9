"""Small byte-level tokenizers, one for each way of cutting text that is converted, and texts that tell the ways apart.

Data and numpy-free helpers alone, so that the environment with `tokenizers` can read them.
"""

from __future__ import annotations

from tests.support.whole_checkpoints import LLAMA3, QWEN2, Content, byte_level_tokenizer

_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_OTHER, _ENGLISH = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_OTHER}[{_UPPER}]*[{_LOWER}]+|{_OTHER}[{_UPPER}]+[{_LOWER}]*|\p{{N}}" + _REST
GPT4O = rf"{_OTHER}[{_UPPER}]*[{_LOWER}]+{_ENGLISH}|{_OTHER}[{_UPPER}]+[{_LOWER}]*{_ENGLISH}|\p{{N}}{{1,3}}" + _REST

TEXTS = (
    "The other one, then: 1234567 on the inner 12th.",
    "DON'T we've I'LL they're it's",
    "x = {'a': 123,\n\t\t'b':  12}\r\n\r\n  return\n",
    "HelloWorld fooBar ÉtéÀla naïve Straße",
    "你好,мир! ¿qué? 😀 ½ ١٢٣",
    "   three   spaces   ",
    "<|im_start|>the\n<|im_end|> in",
    "//path/to/file//\n...",
)
PLAIN_TEXTS = tuple(text for text in TEXTS if "<|" not in text)
"""Without special tokens, of which SentencePiece knows nothing."""


def _steps(*steps: Content) -> Content:
    content = byte_level_tokenizer()
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(steps)} if len(steps) > 1 else steps[0]
    return content


_GPT2: Content = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

TOKENIZERS: dict[str, Content] = {
    "gpt-2": _steps(_GPT2),
    "smollm": _steps({"type": "Digits", "individual_digits": True}, _GPT2),
    "llama-bpe": byte_level_tokenizer(LLAMA3, ignore_merges=True, bos="<s>"),
    "smaug-bpe": byte_level_tokenizer(LLAMA3),
    "qwen2": byte_level_tokenizer(QWEN2) | {"normalizer": {"type": "NFC"}},
    "tekken": byte_level_tokenizer(TEKKEN, ignore_merges=True),
    "gpt-4o": byte_level_tokenizer(GPT4O),
}
"""llama.cpp's name -> tokenizer.json."""
