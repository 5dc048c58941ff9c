//! From the first instruction to the operation's `run`.

use crate::{Context, Machine};

/// Makes a program of `fn run(ctx: &mut Context)`: entry point, ABI note, and what the language needs.
///
/// Called once, at the top of a `#![no_std] #![no_main]` program. When `run` returns, the operation exits.
#[cfg(any(instar_guest, target_os = "none"))]
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        #[used]
        #[unsafe(link_section = ".note.instar")]
        static INSTAR_ABI_NOTE: $crate::shared::abi::AbiNote = $crate::shared::abi::ABI_NOTE;

        extern "C" fn instar_start(vcpu: usize) -> ! {
            $crate::start($run, vcpu)
        }

        /// First instruction; the host has set the stack pointer to the end of the stack, and the first
        /// argument to the number of the vCPU.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn _start() -> ! {
            #[cfg(target_arch = "x86_64")]
            ::core::arch::naked_asm!(
                "xor ebp, ebp",
                "and rsp, -16",
                "call {start}",
                "ud2",
                start = sym instar_start
            );
            #[cfg(target_arch = "aarch64")]
            ::core::arch::naked_asm!(
                "mov x29, xzr",
                "mov x30, xzr",
                "bl {start}",
                "brk #1",
                start = sym instar_start
            );
        }
    };
}

/// Stands for the operation where no guest is built: a program that does nothing and fails.
///
/// Called once, at the top of a `#![no_std] #![no_main]` program.
#[cfg(not(any(instar_guest, target_os = "none")))]
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        extern crate std;

        #[unsafe(no_mangle)]
        extern "C" fn main() -> i32 {
            let _run: fn(&mut $crate::Context) = $run;
            std::eprintln!("This program runs in an instar microVM only.");
            1
        }
    };
}

const _: () = {
    // `link_section` takes a literal.
    let (name, literal) = (instar_shared::abi::NOTE_SECTION.as_bytes(), b".note.instar");
    assert!(matches!(name, b".note.instar") && name.len() == literal.len());
};

/// Runs the operation on the real machine, or on a further vCPU the jobs of its [`crate::Crew`]. Only
/// [`entry!`] calls it.
#[doc(hidden)]
pub fn start(run: fn(&mut Context), vcpu: usize) -> ! {
    if vcpu != 0 {
        crate::crew::enter(vcpu);
    }
    let mut context = Context::new(Machine);
    run(&mut context);
    context.exit()
}
