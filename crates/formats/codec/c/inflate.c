/* Deflate taken apart by libdeflate, which tells how far it came where a stream is damaged. */
#define FREESTANDING
/* No second copy of the loop for newer CPUs, and none to choose from at run time. */
#define LIB_X86_DECOMPRESS_IMPL_H
#include "deflate_decompress.c"

#undef SAFETY_CHECK
#define SAFETY_CHECK(expr) \
    if (unlikely(!(expr))) \
        return *actual_out_nbytes_ret = (size_t)(out_next - (u8 *)out), LIBDEFLATE_BAD_DATA
#define FUNCNAME inflate_counting
#include "decompress_template.h"

/* Bytes of memory that decompressing takes. */
size_t instar_inflate_decoder_bytes(void)
{
    return sizeof(struct libdeflate_decompressor);
}

/* A context in that memory, which is all zeros, or NULL. */
struct libdeflate_decompressor *instar_inflate_decoder(void *memory, size_t bytes)
{
    return bytes < sizeof(struct libdeflate_decompressor) ? NULL : memory;
}

/*
 * Bytes that the stream gives before it ends or turns out to be damaged. One more than there is room for: what comes
 * next does not fit, and of that nothing was written.
 */
size_t instar_inflate(struct libdeflate_decompressor *context, void *out, size_t out_bytes,
                      const void *in, size_t in_bytes)
{
    size_t written = 0;

    if (inflate_counting(context, in, in_bytes, out, out_bytes, NULL, &written)
        == LIBDEFLATE_INSUFFICIENT_SPACE)
        return out_bytes + 1;
    return written;
}
