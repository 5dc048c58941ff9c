/* What Rust calls to compress: one cluster, one frame, contexts in memory that the caller gives. */
#define ZSTD_STATIC_LINKING_ONLY
#include "zstd.h"

/* What QEMU compresses with. */
#define LEVEL 3

/* Bytes of memory that compressing clusters of a size takes. */
size_t instar_zstd_encoder_bytes(size_t cluster_bytes)
{
    return ZSTD_estimateCCtxSize_usingCParams(ZSTD_getCParams(LEVEL, cluster_bytes, 0));
}

/* A context in that memory, or NULL. */
ZSTD_CCtx *instar_zstd_encoder(void *memory, size_t bytes)
{
    return ZSTD_initStaticCCtx(memory, bytes);
}

/* Bytes of the frame, or 0 if it does not fit. */
size_t instar_zstd_compress(ZSTD_CCtx *context, void *out, size_t out_bytes,
                            const void *in, size_t in_bytes)
{
    size_t const bytes = ZSTD_compressCCtx(context, out, out_bytes, in, in_bytes, LEVEL);
    return ZSTD_isError(bytes) ? 0 : bytes;
}
