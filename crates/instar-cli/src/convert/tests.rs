use super::options::Manner;
use super::snapshot::{Choice, choice};
use super::*;

fn options(words: &[&str]) -> ConvertOptions {
    let all = ["instar", "convert"]
        .iter()
        .chain(words)
        .map(OsString::from);
    match cli::parse(all).map(|cli| cli.command) {
        Ok(cli::Command::Convert(options)) => *options,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn asked(words: &[&str]) -> Result<Request, String> {
    request(&options(words)).map_err(|error| error.sentence)
}

#[test]
fn defaults_are_those_of_qemu_img() {
    let manner = options(&["a", "b"]).manner().unwrap();
    let expected = Manner {
        sparse_bytes: 4096,
        parallel: 8,
        rate: 0,
        copy_range: false,
    };
    assert_eq!(manner, expected);
    let request = asked(&["a", "b", "c"]).unwrap();
    assert_eq!(request.sources.len(), 2);
    assert_eq!(request.config.flags.get(), 0);
    assert!(request.target.is_ok());
}

#[test]
fn the_last_of_an_option_counts() {
    let manner = options(&["-S", "64k", "-m", "3", "-m", "0x10", "-S", "0", "a", "b"]);
    let manner = manner.manner().unwrap();
    assert_eq!((manner.sparse_bytes, manner.parallel), (0, 16));
}

#[test]
fn nothing_left_out_is_copied_by_the_host_and_filled() {
    let config = asked(&["-S", "0", "a", "b"]).unwrap().config;
    assert_eq!(config.flags.get(), CONVERT_COPY_RANGE | CONVERT_FILL);
    let config = asked(&["-C", "a", "b"]).unwrap().config;
    assert_eq!(config.flags.get(), CONVERT_COPY_RANGE);
    let config = asked(&["-S", "0", "--salvage", "a", "b"]).unwrap().config;
    assert_eq!(config.flags.get(), CONVERT_SALVAGE | CONVERT_FILL);
}

#[test]
fn snapshots_are_chosen_by_text_or_by_properties() {
    let by = |text: &str| choice(Some(OsStr::new(text))).map_err(|error| error.sentence);
    assert_eq!(by("x,y=1"), Ok(Choice::IdOrName(b"x,y=1".to_vec())));
    let both = Choice::Both {
        id: Some(b"1".to_vec()),
        name: Some(b"two".to_vec()),
    };
    assert_eq!(by("snapshot.name=two,snapshot.id=1"), Ok(both));
    assert!(
        by("snapshot.foo=1")
            .unwrap_err()
            .starts_with("Invalid parameter 'snapshot.foo'")
    );
}

#[test]
fn what_counts_after_the_sources_is_said_after_them() {
    for (words, sentence) in [
        (vec!["-O", "bogus"], "Unknown file format 'bogus'"),
        (vec!["-c"], "Compression not supported for this file format"),
        (
            vec!["-B", "x"],
            "Backing file not supported for file format 'raw'",
        ),
        (
            vec!["-O", "qcow2", "-B", "x"],
            "Use of backing file requires explicit backing format",
        ),
        (vec!["-t", "bogus"], "Invalid cache option: bogus"),
        (
            vec!["--bitmaps"],
            "Format driver 'raw' does not support bitmaps",
        ),
    ] {
        let words: Vec<&str> = words.into_iter().chain(["a", "b"]).collect();
        let request = asked(&words).unwrap();
        assert_ne!(
            request.config.flags.get() & CONVERT_LOOK_ONLY,
            0,
            "{words:?}"
        );
        assert_eq!(request.target.unwrap_err(), sentence, "{words:?}");
    }
}
