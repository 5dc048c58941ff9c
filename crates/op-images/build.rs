//! Builds the operations for the machine that this crate is compiled for.

use instar_guest_build::operations::{PACKAGES, programs};

fn main() {
    let programs: Vec<_> = programs().collect();
    if let Err(error) = instar_guest_build::embed(PACKAGES, &programs, &[]) {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}
