/*
 * What Rust calls to decompress: one cluster, the frames in it, a context in memory that the caller gives. The library's
 * source is included for the function that takes one frame apart, so that what reads dictionaries is not linked.
 */
#define ZSTD_STATIC_LINKING_ONLY
#include "decompress/zstd_decompress.c"

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

/* Bytes of one frame that is not skippable. What zstd's own loop over frames does, but for dictionaries. */
static size_t one_frame(ZSTD_DCtx *context, void *out, size_t out_bytes, const void *in, size_t in_bytes)
{
    size_t bytes;

    FORWARD_IF_ERROR(ZSTD_decompressBegin(context), "");
    ZSTD_checkContinuity(context, out, out_bytes);
    bytes = ZSTD_decompressFrame(context, out, out_bytes, &in, &in_bytes);
    FORWARD_IF_ERROR(bytes, "");
    RETURN_ERROR_IF(in_bytes != 0, srcSize_wrong, "");
    return bytes;
}

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
        size_t const bytes = header.frameType == ZSTD_skippableFrame
                                 ? 0 : one_frame(context, out, out_bytes, in, frame);
        if (ZSTD_isError(bytes))
            return 0;
        in = (const char *)in + frame;
        in_bytes -= frame;
        out = (char *)out + bytes;
        out_bytes -= bytes;
    }
    return 1;
}
