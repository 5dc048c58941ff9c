use crate::next_id;

fn next(ids: &[&[u8]]) -> u64 {
    next_id(ids.iter().copied())
}

/// Each as `qemu-img` was seen to go on.
#[test]
fn the_next_id_is_qemus() {
    assert_eq!(next(&[]), 1);
    assert_eq!(next(&[b"2", b"9", b"3"]), 10);
    for none in [&b"0"[..], b"-", b"x", b" ", b"", b"0x", b"x9"] {
        assert_eq!(next(&[none]), 1, "{none:?}");
    }
    assert_eq!(next(&[b"9x", b"8"]), 10);
    assert_eq!(next(&[b" +9"]), 10);
    assert_eq!(next(&[b"010"]), 11);
    assert_eq!(next(&[b"-1"]), 0);
    assert_eq!(next(&[b"-5"]), u64::MAX - 3);
    assert_eq!(next(&[b"-18446744073709551610"]), 7);
    assert_eq!(next(&[b"18446744073709551614"]), u64::MAX);
    assert_eq!(next(&[b"18446744073709551615"]), 0);
    assert_eq!(next(&[b"18446744073709551616"]), 0);
    assert_eq!(next(&[b"99999999999999999999999"]), 0);
}
