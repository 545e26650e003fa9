"""Fields that other servers know and this one does not honour. Where they would change the answer they are refused by name, since a client that sends
one means it. What only describes a request (`user`, `metadata`, ...) is ignored, as is every name that nobody here knows.

Source: the docs of OpenAI's API, llama-server, vLLM, SGLang, OpenRouter and Alibaba's Model Studio, November 2026.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from shardnet.errors import UsageError

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})
_NOT = "is not supported"
FOREIGN: dict[str, tuple[Any, str]] = {
    "repetition_penalty": (1, "is called repeat_penalty here, and looks back over repeat_last_n tokens"),
    "n_predict": (None, "is called max_tokens here"),
    "max_new_tokens": (None, "is called max_tokens here"),
    "enable_thinking": (None, 'belongs to the chat template: send {"chat_template_kwargs": {"enable_thinking": ...}}'),
    "chat_template": (None, "is the model's own here: word the prompt yourself and send it to /v1/completions"),
    "web_search_options": (None, "is not supported: nothing here searches the web"),
    "min_tokens": (0, _NOT),
    "stop_token_ids": ([], "is not supported: use stop"),
    "bad_words": ([], "is not supported: use logit_bias"),
    "allowed_token_ids": (None, "is not supported: use grammar, regex or structured_outputs"),
    "include_stop_str_in_output": (False, _NOT),
    "skip_special_tokens": (True, "is not supported: control tokens are no part of a text; return_token_ids has them"),
    "truncate_prompt_tokens": (None, "is not supported: a prompt that does not fit is refused"),
    "use_beam_search": (False, _NOT),
    "length_penalty": (1, "is not supported: there is no beam search"),
    "typical_p": (1, _NOT),
    "top_a": (0, _NOT),
    "tfs_z": (1, _NOT),
    "top_n_sigma": (-1, _NOT),
    "mirostat": (0, _NOT),
    "dry_multiplier": (0, _NOT),
    "xtc_probability": (0, _NOT),
    "dynatemp_range": (0, _NOT),
    "samplers": ([], "is not supported: the order is penalties, top_k, top_p, min_p, temperature"),
}
"""Name -> the value with which it says nothing, as null does, and what is said of any other."""


def check_foreign(given: Mapping[str, Any], of_others: Mapping[str, Collection[str]]) -> None:
    """Look over the fields that an endpoint does not know.

    Args: of_others: path of another endpoint -> its fields.
    Raises: UsageError naming one that would change the answer somewhere else.
    """
    for name, value in given.items():
        if name in FOREIGN:
            neutral, words = FOREIGN[name]
            if value not in (None, neutral):
                raise UsageError(f"{name}: {words}", param=name)
            continue
        for path, fields in of_others.items():
            if name in fields and value not in _NOTHING:
                raise UsageError(f"{name}: is a field of {path}", param=name)
