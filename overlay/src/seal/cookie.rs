//! Proof that a session lives now: what a node asks to be told back, without remembering that it asked.
//!
//! A cookie is the time when it was made and a code over that time, the session that it was made for and
//! the address that it was sent to. The code's key is made at the start of the process and never leaves it,
//! so nobody can make one, and none outlives the process that made it.

use std::fmt;
use std::net::SocketAddr;

use aws_lc_rs::{constant_time, hmac};
use serde::{Deserialize, Serialize};

use super::cipher::Salt;
use super::key::random;
use crate::error::Error;

/// For how long a cookie may be told back, in milliseconds: longer than any round trip.
const LIFE_MS: u64 = 5000;

/// What a process must have from the kernel, and must not share with any other life of the node.
#[derive(Clone)]
pub struct Secrets {
    /// What the keys of its session are derived with.
    pub(crate) salt: Salt,
    cookie: [u8; 32],
}

impl Secrets {
    /// Makes secrets from the kernel's random numbers.
    ///
    /// # Errors
    ///
    /// When the kernel gives none.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self::from_bytes(random()?, random()?))
    }

    /// Makes secrets of these bytes, as a simulation does. `salt` must never have been used before.
    pub fn from_bytes(salt: [u8; 16], cookie: [u8; 32]) -> Self {
        Self { salt: Salt(salt), cookie }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("salt", &self.salt).finish_non_exhaustive()
    }
}

/// What is to be told back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cookie {
    made_ms: [u8; 8],
    code: [u8; 16],
}

/// Makes cookies and knows them again.
#[derive(Debug)]
pub(crate) struct Baker {
    key: hmac::Key,
    /// Cookies made earlier are worth nothing any more.
    from_ms: u64,
}

impl Baker {
    pub(crate) fn new(secrets: &Secrets) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &secrets.cookie), from_ms: 0 }
    }

    pub(crate) fn bake(&self, session: Salt, address: SocketAddr, now_ms: u64) -> Cookie {
        let made_ms = now_ms.to_be_bytes();
        Cookie { made_ms, code: self.code(made_ms, session, address) }
    }

    /// When the cookie was made, if it is one that was made here, lately, for this session at this address.
    pub(crate) fn check(
        &self,
        cookie: &Cookie,
        session: Salt,
        address: SocketAddr,
        now_ms: u64,
    ) -> Option<u64> {
        let made_ms = u64::from_be_bytes(cookie.made_ms);
        let age = now_ms.checked_sub(made_ms)?;
        let code = self.code(cookie.made_ms, session, address);
        let genuine = constant_time::verify_slices_are_equal(&code, &cookie.code).is_ok();
        (genuine && age <= LIFE_MS && made_ms >= self.from_ms).then_some(made_ms)
    }

    /// Devalues all cookies made so far.
    pub(crate) fn revoke(&mut self, now_ms: u64) {
        self.from_ms = now_ms + 1;
    }

    fn code(&self, made_ms: [u8; 8], session: Salt, address: SocketAddr) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&made_ms);
        context.update(&session.0);
        match address {
            SocketAddr::V4(v4) => context.update(&v4.ip().octets()),
            SocketAddr::V6(v6) => context.update(&v6.ip().octets()),
        }
        context.update(&address.port().to_be_bytes());
        let mut code = [0; 16];
        let tag = context.sign();
        for (to, from) in code.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_for_one_session_at_one_address_for_a_while() {
        let secrets = Secrets::generate().unwrap();
        let mut baker = Baker::new(&secrets);
        let (session, address) = (Salt([1; 16]), "192.0.2.1:7946".parse().unwrap());
        let cookie = baker.bake(session, address, 1000);
        assert_eq!(baker.check(&cookie, session, address, 1000), Some(1000));
        assert_eq!(baker.check(&cookie, session, address, 1000 + LIFE_MS), Some(1000));
        assert_eq!(baker.check(&cookie, session, address, 1001 + LIFE_MS), None, "too old");
        assert_eq!(baker.check(&cookie, session, address, 999), None, "from the future");
        assert_eq!(baker.check(&cookie, Salt([2; 16]), address, 1000), None);
        for other in ["192.0.2.1:7947", "192.0.2.2:7946", "[2001:db8::1]:7946"] {
            assert_eq!(baker.check(&cookie, session, other.parse().unwrap(), 1000), None);
        }
        let mut later = cookie;
        later.made_ms = 1001_u64.to_be_bytes();
        assert_eq!(baker.check(&later, session, address, 1001), None, "changed");
        let restarted = Baker::new(&Secrets::generate().unwrap());
        assert_eq!(restarted.check(&cookie, session, address, 1000), None);
        baker.revoke(1000);
        assert_eq!(baker.check(&cookie, session, address, 1000), None);
        let fresh = baker.bake(session, address, 1001);
        assert_eq!(baker.check(&fresh, session, address, 1002), Some(1001));
    }
}
