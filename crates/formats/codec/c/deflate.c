/* Deflate by libdeflate's level 6, with the window of qcow2, in memory that the caller gives. */
#define FREESTANDING
#include "deflate_constants.h"

/* Matches reach back at most 4 KiB. */
#undef DEFLATE_WINDOW_ORDER
#define DEFLATE_WINDOW_ORDER 12
#undef DEFLATE_MAX_MATCH_OFFSET
#define DEFLATE_MAX_MATCH_OFFSET (1 << DEFLATE_WINDOW_ORDER)

#include "deflate_compress.c"

/* Of a context, without the parts that other levels use. */
#define CONTEXT_BYTES \
    (offsetof(struct libdeflate_compressor, p) + sizeof(((struct libdeflate_compressor *)0)->p.g))

/* Bytes of memory that compressing takes, wherever it begins. */
size_t instar_deflate_encoder_bytes(void)
{
    return CONTEXT_BYTES + MATCHFINDER_MEM_ALIGNMENT;
}

/* A context in that memory, or NULL. As libdeflate makes it, but for one level, so that no other is linked. */
struct libdeflate_compressor *instar_deflate_encoder(void *memory, size_t bytes)
{
    uintptr_t const mask = MATCHFINDER_MEM_ALIGNMENT - 1;
    struct libdeflate_compressor *context = (void *)(((uintptr_t)memory + mask) & ~mask);

    if (bytes < CONTEXT_BYTES + MATCHFINDER_MEM_ALIGNMENT)
        return NULL;
    check_buildtime_parameters();
    context->free_func = NULL;
    context->compression_level = 6;
    context->max_passthrough_size = 31;
    context->impl = deflate_compress_lazy;
    context->max_search_depth = 35;
    context->nice_match_length = 65;
    deflate_init_static_codes(context);
    return context;
}

/* Bytes of the stream, or 0 if it does not fit. */
size_t instar_deflate_compress(struct libdeflate_compressor *context, void *out, size_t out_bytes,
                               const void *in, size_t in_bytes)
{
    return libdeflate_deflate_compress(context, in, in_bytes, out, out_bytes);
}
