/* What capture.c and row.c share. */
#ifndef SHARDNET_CAPTURE_H
#define SHARDNET_CAPTURE_H

#include <stddef.h>

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
    void (*write)(void *tensor, const void *data, size_t offset, size_t size);
    const unsigned char *input;
    size_t input_bytes;
    size_t input_used;
    char wanted[64];
    char input_node[64];
};

#endif
