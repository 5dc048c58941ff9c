//! Compiles C for x86-64, without a C library and without a heap: zstd's level 3 and decompression, and
//! libdeflate's level 6 and decompression.
//!
//! The sources are those of the crates zstd-sys and libdeflate-sys, unchanged; `Cargo.lock` names their checksums.
//! Those crates' own builds want a C library for the target and compile everything, so they are not used. See
//! `docs/decisions/0014-c-zstd-and-libdeflate.md`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources of zstd for which small counts: what they do costs little, or gains little by more code.
const SMALL: &[&str] = &[
    "common/entropy_common.c",
    "common/error_private.c",
    "common/xxhash.c",
    "common/zstd_common.c",
    "compress/fse_compress.c",
    "compress/hist.c",
    "compress/zstd_compress.c",
    "compress/zstd_compress_literals.c",
    "compress/zstd_preSplit.c",
    "decompress/zstd_ddict.c",
    "decompress/zstd_decompress_block.c",
];

/// Sources of zstd for which fast counts.
const FAST: &[&str] = &[
    "compress/huf_compress.c",
    "compress/zstd_compress_sequences.c",
];

/// What those are compiled with besides: padding between their loops makes them no faster.
const FAST_FLAGS: &[&str] = &[
    "-O2",
    "-fno-align-functions",
    "-fno-align-jumps",
    "-fno-align-labels",
    "-fno-align-loops",
];

/// Sources of zstd whose loops that matter are macros, so that functions as the compiler would have them are as fast.
const PLAIN: &[&str] = &["common/fse_decompress.c", "decompress/huf_decompress.c"];

/// What those are compiled with.
const PLAIN_FLAGS: &[&str] = &["-Os", "-DZSTD_NO_INLINE"];

/// Our own sources; some include a library's.
const OWN: &[&str] = &[
    "absent.c",
    "codec.c",
    "deflate.c",
    "frames.c",
    "inflate.c",
    "search.c",
];

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
    let carriers = Carriers::find()?;
    let compiler = Compiler {
        zstd: carriers.folder("zstd-sys")?.join("zstd/lib"),
        libdeflate: carriers.folder("libdeflate-sys")?.join("libdeflate/lib"),
        own: PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("c"),
        out: PathBuf::from(variable("OUT_DIR")?),
    };
    let mut objects = Vec::new();
    for source in OWN {
        objects.push(compiler.compile(&compiler.own.join(source), &["-Os"])?);
    }
    let of_zstd = [
        (SMALL, &["-Os"][..]),
        (PLAIN, PLAIN_FLAGS),
        (FAST, FAST_FLAGS),
    ];
    for (sources, flags) in of_zstd {
        for source in sources {
            objects.push(compiler.compile(&compiler.zstd.join(source), flags)?);
        }
    }
    compiler.archive(&objects)
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    std::env::var(name).map_err(|error| format!("{name}: {error}").into())
}

/// What `cargo metadata` says of the crates that carry the sources.
struct Carriers(serde_json::Value);

impl Carriers {
    fn find() -> Result<Self, Box<dyn Error>> {
        let output = Command::new(variable("CARGO")?)
            .args(["metadata", "--format-version=1", "--locked"])
            .args(["--filter-platform", &variable("TARGET")?])
            .current_dir(variable("CARGO_MANIFEST_DIR")?)
            .env("CARGO_ENCODED_RUSTFLAGS", "--cfg=instar_c_sources")
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        Ok(Self(serde_json::from_slice(&output.stdout)?))
    }

    /// Where cargo unpacked the crate.
    fn folder(&self, name: &str) -> Result<PathBuf, Box<dyn Error>> {
        let packages = self.0["packages"].as_array().ok_or("no packages")?;
        let manifest = packages
            .iter()
            .find(|package| package["name"] == name)
            .and_then(|package| package["manifest_path"].as_str())
            .ok_or_else(|| format!("cargo metadata does not name {name}"))?;
        Ok(Path::new(manifest).with_file_name(""))
    }
}

/// A C compiler, and the folders it works with.
struct Compiler {
    zstd: PathBuf,
    libdeflate: PathBuf,
    own: PathBuf,
    out: PathBuf,
}

impl Compiler {
    /// Compiles one source; gives the object file.
    fn compile(&self, source: &Path, flags: &[&str]) -> Result<PathBuf, Box<dyn Error>> {
        let program = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let name = source.file_name().ok_or("a source without a name")?;
        let object = self.out.join(name).with_extension("o");
        let mut command = Command::new(program);
        command.args(FLAGS).args(flags).arg("-c");
        if !source.ends_with("search.c") {
            let ours = |search: &&str| format!("-D{search}=instar_zstd_search");
            command.args(SEARCHES.iter().map(ours));
        }
        // Ours first: its headers take the places of a C library's.
        let folders = [
            (&self.own, "c"),
            (&self.zstd, "zstd"),
            (&self.libdeflate, "libdeflate"),
        ];
        for (folder, stands_for) in folders {
            command.arg("-I").arg(folder);
            let folder = folder.display();
            command.arg(format!("-ffile-prefix-map={folder}={stands_for}"));
        }
        command.arg(source).arg("-o").arg(&object);
        run(&mut command)?;
        Ok(object)
    }

    /// Puts the objects into a library and tells cargo to link it.
    fn archive(&self, objects: &[PathBuf]) -> Result<(), Box<dyn Error>> {
        let archive = self.out.join("libinstar_codecs.a");
        if archive.exists() {
            std::fs::remove_file(&archive)?;
        }
        // Without dates and owners.
        run(Command::new("ar").arg("crsD").arg(&archive).args(objects))?;
        println!("cargo::rustc-link-search=native={}", self.out.display());
        println!("cargo::rustc-link-lib=static=instar_codecs");
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
