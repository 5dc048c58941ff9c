//! Compressed clusters that somebody else made: whatever they are, no more than one cluster is filled.
#![no_main]

use instar_codec::Decoder;
use instar_layers::{CompressionType, Decompress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, stream)) = bytes.split_first() else {
        return;
    };
    let cluster = 512 << (size % 13);
    let mut out = vec![0; cluster];
    for kind in [CompressionType::Zlib, CompressionType::Zstd] {
        let mut decoder = Decoder::new();
        let first = decoder.decompress(kind, stream, &mut out);
        let content = out.clone();
        // A decoder carries nothing over from one cluster to the next.
        assert_eq!(decoder.decompress(kind, stream, &mut out), first);
        assert!(first.is_err() || out == content);
    }
});
