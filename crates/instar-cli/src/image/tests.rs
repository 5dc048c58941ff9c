//! Names and formats, against what `qemu-img` says about the same.

use super::*;
use crate::oracle;

fn how(format: Option<&str>) -> FormatOptions {
    FormatOptions {
        format: format.map(OsString::from),
        ..FormatOptions::default()
    }
}

fn sentence(name: &str, how: &FormatOptions) -> String {
    Image::new(OsStr::new(name), how).unwrap_err().sentence
}

#[test]
fn refusals_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), [0; 512]).unwrap();
    for (name, format) in [
        ("a", Some("bogus")),
        ("a", Some("")),
        ("missing", Some("bogus")),
        ("foo:a", None),
        ("", None),
    ] {
        let mut arguments = vec!["info"];
        if let Some(format) = format {
            arguments.extend(["-f", format]);
        }
        arguments.push(name);
        let theirs = oracle::qemu_img(folder.path(), &arguments).stderr;
        let ours = sentence(name, &how(format));
        assert_eq!(format!("qemu-img: {ours}\n").as_bytes(), theirs);
    }
}

#[test]
fn names_mean_local_files() {
    for name in ["a", "./a:b", "file:a", "file:./a:b", "/x/a:b"] {
        let image = Image::new(OsStr::new(name), &how(Some("raw"))).unwrap();
        assert_eq!(image.path, PathBuf::from(name));
        assert_eq!(image.format, ImageFormat::Raw);
    }
}

#[test]
fn what_is_not_there_is_said_in_one_sentence() {
    assert!(sentence("nbd:x", &how(None)).ends_with("over the protocol 'nbd'"));
    assert!(sentence("json:{}", &how(None)).ends_with("Must specify either driver or file"));
    assert!(sentence("a", &how(Some("vmdk"))).ends_with("does not read the format 'vmdk'"));
    let mut how = how(None);
    how.image_opts = true;
    how.format = Some("raw".into());
    assert_eq!(
        sentence("a", &how),
        "--image-opts and --format are mutually exclusive"
    );
    let error = Image::only(&["a".into(), "b".into()], &how).unwrap_err();
    assert_eq!(error.sentence, "Expecting one image file name");
}

#[test]
fn foreign_formats_are_those_of_qemu_img() {
    let help = String::from_utf8(oracle::stdout(std::path::Path::new("/"), &["--help"])).unwrap();
    let (_, list) = help.split_once("Supported image formats:").unwrap();
    let (list, _) = list.split_once("See ").unwrap();
    for format in list.split_whitespace() {
        assert!(
            ["raw", "qcow2"].contains(&format) || is_foreign_format(format),
            "{format}"
        );
    }
}
