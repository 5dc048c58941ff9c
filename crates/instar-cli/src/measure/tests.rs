//! Options as they are typed.

use super::*;

fn options(target: &str, list: &str) -> (Result<(), String>, MeasureConfig) {
    let options = MeasureOptions {
        target_format: target.into(),
        options: vec![list.into()],
        size: None,
        snapshot: None,
        output: "human".into(),
        force_share: false,
        how: crate::cli::FormatOptions::default(),
        files: Vec::new(),
    };
    let list = options::list(&options.options).unwrap();
    let mut config = MeasureConfig::zeroed();
    let target = target_of(&options, list.as_ref(), &mut config);
    (target.map(drop), config)
}

#[test]
fn options_are_read_as_measure_reads_them() {
    let (done, config) = options("qcow2", "compat=0.10,cluster_size=4k");
    assert_eq!(done, Ok(()));
    assert_eq!(config.options.version.get(), 2);
    assert_eq!(config.options.cluster_bytes.get(), 4096);
    assert_eq!(config.target_format.get(), ImageFormat::Qcow2.raw());
    for (target, list, sentence) in [
        ("qcow2", "compat=v2", "Invalid compatibility level: 'v2'"),
        ("qcow2", "preallocation=x", "invalid parameter value: x"),
        ("bogus", "compat=v2", "Unknown file format 'bogus'"),
        (
            "raw",
            "cluster_size=4k",
            "Invalid parameter 'cluster_size'\ninstar: Invalid options for file format 'raw'",
        ),
    ] {
        let (done, config) = options(target, list);
        assert_eq!(done, Err(sentence.into()), "{list}");
        assert_eq!(config.target_format.get(), 0, "{list}");
    }
}
