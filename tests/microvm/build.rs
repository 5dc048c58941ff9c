//! Builds the guest that misbehaves, for the machine that the tests run on.

fn main() {
    let guest = ["instar-test-guests"];
    if let Err(error) = instar_guest_build::embed(&guest, &guest, &["tests/guests"]) {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}
