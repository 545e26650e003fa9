"""What can be said of how requests are treated."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from shardnet.coordinator.requests.prefixes import Prefixes
from shardnet.coordinator.requests.speculation import ModelSpeculation
from shardnet.settings import Section


class RequestSettings(Section):
    """How requests are treated."""

    max_queued: int = Field(
        default=64, ge=0, le=100_000, description="requests that may wait for a free sequence; more are answered 503"
    )
    queue_timeout_s: float = Field(
        default=60.0, gt=0, le=86_400, description="seconds a request may wait for a sequence"
    )
    step_deadline_s: float = Field(
        default=120.0,
        gt=0,
        le=86_400,
        description="seconds one step may take through the whole pipeline, beside waiting for those before it",
    )
    recovery_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds a request waits for its lost stages to come back elsewhere"
    )
    template_timeout_s: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="seconds of processor time that a model's chat template may take for one request",
    )
    max_body_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30, description="largest HTTP request body")
    traces: int = Field(
        default=16, ge=0, le=256, description="traces that are kept, of requests that asked for one; 0: none is made"
    )


class SpeculationSettings(Section):
    """Proposing tokens that stood in the prompt or the answer before, while it is not yet known whether they are right."""

    enabled: bool = Field(
        default=True, description="propose tokens where that pays; a request can turn it off for itself"
    )
    max_draft: int = Field(default=15, ge=1, le=64, description="most proposed tokens under way")
    min_ngram: int = Field(
        default=2, ge=1, le=16, description="shortest run of tokens that must have stood there before"
    )
    max_ngram: int = Field(default=8, ge=1, le=16, description="longest run of tokens that is looked up, and first")
    max_streams: int = Field(
        default=1, ge=1, le=256, description="propose only while a model has so many requests in progress or fewer"
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.max_ngram < self.min_ngram:
            raise ValueError("max_ngram is smaller than min_ngram")
        return self

    def to_model(self) -> ModelSpeculation:
        """Returns: the state that requests of one model share."""
        return ModelSpeculation(self.max_draft, self.min_ngram, self.max_ngram, self.max_streams)


class PrefixSettings(Section):
    """Finished sequences that stay in KV until room is needed."""

    enabled: bool = Field(default=True, description="start a prompt that begins like an earlier one from its KV")
    min_tokens: int = Field(
        default=16, ge=1, le=1 << 20, description="shortest common beginning that is worth it, tokens"
    )
    share: bool = Field(
        default=True,
        description="copy a beginning between sequences, and wait for a request that computes it already",
    )
    max_wait_s: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="seconds that it is waited for a request that does not get on; 0: for none",
    )

    def to_prefixes(self) -> Prefixes | None:
        """Returns: an empty cache; None if there shall be none."""
        return Prefixes(self.min_tokens, self.share, self.max_wait_s) if self.enabled else None
