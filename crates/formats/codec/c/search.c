/* The search of level 3, for the two match lengths that its rows for all cluster sizes name. */
#include "compress/zstd_double_fast.c"

size_t instar_zstd_search(ZSTD_MatchState_t *state, SeqStore_t *sequences,
                          U32 repeats[ZSTD_REP_NUM], void const *in, size_t in_bytes)
{
    if (state->cParams.minMatch == 5)
        return ZSTD_compressBlock_doubleFast_noDict_5(state, sequences, repeats, in, in_bytes);
    return ZSTD_compressBlock_doubleFast_noDict_4(state, sequences, repeats, in, in_bytes);
}
