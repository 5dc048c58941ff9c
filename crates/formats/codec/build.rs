//! Compiles zstd for x86-64: level 3 and decompression, without a C library and without a heap.
//!
//! The sources are those of the zstd-sys crate, unchanged; `Cargo.lock` names their checksum. That crate's own
//! build wants a C library for the target and compiles everything, so it is not used. See
//! `docs/decisions/0014-c-zstd-own-deflate.md`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crate that carries the sources.
const CARRIER: &str = "zstd-sys";

/// Sources for which small counts: what they do costs little, or gains little by more code.
const SMALL: &[&str] = &[
    "common/entropy_common.c",
    "common/error_private.c",
    "common/fse_decompress.c",
    "common/xxhash.c",
    "common/zstd_common.c",
    "compress/fse_compress.c",
    "compress/hist.c",
    "compress/zstd_compress.c",
    "compress/zstd_compress_literals.c",
    "compress/zstd_preSplit.c",
    "decompress/huf_decompress.c",
    "decompress/zstd_ddict.c",
    "decompress/zstd_decompress.c",
];

/// Sources for which fast counts.
const FAST: &[&str] = &[
    "compress/huf_compress.c",
    "compress/zstd_compress_sequences.c",
    "decompress/zstd_decompress_block.c",
];

/// Our own sources.
const OWN: &[&str] = &["absent.c", "codec.c", "search.c"];

/// What every source is compiled with. Nothing that a distribution sets as a default of its compiler may change
/// the code.
const FLAGS: &[&str] = &[
    "-std=c11",
    "-ffreestanding",
    "-fPIE",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-march=x86-64",
    "-mtune=generic",
    "-g0",
    "-U_FORTIFY_SOURCE",
    "-DDYNAMIC_BMI2=0",
    "-DXXH_NAMESPACE=instar_",
    "-DZSTD_DISABLE_ASM",
    "-DZSTD_LEGACY_SUPPORT=0",
    "-DZSTD_STRIP_ERROR_STRINGS",
    "-DZSTD_TRACE=0",
    // One decoder of each kind.
    "-DHUF_FORCE_DECOMPRESS_X1",
    "-DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT",
    // One search: level 3 uses it for all cluster sizes, without dictionaries.
    "-DZSTD_EXCLUDE_GREEDY_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_LAZY_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_LAZY2_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_BTLAZY2_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_BTOPT_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_BTULTRA_BLOCK_COMPRESSOR",
];

/// Searches in zstd's table that `c/search.c` takes the place of. Only one of them is ever looked up.
const SEARCHES: &[&str] = &[
    "ZSTD_compressBlock_fast",
    "ZSTD_compressBlock_fast_dictMatchState",
    "ZSTD_compressBlock_fast_extDict",
    "ZSTD_compressBlock_doubleFast",
    "ZSTD_compressBlock_doubleFast_dictMatchState",
    "ZSTD_compressBlock_doubleFast_extDict",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-env-changed=CC");
    if std::env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Ok(());
    }
    let compiler = Compiler {
        zstd: sources()?,
        own: PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("c"),
        out: PathBuf::from(variable("OUT_DIR")?),
    };
    let mut objects = Vec::new();
    for source in OWN {
        objects.push(compiler.compile(&compiler.own.join(source), "-Os")?);
    }
    for (sources, level) in [(SMALL, "-Os"), (FAST, "-O2")] {
        for source in sources {
            objects.push(compiler.compile(&compiler.zstd.join(source), level)?);
        }
    }
    compiler.archive(&objects)
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    std::env::var(name).map_err(|error| format!("{name}: {error}").into())
}

/// The folder of zstd's sources, where cargo unpacked the crate that carries them.
fn sources() -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(variable("CARGO")?)
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", &variable("TARGET")?])
        .current_dir(variable("CARGO_MANIFEST_DIR")?)
        .env("CARGO_ENCODED_RUSTFLAGS", "--cfg=instar_zstd_sources")
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let carrier = packages
        .iter()
        .find(|package| package["name"] == CARRIER)
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or_else(|| format!("cargo metadata does not name {CARRIER}"))?;
    Ok(Path::new(carrier).with_file_name("zstd").join("lib"))
}

/// A C compiler, and the folders it works with.
struct Compiler {
    zstd: PathBuf,
    own: PathBuf,
    out: PathBuf,
}

impl Compiler {
    /// Compiles one source; gives the object file.
    fn compile(&self, source: &Path, level: &str) -> Result<PathBuf, Box<dyn Error>> {
        let program = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let name = source.file_name().ok_or("a source without a name")?;
        let object = self.out.join(name).with_extension("o");
        let mut command = Command::new(program);
        command.args(FLAGS).arg(level).arg("-c");
        if !source.ends_with("search.c") {
            let ours = |search: &&str| format!("-D{search}=instar_zstd_search");
            command.args(SEARCHES.iter().map(ours));
        }
        for (folder, stands_for) in [(&self.zstd, "zstd"), (&self.own, "c")] {
            let folder = folder.display();
            command.arg(format!("-ffile-prefix-map={folder}={stands_for}"));
        }
        // Ours first: its headers take the places of a C library's.
        command.arg("-I").arg(&self.own).arg("-I").arg(&self.zstd);
        command.arg(source).arg("-o").arg(&object);
        run(&mut command)?;
        Ok(object)
    }

    /// Puts the objects into a library and tells cargo to link it.
    fn archive(&self, objects: &[PathBuf]) -> Result<(), Box<dyn Error>> {
        let archive = self.out.join("libinstar_zstd.a");
        if archive.exists() {
            std::fs::remove_file(&archive)?;
        }
        // Without dates and owners.
        run(Command::new("ar").arg("crsD").arg(&archive).args(objects))?;
        println!("cargo::rustc-link-search=native={}", self.out.display());
        println!("cargo::rustc-link-lib=static=instar_zstd");
        Ok(())
    }
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.status();
    let status = status.map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {status}").into())
}
