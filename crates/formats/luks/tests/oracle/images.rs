//! Running the oracles.

use instar_crypt::Random;
use std::path::Path;
use std::process::{Command, Output};

/// The password of every volume here.
pub const PASSWORD: &str = "correct horse";

/// A random generator of a test: not secret.
pub fn random(seed: u8) -> Random {
    Random::from_seed(&[seed; instar_crypt::SEED_BYTES])
}

/// Runs a program in a folder; its output if it succeeds.
pub fn run(program: &str, folder: &Path, words: &[&str]) -> Result<String, String> {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program)
        .args(words)
        .current_dir(folder)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed (`make setup`): {e}"));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    if status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}

/// Runs commands of `qemu-io` on an image given by its options.
pub fn qemu_io(folder: &Path, image: &str, commands: &[&str]) -> Result<(), String> {
    let secret = format!("secret,id=s,data={PASSWORD}");
    let mut words = vec!["--object", &secret, "--image-opts", image];
    for command in commands {
        words.extend(["-c", command]);
    }
    let said = run("qemu-io", folder, &words)?;
    if said.contains("Pattern verification failed") {
        return Err(said);
    }
    Ok(())
}
