//! `memcpy` and its kin, which compiled code calls and this target does not bring.
//!
//! Short copies are a few moves; long ones leave the work to the CPU's string
//! instructions. All are written in assembly, so that the compiler cannot make a
//! loop in them into a call of themselves.

use core::arch::naked_asm;

/// C `memcpy`: copies `len` bytes; the ranges do not overlap.
///
/// # Safety
/// `dst` is valid for writes and `src` for reads of `len` bytes.
#[unsafe(naked)]
#[cfg_attr(instar_guest, unsafe(export_name = "memcpy"))]
pub(crate) unsafe extern "C" fn copy(dst: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "cmp rdx, 16",
        "jb {short}",
        "cmp rdx, 32",
        "ja 3f",
        // 16 to 32: two moves that may overlap.
        "movups xmm0, [rsi]",
        "movups xmm1, [rsi + rdx - 16]",
        "movups [rdi], xmm0",
        "movups [rdi + rdx - 16], xmm1",
        "ret",
        // 33 to 128: 16 bytes at a time, and the last 16.
        "3:",
        "cmp rdx, 128",
        "ja 5f",
        "movups xmm1, [rsi + rdx - 16]",
        "lea r8, [rdi + rdx - 16]",
        "4:",
        "movups xmm0, [rsi]",
        "movups [rdi], xmm0",
        "add rsi, 16",
        "add rdi, 16",
        "cmp rdi, r8",
        "jb 4b",
        "movups [r8], xmm1",
        "ret",
        "5:",
        "mov rcx, rdx",
        "rep movsb",
        "ret",
        short = sym copy_short,
    )
}

/// The part of [`copy`] for up to 15 bytes; loads everything before it stores.
///
/// # Safety
/// As [`copy`]; `rax` holds `dst` already, and is returned.
#[unsafe(naked)]
unsafe extern "C" fn copy_short(dst: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    naked_asm!(
        "cmp rdx, 8",
        "jb 6f",
        "mov rcx, [rsi]",
        "mov r8, [rsi + rdx - 8]",
        "mov [rdi], rcx",
        "mov [rdi + rdx - 8], r8",
        "ret",
        "6:",
        "cmp rdx, 4",
        "jb 7f",
        "mov ecx, [rsi]",
        "mov r8d, [rsi + rdx - 4]",
        "mov [rdi], ecx",
        "mov [rdi + rdx - 4], r8d",
        "ret",
        "7:",
        "test rdx, rdx",
        "jz 8f",
        "mov cl, [rsi]",
        "mov r8b, [rsi + rdx - 1]",
        "lea r10, [rdi + rdx - 1]",
        "shr rdx, 1",
        "mov r9b, [rsi + rdx]",
        "mov [rdi], cl",
        "mov [rdi + rdx], r9b",
        "mov [r10], r8b",
        "8:",
        "ret",
    )
}

/// C `memmove`: copies `len` bytes; the ranges may overlap.
///
/// # Safety
/// `dst` is valid for writes and `src` for reads of `len` bytes.
#[unsafe(naked)]
#[cfg_attr(instar_guest, unsafe(export_name = "memmove"))]
pub(crate) unsafe extern "C" fn copy_overlapping(
    dst: *mut u8,
    src: *const u8,
    len: usize,
) -> *mut u8 {
    naked_asm!(
        "mov rcx, rdi",
        "sub rcx, rsi",
        "cmp rcx, rdx",
        // The target does not start inside the source: `copy` goes forwards and loads before it stores.
        "jae {copy}",
        "mov rax, rdi",
        "2:",
        "cmp rdx, 8",
        "jb 3f",
        "sub rdx, 8",
        "mov rcx, [rsi + rdx]",
        "mov [rdi + rdx], rcx",
        "jmp 2b",
        "3:",
        "test rdx, rdx",
        "jz 4f",
        "dec rdx",
        "mov cl, [rsi + rdx]",
        "mov [rdi + rdx], cl",
        "jmp 3b",
        "4:",
        "ret",
        copy = sym copy,
    )
}

/// C `memset`: fills `len` bytes with the low byte of `value`.
///
/// # Safety
/// `dst` is valid for writes of `len` bytes.
#[unsafe(naked)]
#[cfg_attr(instar_guest, unsafe(export_name = "memset"))]
pub(crate) unsafe extern "C" fn fill(dst: *mut u8, value: i32, len: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "mov eax, esi",
        "mov rcx, rdx",
        "rep stosb",
        "mov rax, r8",
        "ret",
    )
}

/// C `memcmp` and `bcmp`: negative, 0 or positive as the first differing byte of `a` is less than, or
/// greater than `b`'s.
///
/// # Safety
/// Both are valid for reads of `len` bytes.
#[unsafe(naked)]
#[cfg_attr(instar_guest, unsafe(export_name = "memcmp"))]
pub(crate) unsafe extern "C" fn compare(a: *const u8, b: *const u8, len: usize) -> i32 {
    naked_asm!(
        "xor ecx, ecx",
        "2:",
        "lea r8, [rcx + 8]",
        "cmp r8, rdx",
        "ja 3f",
        "mov rax, [rdi + rcx]",
        "mov r9, [rsi + rcx]",
        "cmp rax, r9",
        "jne 4f",
        "mov rcx, r8",
        "jmp 2b",
        // Fewer than 8 are left.
        "3:",
        "cmp rcx, rdx",
        "jae 5f",
        "movzx eax, byte ptr [rdi + rcx]",
        "movzx r9d, byte ptr [rsi + rcx]",
        "inc rcx",
        "sub eax, r9d",
        "je 3b",
        "ret",
        // The first differing byte decides: compare as big-endian numbers.
        "4:",
        "bswap rax",
        "bswap r9",
        "cmp rax, r9",
        "sbb eax, eax",
        "or eax, 1",
        "ret",
        "5:",
        "xor eax, eax",
        "ret",
    )
}

/// C `bcmp`: as [`compare`].
///
/// # Safety
/// As [`compare`].
#[cfg(instar_guest)]
#[unsafe(naked)]
#[unsafe(export_name = "bcmp")]
unsafe extern "C" fn differ(a: *const u8, b: *const u8, len: usize) -> i32 {
    naked_asm!("jmp {compare}", compare = sym compare)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const LENGTHS: &[usize] = &[
        0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 100, 127, 128, 129, 1000,
    ];

    fn numbered(len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| u8::try_from(i % 251).unwrap() + 1)
            .collect()
    }

    #[test]
    fn copy_copies_exactly_len_bytes() {
        for &len in LENGTHS {
            let src = numbered(len);
            let mut dst = vec![0; len + 32];
            // SAFETY: both are long enough.
            let returned = unsafe { copy(dst.as_mut_ptr().add(16), src.as_ptr(), len) };
            assert_eq!(returned, dst[16..].as_mut_ptr());
            assert_eq!(&dst[16..16 + len], &src[..], "{len}");
            assert!(
                dst[..16].iter().chain(&dst[16 + len..]).all(|b| *b == 0),
                "{len}"
            );
        }
    }

    #[test]
    fn copy_overlapping_equals_copy_within_at_every_distance() {
        for &len in LENGTHS {
            for distance in [0, 1, 2, 7, 8, 9, 15, 16, 17, 40, 200] {
                for (from, to) in [(0, distance), (distance, 0)] {
                    let mut bytes = numbered(len + distance);
                    let mut expected = bytes.clone();
                    expected.copy_within(from..from + len, to);
                    let base = bytes.as_mut_ptr();
                    // SAFETY: both ranges lie in the vector.
                    unsafe { copy_overlapping(base.add(to), base.add(from), len) };
                    assert_eq!(bytes, expected, "{len} bytes from {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn fill_fills_exactly_len_bytes() {
        for &len in LENGTHS {
            let mut bytes = vec![1; len + 2];
            // SAFETY: the vector is long enough.
            unsafe { fill(bytes.as_mut_ptr().add(1), 0x1ff, len) };
            assert!(bytes[1..=len].iter().all(|b| *b == 0xff));
            assert_eq!((bytes[0], bytes[len + 1]), (1, 1));
        }
    }

    #[test]
    fn compare_agrees_with_slices() {
        for &len in LENGTHS {
            let a = numbered(len);
            for at in 0..len {
                for change in [1, 0x80, 0xff] {
                    let mut b = a.clone();
                    b[at] ^= change;
                    // SAFETY: both are `len` bytes.
                    let order = unsafe { compare(a.as_ptr(), b.as_ptr(), len) };
                    assert_eq!(order.cmp(&0), a.cmp(&b), "{len} {at}");
                }
            }
            // SAFETY: both are `len` bytes.
            assert_eq!(unsafe { compare(a.as_ptr(), a.as_ptr(), len) }, 0);
        }
    }
}
