/* Parts of zstd that level 3 without a dictionary never enters, so that they need not be linked. */
#include "compress/zstd_compress_internal.h"
#include "compress/zstd_compress_superblock.h"
#include "compress/zstd_fast.h"
#include "compress/zstd_ldm.h"

size_t ZSTD_compressSuperBlock(ZSTD_CCtx *context, void *out, size_t out_bytes,
                               void const *in, size_t in_bytes, unsigned last)
{
    (void)context; (void)out; (void)out_bytes; (void)in; (void)in_bytes; (void)last;
    return ERROR(GENERIC);
}

void ZSTD_fillHashTable(ZSTD_MatchState_t *state, void const *end,
                        ZSTD_dictTableLoadMethod_e method, ZSTD_tableFillPurpose_e purpose)
{
    (void)state; (void)end; (void)method; (void)purpose;
}

void ZSTD_ldm_fillHashTable(ldmState_t *state, const BYTE *from, const BYTE *end,
                            ldmParams_t const *params)
{
    (void)state; (void)from; (void)end; (void)params;
}

size_t ZSTD_ldm_generateSequences(ldmState_t *state, RawSeqStore_t *sequences,
                                  ldmParams_t const *params, void const *in, size_t in_bytes)
{
    (void)state; (void)sequences; (void)params; (void)in; (void)in_bytes;
    return ERROR(GENERIC);
}

size_t ZSTD_ldm_blockCompress(RawSeqStore_t *raw, ZSTD_MatchState_t *state, SeqStore_t *sequences,
                              U32 repeats[ZSTD_REP_NUM], ZSTD_ParamSwitch_e switched,
                              void const *in, size_t in_bytes)
{
    (void)raw; (void)state; (void)sequences; (void)repeats; (void)switched; (void)in; (void)in_bytes;
    return ERROR(GENERIC);
}

void ZSTD_ldm_skipSequences(RawSeqStore_t *raw, size_t in_bytes, U32 const least)
{
    (void)raw; (void)in_bytes; (void)least;
}

void ZSTD_ldm_skipRawSeqStoreBytes(RawSeqStore_t *raw, size_t bytes)
{
    (void)raw; (void)bytes;
}

size_t ZSTD_ldm_getTableSize(ldmParams_t params)
{
    (void)params;
    return 0;
}

size_t ZSTD_ldm_getMaxNbSeq(ldmParams_t params, size_t most)
{
    (void)params; (void)most;
    return 0;
}

void ZSTD_ldm_adjustParameters(ldmParams_t *params, ZSTD_compressionParameters const *others)
{
    (void)params; (void)others;
}
