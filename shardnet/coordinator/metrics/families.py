"""The families of figures that a coordinator has, beside those of every daemon (`shardnet.metrics.vitals`). Plain data.

docs/metrics.md lists them.
"""

from __future__ import annotations

from shardnet.metrics.family import counter, gauge, histogram, summary

# -- the swarm ---------------------------------------------------------------------------------------------------------------

NODES = gauge("nodes", "Connected nodes.", "state")
NODE_BUSY = gauge("node_busy_ratio", "Share of the last second in which a node's engine computed, 0 to 1.", "node")
NODE_SEQUENCES = gauge("node_sequences", "Sequences with KV in a node's engine.", "node")
NODE_FREE = gauge("node_memory_free_bytes", "Memory that a node has left for more shards.", "node")
NODE_SHARDS = gauge(
    "node_shards_memory_bytes", "Memory of a node's loaded shards: weights, KV cache, compute buffers.", "node"
)
NODE_SILENCE = gauge("node_heartbeat_age_seconds", "Since a node was last heard of.", "node")
MODEL_INFO = gauge(
    "model_info", "1, with what a served model is.", "model", "model_id", "architecture", "quantisation", "proved"
)
LAYERS = gauge("model_layers", "Layers of a served model.", "model")
LAYERS_MISSING = gauge("model_layers_missing", "Layers of a served model that no node is ready to run.", "model")
PIPELINES = gauge(
    "model_pipelines", "Whole pipelines of a served model that are ready; 0: it cannot be asked.", "model"
)
LOADS = gauge("loads", "Shards on their way to or into nodes.", "stage")
LOADS_LEFT = gauge("loads_bytes_left", "Bytes that these still have to bring.", "stage")
LOADS_REFUSED = gauge("loads_refused", "Shards that a node could not take, and is asked to again later.")
LINK_ROUND_TRIP = gauge("link_round_trip_seconds", "Round trip of a measured link.", "source", "target")
LINK_SPEED = gauge("link_bytes_per_second", "Bytes a second of a measured link.", "source", "target")
LINKS_RELAYED = gauge("links_relayed", "Pairs of nodes that reach one another through the coordinator only.")
RELAYED_STEPS = counter("relayed_steps", "Steps that were passed on for nodes that cannot reach one another.")
RELAYED_WEIGHTS = counter("relayed_weights_bytes", "Bytes of shards that were passed on for such nodes.")

# -- requests ----------------------------------------------------------------------------------------------------------------

HTTP = counter(
    "http_requests", "Requests to the HTTP API, by the path's pattern and the answer's status.", "path", "status"
)
RUNNING = gauge("requests_running", "Requests with a place on a pipeline.", "model")
QUEUED = gauge("requests_queued", "Requests that wait for one.", "model")
PROMPT_TOKENS = counter(
    "prompt_tokens", "Tokens of prompts that had their turn, those taken from KV included.", "model"
)
TOKENS = counter("generation_tokens", "Tokens of answers.", "model")
ANSWERS = counter("answers", "Answers that are over, by how they ended.", "model", "outcome")
ERRORS = counter("answer_errors", "Answers that failed, by code.", "model", "code")
FIRST_TOKEN = histogram(
    "time_to_first_token_seconds", "From a request's arrival to the first token of an answer.", "model"
)
BETWEEN = histogram("inter_token_latency_seconds", "From one token of an answer to the next.", "model")
LONGEST = histogram("answer_longest_gap_seconds", "The longest time between two tokens of an answer.", "model")
WAITED = histogram("request_queue_seconds", "What a request waited for a place on a pipeline.", "model")
TOOK = histogram("answer_duration_seconds", "From a request's arrival to the end of an answer.", "model")
RECOVERIES = counter("recoveries", "Times that a request began anew after a step or a node was lost.")
LATE = counter("late_answers", "Answers of stages that nobody wanted any more.")

# -- stages ------------------------------------------------------------------------------------------------------------------

STAGE = ("model", "stage", "node")
STAGE_QUEUE = summary("stage_queue_seconds", "What a step waited for a stage's engine.", *STAGE)
STAGE_COMPUTE = summary("stage_compute_seconds", "What a step computed at a stage, sampling included.", *STAGE)
STAGE_HANDOVER = summary(
    "stage_handover_seconds", "What a step took to get into a stage's engine and out again.", *STAGE
)
STAGE_ROWS = histogram("stage_batch_rows", "Rows of the batch that carried a step at a stage.", *STAGE)

# -- what saves work ---------------------------------------------------------------------------------------------------------

PREFIX_KEPT = gauge("prefix_cache_sequences", "Finished sequences that are kept in KV.")
PREFIX_HITS = counter("prefix_cache_hits", "Requests that began with a kept sequence, or with a copy.")
PREFIX_COPIES = counter(
    "prefix_cache_copies",
    "Of these, those that began with a copy: of a kept sequence, or of what another one had computed.",
)
PREFIX_WAITING = gauge(
    "prefix_cache_waiting", "Requests with a place that wait for another one to compute what both begin with."
)
PREFIX_WAITED = histogram("prefix_cache_wait_seconds", "What such requests waited, those that went away included.")
PREFIX_TOKENS = counter("prefix_cache_reused_tokens", "Tokens of prompts that were not computed for that.")
PREFIX_REFUSED = counter(
    "prefix_cache_refused", "Sequences that a stage did not have any more, or could not copy; the request began cold."
)
PREFIX_EVICTED = counter("prefix_cache_evicted", "Kept sequences that were freed for room.")
PROPOSED = counter("speculation_proposed_tokens", "Tokens that were proposed before they were known.")
ACCEPTED = counter("speculation_accepted_tokens", "Of these, what turned out right.")
