//! Whatever a cluster holds, it comes back; twice through one encoder.
#![no_main]

use instar_codec::{Decoder, Encoder, MAX_CLUSTER_BYTES};
use instar_layers::{CompressionType, Decompress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|cluster: &[u8]| {
    if cluster.len() > MAX_CLUSTER_BYTES {
        return;
    }
    for kind in [CompressionType::Zlib, CompressionType::Zstd] {
        let mut encoder = Encoder::new(kind, cluster.len()).expect("memory");
        // One byte less may be too little, but then nothing is said to fit.
        let mut tight = vec![0; cluster.len().saturating_sub(1)];
        let _ = encoder.compress(cluster, &mut tight);
        let mut packed = vec![0; cluster.len() + cluster.len() / 100 + 64];
        let len = encoder.compress(cluster, &mut packed).expect("room");
        let mut out = vec![0; cluster.len()];
        assert_eq!(Decoder::new().decompress(kind, &packed[..len], &mut out), Ok(()));
        assert!(out == cluster);
    }
});
