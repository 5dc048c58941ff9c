//! The options `encrypt.*` of `amend`, as QEMU judges them.

use super::OptionList;
use crate::create::encryption::is_signed;
use crate::{keyring, quantity};
use instar_shared::encrypt::{KEY_FORCE, KEY_OLD_SECRET, KEY_SLOT_GIVEN, KeyChange, KeyState};

/// Time for a password's key where it is not given, in milliseconds.
const ITER_TIME_MS: u64 = 2000;

/// The options about key slots, as typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyOptions {
    state: Option<Vec<u8>>,
    /// Name of the secret that is to open a slot.
    pub new_secret: Option<Vec<u8>>,
    /// Name of the secret that is not to open one any more.
    pub old_secret: Option<Vec<u8>>,
    slot: Option<Vec<u8>>,
    iter_time: Option<Vec<u8>>,
}

/// What is to become of key slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// For the operation.
    pub change: KeyChange,
    /// What is wrong, which counts only for an image that has key slots.
    pub refusal: Option<String>,
    /// What the operation's sentence about a missing password means.
    pub no_secret: Option<String>,
}

impl KeyOptions {
    /// The last of each.
    pub fn new(list: &OptionList) -> Self {
        let mut options = Self::default();
        for (name, text) in list.meanings() {
            let field = match name {
                b"encrypt.state" => &mut options.state,
                b"encrypt.new-secret" => &mut options.new_secret,
                b"encrypt.old-secret" => &mut options.old_secret,
                b"encrypt.keyslot" => &mut options.slot,
                b"encrypt.iter-time" => &mut options.iter_time,
                _ => continue,
            };
            *field = Some(text.to_vec());
        }
        options
    }

    /// What the options ask for.
    pub fn judge(&self, force: bool) -> Judged {
        self.judge_with(force, |name| keyring::missing(name.as_ref()))
    }

    /// As [`Self::judge`]; `missing` says why there is no secret of a name.
    fn judge_with(
        &self,
        force: bool,
        missing: impl Fn(&Option<Vec<u8>>) -> Option<String>,
    ) -> Judged {
        let mut change = KeyChange::zeroed();
        let refusal = match self.state() {
            Err(sentence) => Some(sentence),
            Ok(state) => {
                let refusal = match state {
                    KeyState::Active => self.wrong_to_add(),
                    _ => self.wrong_to_erase(missing(&self.old_secret)),
                };
                if refusal.is_none() {
                    change = self.change(state, force);
                }
                refusal
            }
        };
        Judged {
            change,
            refusal,
            no_secret: missing(&self.new_secret),
        }
    }

    fn state(&self) -> Result<KeyState, String> {
        let state = match self.state.as_deref() {
            None => return Err("Parameter 'state' is missing".into()),
            Some(b"active") => KeyState::Active,
            Some(b"inactive") => KeyState::Inactive,
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                return Err(format!("Parameter 'state' does not accept value '{other}'"));
            }
        };
        for (name, number) in [("keyslot", &self.slot), ("iter-time", &self.iter_time)] {
            if number.as_deref().is_some_and(|text| !is_signed(text)) {
                return Err(format!("Parameter '{name}' expects integer"));
            }
        }
        Ok(state)
    }

    fn wrong_to_add(&self) -> Option<String> {
        let sentence = if self.new_secret.is_none() {
            "'new-secret' is required to activate a keyslot"
        } else if self.old_secret.is_some() {
            "'old-secret' must not be given when activating keyslots"
        } else {
            return None;
        };
        Some(sentence.into())
    }

    fn wrong_to_erase(&self, no_secret: Option<String>) -> Option<String> {
        let sentence = if self.new_secret.is_some() {
            "'new-secret' must not be given when erasing keyslots"
        } else if self.iter_time.is_some() {
            "'iter-time' must not be given when erasing keyslots"
        } else if self.old_secret.is_none() && self.slot.is_none() {
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in \
             them must be given"
        } else {
            return no_secret;
        };
        Some(sentence.into())
    }

    fn change(&self, state: KeyState, force: bool) -> KeyChange {
        let mut change = KeyChange::zeroed();
        change.state.set(state.raw());
        let flags = [
            (self.slot.is_some(), KEY_SLOT_GIVEN),
            (self.old_secret.is_some(), KEY_OLD_SECRET),
            (force, KEY_FORCE),
        ];
        let flags = flags.into_iter().filter(|(on, _)| *on);
        change.flags.set(flags.fold(0, |all, (_, bit)| all | bit));
        let number = |text: &Option<Vec<u8>>| text.as_deref().map(quantity::number);
        // QEMU looks at the low half.
        let slot = number(&self.slot).and_then(Result::ok).unwrap_or(0);
        change.slot.set(super::options::low_half(slot));
        let time = number(&self.iter_time).and_then(Result::ok);
        change.iter_time_ms.set(time.unwrap_or(ITER_TIME_MS));
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(list: &str) -> Judged {
        let options = KeyOptions::new(&OptionList::of(list.as_bytes()));
        options.judge_with(false, |name| {
            let missing = name.as_deref() == Some(b"zz");
            missing.then(|| "No secret with id 'zz'".into())
        })
    }

    /// As `qemu-img amend` 10.0.2 was seen to refuse.
    #[test]
    fn refusals_equal_qemu_img() {
        let to_erase = "To erase keyslot(s), either explicit keyslot index or the password currently \
                        contained in them must be given";
        for (list, sentence) in [
            ("encrypt.new-secret=n", "Parameter 'state' is missing"),
            (
                "encrypt.state=foo",
                "Parameter 'state' does not accept value 'foo'",
            ),
            (
                "encrypt.state=active,encrypt.keyslot=18446744073709551615",
                "Parameter 'keyslot' expects integer",
            ),
            (
                "encrypt.state=active,encrypt.iter-time=18446744073709551615",
                "Parameter 'iter-time' expects integer",
            ),
            (
                "encrypt.state=active,encrypt.old-secret=zz",
                "'new-secret' is required to activate a keyslot",
            ),
            (
                "encrypt.state=active,encrypt.new-secret=n,encrypt.old-secret=s",
                "'old-secret' must not be given when activating keyslots",
            ),
            ("encrypt.state=inactive", to_erase),
            (
                "encrypt.state=inactive,encrypt.new-secret=zz,encrypt.iter-time=5",
                "'new-secret' must not be given when erasing keyslots",
            ),
            (
                "encrypt.state=inactive,encrypt.iter-time=0",
                "'iter-time' must not be given when erasing keyslots",
            ),
            (
                "encrypt.state=inactive,encrypt.old-secret=zz,encrypt.keyslot=9",
                "No secret with id 'zz'",
            ),
        ] {
            let judged = judged(list);
            assert_eq!(judged.refusal.as_deref(), Some(sentence), "{list}");
            assert_eq!(judged.change, KeyChange::zeroed(), "{list}");
        }
    }

    #[test]
    fn numbers_are_taken_as_qemu_takes_them() {
        for (typed, slot) in [("-1", u32::MAX), ("4294967296", 0), ("0x7", 7)] {
            let list = format!("encrypt.state=active,encrypt.new-secret=n,encrypt.keyslot={typed}");
            let judged = judged(&list);
            assert_eq!(judged.refusal, None, "{typed}");
            assert_eq!(judged.change.slot.get(), slot, "{typed}");
            assert_eq!(judged.change.iter_time_ms.get(), 2000);
        }
    }

    #[test]
    fn a_missing_new_secret_counts_after_the_slot() {
        let judged = judged("encrypt.state=active,encrypt.new-secret=zz,encrypt.keyslot=9");
        assert_eq!(judged.refusal, None);
        assert_eq!(judged.no_secret.as_deref(), Some("No secret with id 'zz'"));
    }
}
