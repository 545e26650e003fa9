"""The scripted model reasons here."""

from tests.support.agent_apis import manifest, tokenizer, words

__all__ = ["manifest", "tokenizer", "words"]
