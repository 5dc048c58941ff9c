use super::*;
use instar_storage::MemStorage;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const LEN: usize = 8 * 512;

/// Where requests begin and how long they are: odd ones, and those that touch a sector's edge.
fn requests() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let edge =
        (0..8_usize, 0..3_usize).prop_map(|(sector, by)| (sector * 512 + by).saturating_sub(1));
    let place = prop_oneof![0..LEN, edge];
    proptest::collection::vec((place, 0..LEN), 1..8)
}

proptest! {
    #[test]
    fn view_acts_like_plain_memory(requests in requests(), shifted in any::<bool>()) {
        let cipher = SectorCipher::legacy_aes(b"password").unwrap();
        let store = MemStorage::hole(LEN as u64);
        let view = if shifted {
            Deciphered::counted(&store, &cipher, 1024, 1 << 40)
        } else {
            Deciphered::by_place(&store, &cipher)
        };
        let mut model = vec![0; LEN];
        view.write_zeroes(0, LEN as u64).unwrap();
        for ((at, len), number) in requests.into_iter().zip(1_u8..) {
            let len = len.min(LEN - at);
            let data: Vec<u8> = (number..=250).cycle().take(len).collect();
            view.write_at(at as u64, &data).unwrap();
            model[at..at + len].copy_from_slice(&data);
            let mut buf = vec![0xee; LEN - at];
            view.read_at(at as u64, &mut buf).unwrap();
            prop_assert_eq!(&buf, &model[at..]);
        }
        let first = if shifted { (1 << 31) - 2 } else { 0 };
        let mut all = store.to_vec();
        cipher.decrypt(first, &mut all).unwrap();
        prop_assert_eq!(all, model);
    }
}

#[test]
fn batch_is_read_like_single_reads() {
    let cipher = SectorCipher::legacy_aes(b"password").unwrap();
    let store = MemStorage::hole(LEN as u64);
    let view = Deciphered::by_place(&store, &cipher);
    let data: Vec<u8> = (0..=250).cycle().take(LEN).collect();
    view.write_batch(&[Write {
        offset: 0,
        buf: &data,
    }])
    .unwrap();
    assert_ne!(store.to_vec(), data);
    let (mut a, mut b) = (vec![0; 700], vec![0; 512]);
    let mut reads = [
        Read {
            offset: 513,
            buf: &mut a,
        },
        Read {
            offset: 1024,
            buf: &mut b,
        },
    ];
    view.read_batch(&mut reads).unwrap();
    assert_eq!((&a[..], &b[..]), (&data[513..1213], &data[1024..1536]));
    assert!(view.extent_at(0).unwrap().unwrap().data);
}
