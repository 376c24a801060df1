//! Proof that a session lives now: what a node asks to be told back, without remembering that it asked.
//!
//! A cookie is the time when it was made and a code over that time, the session that it was made for and
//! the address that it was sent to. The code's key is made at the start of the process and never leaves it,
//! so nobody can make one, and none outlives the process that made it.

use std::fmt;
use std::net::SocketAddr;

use aws_lc_rs::{constant_time, hmac};

use super::cipher::Salt;
use super::key::random;
use crate::error::Error;

/// The clock of cookies, in milliseconds per tick: 32 bits last for 13 years.
const TICK_MS: u64 = 100;

/// For how many ticks a cookie may be told back: longer than any round trip.
const LIFE: u32 = 50;

/// Length of the code: nobody guesses 96 bits while a cookie lives.
const CODE_LEN: usize = 12;

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

/// What is to be told back: when it was made, and the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie(pub(crate) [u8; Self::LEN]);

impl Cookie {
    pub(crate) const LEN: usize = 4 + CODE_LEN;
}

/// Makes cookies and knows them again.
#[derive(Debug)]
pub(crate) struct Baker {
    key: hmac::Key,
    /// Cookies made earlier are worth nothing any more.
    from: u32,
}

impl Baker {
    pub(crate) fn new(secrets: &Secrets) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &secrets.cookie), from: 0 }
    }

    pub(crate) fn bake(&self, session: Salt, address: SocketAddr, now_ms: u64) -> Cookie {
        let made = tick(now_ms).to_be_bytes();
        let mut cookie = [0; Cookie::LEN];
        cookie[..4].copy_from_slice(&made);
        cookie[4..].copy_from_slice(&self.code(made, session, address));
        Cookie(cookie)
    }

    /// Since when the cookie may have been made, in milliseconds, if it is one that was made here, lately,
    /// for this session at this address.
    pub(crate) fn check(
        &self,
        cookie: &Cookie,
        session: Salt,
        address: SocketAddr,
        now_ms: u64,
    ) -> Option<u64> {
        let [a, b, c, d, code @ ..] = cookie.0;
        let made = u32::from_be_bytes([a, b, c, d]);
        let age = tick(now_ms).checked_sub(made)?;
        let expected = self.code([a, b, c, d], session, address);
        let genuine = constant_time::verify_slices_are_equal(&code, &expected).is_ok();
        let good = genuine && age <= LIFE && made >= self.from;
        good.then(|| u64::from(made) * TICK_MS)
    }

    /// Devalues all cookies made so far.
    pub(crate) fn revoke(&mut self, now_ms: u64) {
        self.from = tick(now_ms).saturating_add(1);
    }

    fn code(&self, made: [u8; 4], session: Salt, address: SocketAddr) -> [u8; CODE_LEN] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&made);
        context.update(&session.0);
        match address {
            SocketAddr::V4(v4) => context.update(&v4.ip().octets()),
            SocketAddr::V6(v6) => context.update(&v6.ip().octets()),
        }
        context.update(&address.port().to_be_bytes());
        let mut code = [0; CODE_LEN];
        let tag = context.sign();
        for (to, from) in code.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        code
    }
}

fn tick(ms: u64) -> u32 {
    u32::try_from(ms / TICK_MS).unwrap_or(u32::MAX)
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
        assert_eq!(baker.check(&cookie, session, address, 6099), Some(1000));
        assert_eq!(baker.check(&cookie, session, address, 6100), None, "too old");
        assert_eq!(baker.check(&cookie, session, address, 999), None, "from the future");
        assert_eq!(baker.check(&cookie, Salt([2; 16]), address, 1000), None);
        for other in ["192.0.2.1:7947", "192.0.2.2:7946", "[2001:db8::1]:7946"] {
            assert_eq!(baker.check(&cookie, session, other.parse().unwrap(), 1000), None);
        }
        let mut later = cookie;
        later.0[3] += 1;
        assert_eq!(baker.check(&later, session, address, 1100), None, "changed");
        let restarted = Baker::new(&Secrets::generate().unwrap());
        assert_eq!(restarted.check(&cookie, session, address, 1000), None);
        baker.revoke(1000);
        assert_eq!(baker.check(&cookie, session, address, 1000), None);
        let fresh = baker.bake(session, address, 1170);
        assert_eq!(baker.check(&fresh, session, address, 1250), Some(1100));
    }
}
