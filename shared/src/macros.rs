//! The helpers that every wire definition uses.

/// Proves size and field offsets of a wire struct at compile time.
macro_rules! wire_layout {
    ($t:ty, size = $size:literal, { $($f:ident @ $off:literal),+ $(,)? }) => {
        const _: () = {
            assert!(core::mem::size_of::<$t>() == $size);
            $(assert!(core::mem::offset_of!($t, $f) == $off);)+
        };
    };
}

/// A closed set of wire values: the enum, its list `ALL`, and `TryFrom` the raw integer.
macro_rules! wire_enum {
    ($(#[$m:meta])* $v:vis enum $n:ident: $r:ty { $($(#[$vm:meta])* $var:ident = $val:literal),+ $(,)? }) => {
        $(#[$m])* #[repr($r)] #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $v enum $n { $($(#[$vm])* $var = $val),+ }
        impl $n {
            /// Every value, in the order of definition.
            pub const ALL: &'static [Self] = &[$(Self::$var),+];
            /// The number that stands on the wire.
            #[must_use]
            pub const fn raw(self) -> $r {
                self as $r
            }
        }
        impl TryFrom<$r> for $n {
            type Error = $r;
            fn try_from(raw: $r) -> Result<Self, $r> {
                match raw { $($val => Ok(Self::$var),)+ other => Err(other) }
            }
        }
    };
}

/// A plain wire struct: copyable, any bit pattern valid, no padding.
macro_rules! wire_struct {
    ($(#[$m:meta])* $v:vis struct $n:ident { $($(#[$fm:meta])* $fv:vis $f:ident: $ft:ty),+ $(,)? }) => {
        $(#[$m])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        $v struct $n { $($(#[$fm])* $fv $f: $ft),+ }
        impl $n {
            /// All fields zero.
            #[must_use]
            pub fn zeroed() -> Self {
                <Self as zerocopy::FromZeros>::new_zeroed()
            }
        }
    };
}

/// Mask of bits `lo..=hi`, numbered as a specification prints them.
///
/// # Panics
/// At compile time, if the range is empty or reaches past bit 63.
#[must_use]
#[allow(clippy::arithmetic_side_effects)]
pub const fn bits(lo: u32, hi: u32) -> u64 {
    assert!(lo <= hi && hi < 64);
    (u64::MAX >> (63 - (hi - lo))) << lo
}
