//! The secret region, in machines that have one.

use crate::control::store;
use crate::ring::{DATA_BYTES, Request};
use crate::{check, fail};
use instar_guest_ops::Context;
use instar_shared::blk::RequestType;
use instar_shared::layout::SECRETS;
use instar_shared::secret::SecretRole;
use instar_test_guests::{Case, SECRET};

pub(crate) fn run(ctx: &mut Context, case: Case) {
    let request = match case {
        Case::ReadIntoSecrets => {
            let mut request = Request::change(RequestType::ReadBytes, 0, SECRETS.start, DATA_BYTES);
            request.turn();
            request
        }
        Case::WriteFromSecrets => {
            Request::change(RequestType::WriteBytes, 0, SECRETS.start, DATA_BYTES)
        }
        _ => return take(ctx),
    };
    store(SECRETS.start, &SECRET);
    request.send(0);
    fail("the host took the chain");
}

fn take(ctx: &mut Context) {
    let secret = ctx.secret(0, 2, SecretRole::Open);
    let mut region = [1; SECRETS.size as usize];
    crate::heap::load(SECRETS.start, &mut region);
    check(region.iter().all(|byte| *byte == 0), "secrets are left");
    check(secret.is_some_and(|s| *s == SECRET), "another secret");
    check(
        ctx.secret(0, 0, SecretRole::Open).is_none(),
        "a secret too many",
    );
    check(
        ctx.secret(0, 2, SecretRole::New).is_none(),
        "a secret too many",
    );
    // For the host to overwrite.
    store(SECRETS.start, &SECRET);
}
