//! Every `-o` of `qemu-img create -f qcow2`: `info` and `check` equal, text
//! and JSON.

use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

/// Builds one filled image per list of options and compares all four outputs.
fn matrix(cases: &[Vec<String>]) -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for case in cases {
        let options: Vec<&str> = case.iter().map(String::as_str).collect();
        image::create_filled(&scratch, "disk.qcow2", &options)?;
        bench.same_both(&case.join(","), "disk.qcow2")?;
        std::fs::remove_file(scratch.file("disk.qcow2"))?;
    }
    bench.finish()
}

fn options(list: &[&str]) -> Vec<String> {
    list.iter().map(|option| (*option).to_owned()).collect()
}

/// 512 bytes to 2 MiB.
fn cluster_sizes() -> impl Iterator<Item = String> {
    (9..=21).map(|bits| format!("cluster_size={}", 1_u32 << bits))
}

#[test]
fn every_cluster_size_version_3() -> Outcome {
    matrix(&cluster_sizes().map(|size| vec![size]).collect::<Vec<_>>())
}

#[test]
fn every_cluster_size_version_2() -> Outcome {
    let cases: Vec<_> = cluster_sizes()
        .map(|size| vec!["compat=0.10".to_owned(), size])
        .collect();
    matrix(&cases)
}

#[test]
fn every_cluster_size_with_extended_l2() -> Outcome {
    // Subclusters of at least 512 bytes: clusters of at least 16 KiB.
    let cases: Vec<_> = (14..=21)
        .map(|bits| {
            vec![
                "extended_l2=on".to_owned(),
                format!("cluster_size={}", 1_u32 << bits),
            ]
        })
        .collect();
    matrix(&cases)
}

#[test]
fn every_refcount_width() -> Outcome {
    let cases: Vec<_> = (0..=6)
        .flat_map(|order| {
            ["512", "4096", "65536"].map(|size| {
                vec![
                    format!("refcount_bits={}", 1_u32 << order),
                    format!("cluster_size={size}"),
                ]
            })
        })
        .collect();
    matrix(&cases)
}

#[test]
fn lazy_refcounts_and_compression_types() -> Outcome {
    matrix(&[
        options(&["lazy_refcounts=on"]),
        options(&["lazy_refcounts=off"]),
        options(&["compat=v3"]),
        options(&["compat=v2"]),
        options(&["compression_type=zlib"]),
        options(&["compression_type=zstd"]),
        options(&[
            "compression_type=zstd",
            "extended_l2=on",
            "lazy_refcounts=on",
        ]),
        options(&["extent_size_hint=2M"]),
        options(&["nocow=on"]),
    ])
}

#[test]
fn every_preallocation() -> Outcome {
    let cases: Vec<_> = ["off", "metadata", "falloc", "full"]
        .iter()
        .flat_map(|mode| {
            [
                options(&[&format!("preallocation={mode}")]),
                options(&[&format!("preallocation={mode}"), "cluster_size=4096"]),
                options(&[&format!("preallocation={mode}"), "extended_l2=on"]),
            ]
        })
        .collect();
    matrix(&cases)
}

#[test]
fn data_files() -> Outcome {
    let mut cases = Vec::new();
    for raw in ["data_file_raw=off", "data_file_raw=on"] {
        for more in [
            vec![],
            vec!["cluster_size=4096"],
            vec!["extended_l2=on"],
            vec!["preallocation=metadata"],
        ] {
            let mut case = options(&["data_file=disk.data", raw]);
            case.extend(options(&more));
            cases.push(case);
        }
    }
    matrix(&cases)
}

#[test]
fn virtual_sizes() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for size in [
        "0", "1", "511", "512", "1000", "1023", "1024", "1000000", "1M", "1000M", "1G", "1023G",
        "1T", "10T", "2P",
    ] {
        // 2 MiB clusters: the L1 table of the largest fits QEMU's limit.
        image::create(&scratch, "disk.qcow2", &["cluster_size=2M"], size)?;
        bench.same_both(size, "disk.qcow2")?;
    }
    bench.finish()
}

#[test]
fn compressed_images() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for kind in ["zlib", "zstd"] {
        for size in ["512", "4096", "65536", "2M"] {
            for extended in ["off", "on"] {
                if extended == "on" && matches!(size, "512" | "4096") {
                    continue;
                }
                let list = [
                    format!("compression_type={kind}"),
                    format!("cluster_size={size}"),
                    format!("extended_l2={extended}"),
                ];
                let list: Vec<&str> = list.iter().map(String::as_str).collect();
                image::create_compressed(&scratch, "disk.qcow2", &list)?;
                bench.same_both(&list.join(","), "disk.qcow2")?;
            }
        }
    }
    bench.finish()
}

/// One encrypted image: `info` shows its header, `check` asks for the key.
fn encrypted(list: &[&str]) -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_encrypted(&scratch, "disk.qcow2", list)?;
    bench.same_both(&list.join(","), "disk.qcow2")?;
    bench.finish()
}

#[test]
fn encrypted_legacy_aes() -> Outcome {
    encrypted(&["encrypt.format=aes"])?;
    encrypted(&["encrypt.format=aes", "compat=0.10"])?;
    encrypted(&["encrypt.format=aes", "extended_l2=on"])
}

#[test]
fn encrypted_luks_default() -> Outcome {
    encrypted(&["encrypt.format=luks"])
}

#[test]
fn encrypted_luks_cbc_essiv() -> Outcome {
    encrypted(&[
        "encrypt.format=luks",
        "encrypt.cipher-alg=aes-128",
        "encrypt.cipher-mode=cbc",
        "encrypt.ivgen-alg=essiv",
        "encrypt.ivgen-hash-alg=sha256",
        "encrypt.hash-alg=sha1",
    ])
}

#[test]
fn encrypted_luks_serpent_plain() -> Outcome {
    encrypted(&[
        "encrypt.format=luks",
        "encrypt.cipher-alg=serpent-256",
        "encrypt.cipher-mode=cbc",
        "encrypt.ivgen-alg=plain",
        "encrypt.hash-alg=sha512",
        "cluster_size=4096",
    ])
}

#[test]
fn encrypted_luks_twofish_ecb() -> Outcome {
    encrypted(&[
        "encrypt.format=luks",
        "encrypt.cipher-alg=twofish-128",
        "encrypt.cipher-mode=ecb",
        "encrypt.hash-alg=ripemd160",
        "cluster_size=2M",
    ])
}
