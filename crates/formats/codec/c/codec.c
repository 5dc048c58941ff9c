/* What Rust calls: one cluster, one frame, contexts in memory that the caller gives. */
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

/* Bytes of memory that decompressing takes. */
size_t instar_zstd_decoder_bytes(void)
{
    return ZSTD_estimateDCtxSize();
}

/* A context in that memory, or NULL. */
ZSTD_DCtx *instar_zstd_decoder(void *memory, size_t bytes)
{
    return ZSTD_initStaticDCtx(memory, bytes);
}

/* Largest window that QEMU accepts of a frame: what zstd itself allows unless told otherwise. */
#define MAX_WINDOW_BYTES (((size_t)1 << 27) + 1)

/* 1 if the frames that the input begins with fill the output, and the last of them exactly; else 0. */
int instar_zstd_decompress(ZSTD_DCtx *context, void *out, size_t out_bytes,
                           const void *in, size_t in_bytes)
{
    while (out_bytes != 0) {
        ZSTD_FrameHeader header;
        if (ZSTD_getFrameHeader(&header, in, in_bytes) != 0 || header.windowSize > MAX_WINDOW_BYTES)
            return 0;
        size_t const frame = ZSTD_findFrameCompressedSize(in, in_bytes);
        if (ZSTD_isError(frame))
            return 0;
        size_t const bytes = ZSTD_decompressDCtx(context, out, out_bytes, in, frame);
        if (ZSTD_isError(bytes))
            return 0;
        in = (const char *)in + frame;
        in_bytes -= frame;
        out = (char *)out + bytes;
        out_bytes -= bytes;
    }
    return 1;
}
