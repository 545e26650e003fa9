/* The evaluation callback of a stage that has a successor, in C.
 *
 * llama.cpp asks the callback once for every node of the graph (about 31 a layer). In Python each question costs about a microsecond and
 * the interpreter lock, which is a tenth of a small model's decode step; here it costs a name comparison. capture.py holds the same logic in
 * Python, for installations without a C compiler.
 *
 * No header of ggml's is needed: its functions come in as pointers, and a tensor stays opaque.
 */
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "capture.h"

/* ggml_backend_sched_eval_callback: asked before a node is computed (ask), then called with its result for those it said yes to.
 * Returning false then ends the graph there: the final norm and the head are not computed. */
EXPORT bool shardnet_capture_2(void *tensor, bool ask, void *user_data) {
    struct capture_state *state = user_data;
    const char *name = state->name_of(tensor);
    bool replaced = state->input_bytes > 0 && strcmp(name, state->input_node) == 0;
    if (ask) {
        return replaced || strcmp(name, state->wanted) == 0;
    }
    size_t bytes = state->bytes_of(tensor);
    if (replaced) {
        if (bytes > state->input_bytes - state->input_used) {
            return false;
        }
        state->write(tensor, state->input + state->input_used, 0, bytes);
        state->input_used += bytes;
        return true;
    }
    if (bytes > state->capacity - state->used) {
        state->overflow = 1;
        return false;
    }
    state->read(tensor, state->rows + state->used, 0, bytes);
    state->used += bytes;
    return false;
}
