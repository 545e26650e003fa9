/* A decode step of one row through a chain of shards, without the interpreter in between.
 *
 * Right after a batch has streamed gigabytes of weights through the caches, each line of Python costs several times what it costs in a loop of its
 * own; a step of a run does the same few things every time, and they are here. rows.py says when this way is taken; the general one is chains.py.
 *
 * No header of llama.cpp's is needed: its functions come in as pointers, and its batch is mirrored (rows.py compares the sizes).
 */
#include <stdint.h>
#include <stddef.h>
#include <math.h>

#include "capture.h"

/* Mirrors llama_batch of llama.h, which is passed by value. */
struct row_batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
};

/* Mirrored by rows.LaneShard. */
struct row_shard {
    void *context;
    struct capture_state *capture; /* NULL for the shard with the head */
};

/* Mirrored by rows.LaneState. */
struct row_lane {
    int32_t (*decode)(void *context, struct row_batch batch);
    float *(*logits)(void *context, int32_t row);
    const struct row_shard *shards;
    int32_t n_shards;
    int32_t n_embd;
    int32_t n_vocab;
    int32_t slot;
    int32_t pick;  /* whether `token` is wanted */
    int32_t token; /* out: the most likely one, the first among equals */
};

EXPORT size_t shardnet_row_batch_bytes(void) {
    return sizeof(struct row_batch);
}

/* Run one row. `hidden` is NULL where the first shard reads `token`. Returns 0, or what went wrong: the caller repeats the step the general
 * way, which finds the same and has the words for it. */
EXPORT int shardnet_row_1(struct row_lane *lane, int32_t token, float *hidden, int32_t position) {
    int32_t one = 1, slot = lane->slot;
    int32_t *slots = &slot;
    int8_t wanted = 1;
    const size_t row_bytes = (size_t) lane->n_embd * sizeof(float);
    for (int32_t i = 0; i < lane->n_shards; i++) {
        const struct row_shard *shard = &lane->shards[i];
        struct capture_state *capture = shard->capture;
        struct row_batch batch = {1, hidden ? NULL : &token, hidden, &position, &one, &slots, &wanted};
        if (capture) {
            capture->used = 0;
            capture->overflow = 0;
            capture->input_used = 0;
            capture->input_bytes = 0;
        }
        if (lane->decode(shard->context, batch) != 0) {
            return 1;
        }
        if (!capture) {
            if (lane->pick) {
                const float *logits = lane->logits(shard->context, 0);
                if (!logits) {
                    return 2;
                }
                float best = -INFINITY;
                int32_t best_at = -1;
                for (int32_t at = 0; at < lane->n_vocab; at++) {
                    if (logits[at] > best) {
                        best = logits[at];
                        best_at = at;
                    } else if (isnan(logits[at])) {
                        return 3;
                    }
                }
                if (best_at < 0 || isinf(best)) {
                    return 3;
                }
                lane->token = best_at;
            }
            return 0;
        }
        if (capture->overflow || capture->used != row_bytes) {
            return 4;
        }
        hidden = (float *) capture->rows;
    }
    return 0;
}
