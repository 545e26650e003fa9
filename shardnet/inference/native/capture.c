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

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Mirrored by capture.CaptureState: same fields, same order. */
struct capture_state {
    const char *(*name_of)(const void *tensor);
    size_t (*bytes_of)(const void *tensor);
    void (*read)(const void *tensor, void *data, size_t offset, size_t size);
    unsigned char *rows;
    size_t capacity;
    size_t used;
    int overflow;
    char wanted[64];
};

/* ggml_backend_sched_eval_callback: asked before a node is computed (ask), then called with its result for those it said yes to.
 * Returning false then ends the graph there: the final norm and the head are not computed. */
EXPORT bool shardnet_capture(void *tensor, bool ask, void *user_data) {
    struct capture_state *state = user_data;
    if (ask) {
        return strcmp(state->name_of(tensor), state->wanted) == 0;
    }
    size_t bytes = state->bytes_of(tensor);
    if (bytes > state->capacity - state->used) {
        state->overflow = 1;
        return false;
    }
    state->read(tensor, state->rows + state->used, 0, bytes);
    state->used += bytes;
    return false;
}
