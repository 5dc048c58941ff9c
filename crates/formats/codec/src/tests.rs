//! Round trips and damaged streams, without an oracle; `tests/qemu.rs` has one.
#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of test data"
)]

use std::vec;
use std::vec::Vec;

use instar_layers::{CompressionType, Decompress};
use proptest::prelude::*;

use crate::{Decoder, Encoder, MAX_CLUSTER_BYTES};

const KINDS: [CompressionType; 2] = [CompressionType::Zlib, CompressionType::Zstd];

/// Bytes made of runs, copies of what came before, and noise.
fn mixed() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (any::<u8>(), 1_usize..600).prop_map(|(byte, len)| vec![byte; len]),
        prop::collection::vec(any::<u8>(), 1..300),
        prop::collection::vec(0_u8..4, 1..900),
        (1_usize..9000, 3_usize..700).prop_map(|(back, len)| {
            let mut copy = (back as u32).to_le_bytes().to_vec();
            copy.extend((len as u32).to_le_bytes());
            copy.push(255);
            copy
        }),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| {
        let mut all: Vec<u8> = Vec::new();
        for piece in pieces {
            let Some((back, len)) = a_copy(&piece) else {
                all.extend(piece);
                continue;
            };
            for _ in 0..len {
                let byte = all.len().checked_sub(back).map_or(7, |at| all[at]);
                all.push(byte);
            }
        }
        all
    })
}

/// How far back and how long; random bytes that look like a copy are none.
fn a_copy(piece: &[u8]) -> Option<(usize, usize)> {
    let [b0, b1, b2, b3, l0, l1, l2, l3, 255] = *piece else {
        return None;
    };
    let back = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    (back < 9000 && len < 700).then_some((back, len))
}

fn round_trip(encoder: &mut Encoder, kind: CompressionType, input: &[u8]) -> usize {
    let mut packed = vec![0; input.len() + input.len() / 100 + 64];
    let len = encoder.compress(input, &mut packed).unwrap();
    let mut out = vec![1; input.len()];
    // What follows belongs to the next cluster.
    packed.truncate(len);
    packed.extend([0xa5; 100]);
    let done = Decoder::new().decompress(kind, &packed, &mut out);
    assert_eq!(done, Ok(()));
    assert!(out == input);
    len
}

proptest! {
    #[test]
    fn compress_is_undone_by_decompress(first in mixed(), second in mixed()) {
        for kind in KINDS {
            let mut encoder = Encoder::new(kind, MAX_CLUSTER_BYTES).unwrap();
            // The second input must not see the first.
            round_trip(&mut encoder, kind, &first);
            round_trip(&mut encoder, kind, &second);
            round_trip(&mut encoder, kind, &second);
        }
    }

    #[test]
    fn decompress_survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut out = vec![0; 4096];
        for kind in KINDS {
            let _ = Decoder::new().decompress(kind, &bytes, &mut out);
            let mut framed = vec![0x28, 0xb5, 0x2f, 0xfd];
            framed.extend(&bytes);
            let _ = Decoder::new().decompress(kind, &framed, &mut out);
        }
    }

    #[test]
    fn decompress_survives_damage(
        input in mixed(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut decoder = Decoder::new();
        for kind in KINDS {
            let mut packed = vec![0; input.len() + 600];
            let mut encoder = Encoder::new(kind, MAX_CLUSTER_BYTES).unwrap();
            let len = encoder.compress(&input, &mut packed).unwrap();
            packed.truncate(len);
            let mut out = vec![0; input.len()];
            let whole = packed.clone();
            for (at, byte) in &damage {
                let at = at.index(packed.len());
                packed[at] = *byte;
            }
            let _ = decoder.decompress(kind, &packed, &mut out);
            let _ = decoder.decompress(kind, &packed[..cut.index(packed.len())], &mut out);
            // And is as good as new afterwards.
            prop_assert_eq!(decoder.decompress(kind, &whole, &mut out), Ok(()));
            prop_assert!(out == input);
        }
    }
}

#[test]
fn compress_gives_nothing_where_there_is_too_little_room() {
    let input: Vec<u8> = (0_u32..65536)
        .map(|at| (at.wrapping_mul(at) >> 5) as u8)
        .collect();
    for kind in KINDS {
        let mut encoder = Encoder::new(kind, input.len()).unwrap();
        let mut packed = vec![0; 80_000];
        let len = encoder.compress(&input, &mut packed).unwrap();
        let mut exact = vec![0; len];
        assert!(
            encoder.compress(&input, &mut exact[..len - 1]).is_none(),
            "{kind:?}"
        );
        assert!(encoder.compress(&input, &mut []).is_none(), "{kind:?}");
        // Zstd wants room for what it has not measured yet.
        if kind == CompressionType::Zlib {
            assert_eq!(encoder.compress(&input, &mut exact), Some(len));
        }
        assert!(encoder.compress(&vec![0; 65537], &mut packed).is_none());
    }
}

#[test]
fn incompressible_data_is_seen_to_be_so() {
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..65536)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    for kind in KINDS {
        let mut encoder = Encoder::new(kind, 65536).unwrap();
        assert!(
            encoder.compress(&noise, &mut vec![0; 65535]).is_none(),
            "{kind:?}"
        );
        assert!(round_trip(&mut encoder, kind, &noise) < 65536 + 40);
    }
}

#[test]
fn every_cluster_size_takes_every_length() {
    for kind in KINDS {
        for bits in 9..=21 {
            let cluster = 1 << bits;
            let input: Vec<u8> = (0..cluster as u32)
                .map(|at| ((at / 3) ^ (at >> 7)) as u8)
                .collect();
            let mut encoder = Encoder::new(kind, cluster).unwrap();
            for len in [cluster, cluster - 1, cluster / 2, 1, 0] {
                round_trip(&mut encoder, kind, &input[..len]);
            }
        }
        assert!(Encoder::new(kind, MAX_CLUSTER_BYTES + 1).is_none());
    }
}

#[test]
fn a_bomb_ends_at_the_cluster() {
    // 64 MiB of zeros in one zstd block per 128 KiB, and in one deflate stream.
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, (26 - 10) << 3];
    for block in 0..512_u32 {
        let header = (128 << 10) << 3 | 1 << 1 | u32::from(block == 511);
        zstd.extend(&header.to_le_bytes()[..3]);
        zstd.push(0);
    }
    let mut out = vec![1; 65536];
    let mut decoder = Decoder::new();
    assert!(
        decoder
            .decompress(CompressionType::Zstd, &zstd, &mut out)
            .is_err()
    );
    let deflate = miniz_oxide::deflate::compress_to_vec(&vec![0; 8 << 20], 6);
    assert_eq!(
        decoder.decompress(CompressionType::Zlib, &deflate, &mut out),
        Ok(())
    );
    assert!(out.iter().all(|byte| *byte == 0));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn matches_reach_back_at_most_4_kib() {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
    // Each stretch of 4095, 4096 or 5000 bytes is there twice, one after the other.
    let mut state = 7_u32;
    let mut input = Vec::new();
    for len in [4095, 4096, 5000].into_iter().cycle().take(12) {
        let start = input.len();
        for _ in 0..len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            input.push((state >> 27) as u8);
        }
        input.extend_from_within(start..);
    }
    let mut encoder = Encoder::new(CompressionType::Zlib, input.len()).unwrap();
    let mut packed = vec![0; input.len()];
    let len = encoder.compress(&input, &mut packed).unwrap();
    packed.truncate(len);
    // A ring of 4 KiB holds no more than that of what was.
    let (mut ring, mut out, mut at) = (vec![0; 4096], Vec::new(), 0);
    let mut inflate = DecompressorOxide::new();
    loop {
        let place = out.len() % ring.len();
        let (status, read, written) = decompress(&mut inflate, &packed[at..], &mut ring, place, 0);
        at += read;
        out.extend_from_slice(&ring[place..place + written]);
        if status != TINFLStatus::HasMoreOutput {
            assert_eq!(status, TINFLStatus::Done);
            break;
        }
    }
    assert!(out == input);
}
