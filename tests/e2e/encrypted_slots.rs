//! Key slots of LUKS images, changed by `amend`: what is said, and which passwords open the image then.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CASES` says how many chains of changes are made.

use anyhow::{Context, Result, ensure};
use instar_tests::image;
use instar_tests::rng::Rng;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::totals::total;
use instar_tests::twins::Twins;

use crate::Outcome;
use crate::map_chains::cases;

/// Names of secrets, and the secrets.
const SECRETS: [(&str, &str); 4] = [("a", "first"), ("b", "second"), ("c", "third"), ("d", "")];

fn objects() -> Vec<String> {
    let object = |(id, data)| ["--object".to_owned(), format!("secret,id={id},data={data}")];
    SECRETS.into_iter().flat_map(object).collect()
}

/// The image, opened with a secret.
fn opened(secret: &str) -> String {
    format!("driver=qcow2,file.filename=x,encrypt.key-secret={secret}")
}

fn luks(scratch: &Scratch) -> Result<()> {
    let list = "encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=1";
    let mut args: Vec<String> = ["create", "-q", "-f", "qcow2", "-o", list, "x", "1M"]
        .map(str::to_owned)
        .to_vec();
    args.extend(objects());
    image::qemu_img(scratch, &args)?;
    image::create(scratch, "plain", &[], "1M")?;
    let aes = "encrypt.format=aes,encrypt.key-secret=a";
    let mut args: Vec<String> = ["create", "-q", "-f", "qcow2", "-o", aes, "aes", "1M"]
        .map(str::to_owned)
        .to_vec();
    args.extend(objects());
    image::qemu_img(scratch, &args).map(drop)
}

/// `amend` in both folders.
fn amend(twins: &mut Twins, force: bool, list: &str, image: &str) -> Result<i32> {
    let mut args = vec!["amend".to_owned()];
    args.extend(force.then(|| "--force".to_owned()));
    args.extend(["-o", list, "--image-opts", image].map(str::to_owned));
    args.extend(objects());
    twins.run(&args)
}

/// Which slots hold keys.
fn active(scratch: &Scratch) -> Result<Vec<bool>> {
    let done = image::qemu_img(scratch, &["info", "--output=json", "x"])?;
    let value: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    let slots = &value["format-specific"]["data"]["encrypt"]["slots"];
    let slots = slots.as_array().context("no slots")?;
    Ok(slots
        .iter()
        .map(|slot| slot["active"].as_bool().unwrap_or(false))
        .collect())
}

/// Which secrets open the image.
fn open(scratch: &Scratch) -> Result<Vec<bool>> {
    let mut open = Vec::new();
    for (id, _) in SECRETS {
        let mut args = objects();
        args.extend(["--image-opts".to_owned(), opened(id)]);
        args.extend(["-c".to_owned(), "read 0 512".to_owned()]);
        let done = Run::new(&tools::qemu_io()?, scratch.path())
            .args(&args)
            .go()?;
        open.push(done.code == Some(0));
    }
    Ok(open)
}

fn compare(twins: &Twins) -> Result<()> {
    let [theirs, ours] = [twins.theirs(), twins.ours()].map(active);
    let (theirs, ours) = (theirs?, ours?);
    ensure!(theirs == ours, "slots: {ours:?}, with qemu-img {theirs:?}");
    let [theirs, ours] = [twins.theirs(), twins.ours()].map(open);
    let (theirs, ours) = (theirs?, ours?);
    ensure!(
        theirs == ours,
        "opens with: {ours:?}, with qemu-img {theirs:?}"
    );
    Ok(())
}

#[test]
fn changes_of_key_slots_are_those_of_the_oracle() -> Outcome {
    let add = "encrypt.state=active,encrypt.iter-time=1";
    let erase = "encrypt.state=inactive";
    let mut twins = Twins::new()?;
    twins.build(luks)?;
    for (force, list) in [
        (
            false,
            format!("{add},encrypt.new-secret=b,encrypt.keyslot=0"),
        ),
        (
            false,
            format!("{add},encrypt.new-secret=b,encrypt.keyslot=8"),
        ),
        (
            false,
            format!("{add},encrypt.new-secret=b,encrypt.keyslot=-1"),
        ),
        (
            false,
            format!("{add},encrypt.new-secret=zz,encrypt.keyslot=8"),
        ),
        (false, format!("{add},encrypt.new-secret=zz")),
        (
            false,
            format!("{add},encrypt.new-secret=b,encrypt.old-secret=a"),
        ),
        (false, format!("{add},encrypt.old-secret=zz")),
        (false, add.to_owned()),
        (false, "encrypt.new-secret=b".to_owned()),
        (false, "encrypt.state=foo,backing_file=x".to_owned()),
        (false, "encrypt.state=foo,refcount_bits=3".to_owned()),
        (false, "encrypt.state=foo,data_file=x".to_owned()),
        (false, "encrypt.state=foo,compat=3".to_owned()),
        (false, format!("{add},encrypt.new-secret=zz,compat=3")),
        (
            false,
            format!("{add},encrypt.new-secret=zz,refcount_bits=3"),
        ),
        (
            false,
            format!("{add},encrypt.new-secret=b,encrypt.cipher-alg=aes-128"),
        ),
        (false, erase.to_owned()),
        (false, format!("{erase},encrypt.new-secret=b")),
        (false, format!("{erase},encrypt.iter-time=4")),
        (
            false,
            format!("{erase},encrypt.old-secret=zz,encrypt.keyslot=9"),
        ),
        (false, format!("{erase},encrypt.old-secret=c")),
        (false, format!("{erase},encrypt.keyslot=3")),
        (false, format!("{erase},encrypt.keyslot=9")),
        (false, format!("{erase},encrypt.old-secret=a")),
        (false, format!("{erase},encrypt.keyslot=0")),
        (false, format!("{add},encrypt.new-secret=b")),
        (
            false,
            format!("{add},encrypt.new-secret=b,encrypt.keyslot=7"),
        ),
        (
            false,
            format!("{erase},encrypt.keyslot=7,encrypt.old-secret=a"),
        ),
        (
            false,
            format!("{erase},encrypt.keyslot=7,encrypt.old-secret=b"),
        ),
        (true, format!("{erase},encrypt.keyslot=5")),
        (
            true,
            format!("{add},encrypt.new-secret=c,encrypt.keyslot=1"),
        ),
        (
            false,
            format!("{add},encrypt.new-secret=d,lazy_refcounts=on,size=2M"),
        ),
        (false, format!("{erase},encrypt.old-secret=d")),
    ] {
        amend(&mut twins, force, &list, &opened("a"))?;
        compare(&twins).context(list)?;
    }
    Ok(())
}

#[test]
fn images_without_key_slots_are_refused_alike() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(luks)?;
    let add = "encrypt.state=active,encrypt.new-secret=b";
    for list in [add, "encrypt.state=foo", "encrypt.state=foo,compat=xx"] {
        amend(&mut twins, false, list, "driver=qcow2,file.filename=plain")?;
        let aes = "driver=qcow2,file.filename=aes,encrypt.key-secret=a";
        amend(&mut twins, false, list, aes)?;
        amend(&mut twins, false, list, &opened("b"))?;
        amend(&mut twins, false, list, &opened("zz"))?;
        twins.run(&["amend", "-o", list, "x"])?;
    }
    Ok(())
}

/// The last key goes by force, and the data with it.
#[test]
fn last_key_goes_by_force() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(luks)?;
    let list = "encrypt.state=inactive,encrypt.old-secret=a";
    amend(&mut twins, true, list, &opened("a"))?;
    compare(&twins)?;
    ensure!(active(twins.ours())? == [false; 8]);
    amend(&mut twins, true, list, &opened("a")).map(drop)
}

fn one_change(rng: &mut Rng, twins: &mut Twins) -> Result<()> {
    let id = |rng: &mut Rng| rng.pick(&SECRETS).0;
    let slot = rng.below(9);
    let list = match rng.below(5) {
        0 => format!("encrypt.state=inactive,encrypt.old-secret={}", id(rng)),
        1 => format!("encrypt.state=inactive,encrypt.keyslot={slot}"),
        2 => format!(
            "encrypt.state=active,encrypt.iter-time=1,encrypt.keyslot={slot},encrypt.new-secret={}",
            id(rng)
        ),
        _ => format!(
            "encrypt.state=active,encrypt.iter-time=1,encrypt.new-secret={}",
            id(rng)
        ),
    };
    let force = rng.below(6) == 0;
    let by = id(rng);
    amend(twins, force, &list, &opened(by))?;
    compare(twins).with_context(|| format!("seed {}: by {by}: {list}", rng.seed()))
}

#[test]
fn chains_of_changes_end_alike() -> Outcome {
    let mut rng = Rng::for_test("chains_of_key_slots");
    let count = cases(3);
    for _ in 0..count {
        let mut twins = Twins::new()?;
        twins.build(luks)?;
        for _ in 0..8 {
            one_change(&mut rng, &mut twins)?;
        }
    }
    total(8 * count, "changes of key slots");
    Ok(())
}
