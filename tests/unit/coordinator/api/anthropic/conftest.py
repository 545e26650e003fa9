"""The scripted model reasons here."""

from tests.support.agent_apis import tokenizer

__all__ = ["tokenizer"]
