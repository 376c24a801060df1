//! Whom to believe: sessions of other nodes that have proven to live now.
//!
//! A seal shows that a datagram was made by somebody with a key, not when. So nothing is believed of a
//! session that is new to this process until its owner has told back a [`Cookie`] that was made here for
//! that session and that address. What was recorded before, in whatever life of either side, cannot.
//!
//! ```text
//!  A ── message, session a ───────────► B   new to B: not believed, not remembered
//!  A ◄──────────── cookie for a ─────── B   the challenge
//!  A ── message again, with the cookie,
//!       and a cookie for b if b is new ► B   a is proven: its counters count from here
//!  A ◄─ answer, with the cookie for b ─ B   b is proven, too
//! ```
//!
//! So a first contact takes one more round trip, and no message is lost by it: the asked side keeps what it
//! has sent within the last second. B keeps nothing for a session that is not proven. A challenge is not
//! longer than what it answers, and there is at most one per session and tenth of a second.
//!
//! This is also where the key for a datagram is chosen: the one in use, unless the receiver is known not to
//! accept it; then one that it does accept.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::codec::DATAGRAM_MAX;
use super::counters::Refused;
use super::envelope::{Opened, Outgoing, SEALED_PREFIX};
use super::sync::Limiter;
use crate::seal::cipher::{HEADER_LEN, Header, NetworkKey, Salt, SessionKey, TAG_LEN};
use crate::seal::cookie::{Baker, Cookie};
use crate::seal::window::{Verdict, Window};
use crate::seal::{KeyId, KeyRing, Secrets};

/// Most bytes that sealing adds to a message.
pub(super) const SEAL_LEN_MAX: usize = HEADER_LEN + FLAGS_LEN + ECHO_LEN + TAG_LEN;

const FLAGS_LEN: usize = 1;
const CHALLENGE_LEN: usize = Cookie::LEN + KeyId::LEN;
const ECHO_LEN: usize = Cookie::LEN + 8;

const FLAG_CHALLENGE: u8 = 1;
const FLAG_ECHO: u8 = 2;
const FLAG_ACCEPTS: u8 = 4;

/// Sessions that one address may have: more than one while two nodes share it, or one is just restarted.
const SESSIONS_PER_ADDRESS: usize = 4;

/// For how long a removed key still opens what was sent before its removal was heard of, so that keys are
/// changed without one lost message.
const RETIREMENT: Duration = Duration::from_secs(2);

/// For how long, and how many messages are kept to be repeated.
const RECENT: Duration = Duration::from_secs(1);
const RECENT_MAX: usize = 256;

/// For how long a cookie is told back with everything that goes to its maker: almost as long as it lives,
/// so that the next message makes up for one that was lost.
const OWED: Duration = Duration::from_secs(4);

/// How often one session is challenged, and how many are told apart for that.
const CHALLENGE_PAUSE: Duration = Duration::from_millis(100);
const CHALLENGED_MAX: usize = 256;

/// Most challenges per second, and most answers to those of unproven sessions.
const CHALLENGES_PER_S: u32 = 1000;

/// The sealed side of a node's gossip.
#[derive(Debug)]
pub(super) struct Sessions {
    network: String,
    started: Instant,
    /// The keys, the one in use first, and with each what this node's own session is sealed with.
    keys: Vec<(NetworkKey, SessionKey)>,
    /// Removed keys that still open what was on its way, and until when.
    retired: Vec<(NetworkKey, Instant)>,
    /// Since when the keys are as they are.
    keys_since_ms: u64,
    /// This node's own session, and the counter of its next datagram.
    own: Salt,
    counter: u64,
    baker: Baker,
    sessions: BTreeMap<Salt, Session>,
    peers: BTreeMap<SocketAddr, Peer>,
    peers_max: usize,
    recent: VecDeque<Recent>,
    challenged: BTreeMap<Salt, Instant>,
    limiter: Limiter,
}

/// A session that has proven to live.
#[derive(Debug)]
struct Session {
    address: SocketAddr,
    keys: Vec<(KeyId, SessionKey)>,
    window: Window,
    heard: Instant,
}

/// What is known of whoever is at an address.
#[derive(Debug)]
struct Peer {
    /// The keys that it accepts, the one that it uses first. Empty: unknown.
    accepts: Vec<KeyId>,
    /// What it asked to be told back.
    owed: Option<Owed>,
    /// Its session, if that is to be challenged with the next message.
    unproven: Option<Salt>,
    touched: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Owed {
    echo: Echo,
    until: Instant,
}

/// A message that was sent and may not have been believed.
#[derive(Debug)]
struct Recent {
    to: SocketAddr,
    body: Vec<u8>,
    sent: Instant,
}

/// "Tell me this back; and do you accept this key?"
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Challenge {
    cookie: Cookie,
    uses: KeyId,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Echo {
    cookie: Cookie,
    /// The counter of the first datagram after the challenge.
    first: u64,
    /// Whether the challenger's key in use is accepted.
    accepts: bool,
}

/// What stands before the message under the seal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Preface {
    challenge: Option<Challenge>,
    echo: Option<Echo>,
}

impl Sessions {
    pub(super) fn new(
        network: &str,
        keys: &KeyRing,
        secrets: &Secrets,
        nodes_max: usize,
        now: Instant,
    ) -> Self {
        let mut sessions = Self {
            network: network.to_owned(),
            started: now,
            keys: Vec::new(),
            retired: Vec::new(),
            keys_since_ms: 0,
            own: secrets.salt,
            counter: 0,
            baker: Baker::new(secrets),
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            // Each node, its former life, and some that are not remembered otherwise.
            peers_max: nodes_max.saturating_mul(2).saturating_add(64),
            recent: VecDeque::new(),
            challenged: BTreeMap::new(),
            limiter: Limiter::new(CHALLENGES_PER_S, now),
        };
        sessions.set_keys(keys, now);
        sessions
    }

    /// The names of the keys, the one in use first.
    pub(super) fn keys(&self) -> Vec<KeyId> {
        self.keys.iter().map(|(key, _)| key.id).collect()
    }

    /// Replaces the keys. Sessions stay, for they do not belong to a key. A key that is missing now still
    /// opens what arrives within [`RETIREMENT`].
    pub(super) fn set_keys(&mut self, keys: &KeyRing, now: Instant) {
        self.keys_since_ms = self.ms(now);
        let ids = keys.ids();
        let former = std::mem::take(&mut self.keys);
        let removed = former.into_iter().filter(|(key, _)| !ids.contains(&key.id));
        self.retired.extend(removed.map(|(key, _)| (key, now + RETIREMENT)));
        self.retired.retain(|(key, until)| now < *until && !ids.contains(&key.id));
        self.keys = (keys.keys().iter())
            .map(|key| {
                let key = NetworkKey::new(key, &self.network);
                let own = key.session(self.own);
                (key, own)
            })
            .collect();
        let retired = self.retired.iter().map(|(key, _)| key.id);
        let opening: Vec<_> = ids.into_iter().chain(retired).collect();
        for session in self.sessions.values_mut() {
            session.keys.retain(|(id, _)| opening.contains(id));
        }
    }

    /// Goes on in a new session. What is on its way stays good.
    pub(super) fn renew(&mut self, secrets: &Secrets) {
        self.own = secrets.salt;
        self.counter = 0;
        for (key, own) in &mut self.keys {
            *own = key.session(secrets.salt);
        }
        // Those cookies were for the former session.
        for peer in self.peers.values_mut() {
            peer.owed = None;
        }
    }

    /// Notes which keys the node at `address` accepts, as its record says, the one that it uses first.
    pub(super) fn note_keys(&mut self, address: SocketAddr, accepts: &[KeyId], now: Instant) {
        self.peer(address, now).accepts = accepts.to_vec();
    }

    /// Makes a datagram.
    pub(super) fn close(&mut self, to: SocketAddr, what: Outgoing, now: Instant) -> Vec<u8> {
        let mut key = self.key_for(to);
        let mut preface = Preface::default();
        let body = match what {
            Outgoing::Message(body) => {
                self.keep(to, &body, now);
                body
            }
            Outgoing::Repeated(body) => body,
            Outgoing::Proof => Vec::new(),
            Outgoing::Challenge { session, key: with } => {
                preface.challenge = Some(self.challenge(to, session, now));
                key = self.position(with).unwrap_or(key);
                Vec::new()
            }
        };
        if preface.challenge.is_none()
            && let Some(peer) = self.peers.get_mut(&to)
        {
            peer.owed.take_if(|owed| owed.until < now);
            preface.echo = peer.owed.map(|owed| owed.echo);
            // Proofs and challenges are as short as what they answer.
            let room = SEAL_LEN_MAX + CHALLENGE_LEN + body.len() <= DATAGRAM_MAX;
            if room
                && !body.is_empty()
                && let Some(session) = peer.unproven.take()
                && !self.sessions.contains_key(&session)
            {
                preface.challenge = Some(self.challenge(to, session, now));
            }
        }
        let counter = self.counter;
        self.counter += 1;
        let (network, own) = &self.keys[key];
        let header = Header { key: network.id, network: network.tag, session: self.own, counter };
        let mut datagram = Vec::with_capacity(SEAL_LEN_MAX + CHALLENGE_LEN + body.len());
        header.write(SEALED_PREFIX, &mut datagram);
        preface.write(&mut datagram);
        datagram.extend_from_slice(&body);
        own.seal(counter, &mut datagram);
        datagram
    }

    /// What is under a seal, for whoever looks on with the keys and believes nothing of it.
    pub(super) fn look_into(network: &str, keys: &KeyRing, datagram: &[u8]) -> Option<Vec<u8>> {
        let header = Header::read(datagram)?;
        let mut keys = keys.keys().iter().map(|key| NetworkKey::new(key, network));
        let key = keys.find(|key| key.id == header.key && key.tag == header.network)?;
        let plain = key.session(header.session).open(header.counter, datagram)?;
        Some(Preface::read(&plain)?.1.to_vec())
    }

    /// Opens a datagram. What is genuine and not proven to be fresh is answered with a challenge.
    pub(super) fn open(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Opened, Refused> {
        let header = Header::read(datagram).ok_or(Refused::Malformed)?;
        if header.session == self.own {
            return Err(Refused::Reflected);
        }
        let own = self.keys.iter().map(|(key, _)| key);
        let retired = self.retired.iter().filter(|(_, until)| now < *until).map(|(key, _)| key);
        let key = own.chain(retired).find(|key| key.id == header.key);
        let key = key.ok_or(Refused::UnknownKey)?;
        if header.network != key.tag {
            return Err(Refused::ForeignNetwork);
        }
        let known = self.sessions.get_mut(&header.session);
        let is_proven = known.as_ref().is_some_and(|session| session.address == from);
        let plain = match known {
            Some(session) => {
                // Cheaper than to open it.
                match session.window.judge(header.counter) {
                    Verdict::Fresh => {}
                    Verdict::Seen => return Err(Refused::Replayed),
                    Verdict::Old => return Err(Refused::Late),
                    // Overtaken by the proof, and repeated with it.
                    Verdict::Early => return Ok(Opened { unproven: true, ..Opened::default() }),
                }
                session.key(key, header.session).open(header.counter, datagram)
            }
            None => key.session(header.session).open(header.counter, datagram),
        };
        let plain = plain.ok_or(Refused::Unauthentic)?;
        let (preface, body) = Preface::read(&plain).ok_or(Refused::Malformed)?;
        let is_believed =
            is_proven || preface.echo.is_some_and(|echo| self.prove(from, header, echo, now));
        let mut opened = Opened::default();
        if is_believed && let Some(session) = self.sessions.get_mut(&header.session) {
            session.window.mark(header.counter);
            session.heard = now;
            opened.body = (!body.is_empty()).then(|| body.to_vec());
        }
        opened.unproven = !is_believed && !body.is_empty();
        if let Some(challenge) = preface.challenge {
            if !is_believed && !self.limiter.take(1, now) {
                return Err(Refused::RateLimited);
            }
            self.take_challenge(from, header.session, challenge, &mut opened, now);
        } else if !is_believed {
            opened.answers.extend(self.ask(header, datagram.len(), now)?);
        }
        Ok(opened)
    }

    /// Whether the session has just proven to live at `from`.
    fn prove(&mut self, from: SocketAddr, header: Header, echo: Echo, now: Instant) -> bool {
        let now_ms = self.ms(now);
        let Some(made_ms) = self.baker.check(&echo.cookie, header.session, from, now_ms) else {
            return false;
        };
        if header.counter < echo.first {
            return false;
        }
        match self.sessions.get_mut(&header.session) {
            Some(session) => {
                session.address = from;
                session.window.raise(echo.first);
            }
            None => {
                self.make_room(from, now);
                let window = Window::new(echo.first);
                let session = Session { address: from, keys: Vec::new(), window, heard: now };
                self.sessions.insert(header.session, session);
            }
        }
        let used = self.keys.first().map(|(key, _)| key.id);
        let also = used
            .filter(|used| echo.accepts && made_ms >= self.keys_since_ms && *used != header.key);
        self.challenged.remove(&header.session);
        let peer = self.peer(from, now);
        peer.accepts = std::iter::once(header.key).chain(also).collect();
        peer.unproven = None;
        true
    }

    /// Forgets what was quiet for longest, if there are too many sessions of this address or of all. What
    /// is forgotten could be proven again with a cookie that is still good; so none is good any more.
    fn make_room(&mut self, from: SocketAddr, now: Instant) {
        let at = self.sessions.iter().filter(|(_, session)| session.address == from);
        let (count, oldest) = (at.clone().count(), at.min_by_key(|(_, session)| session.heard));
        let victim = if count >= SESSIONS_PER_ADDRESS {
            oldest
        } else if self.sessions.len() >= self.peers_max {
            self.sessions.iter().min_by_key(|(_, session)| session.heard)
        } else {
            None
        };
        if let Some(salt) = victim.map(|(salt, _)| *salt) {
            self.sessions.remove(&salt);
            let now_ms = self.ms(now);
            self.baker.revoke(now_ms);
        }
    }

    /// Somebody wants to know whether this node's session lives.
    fn take_challenge(
        &mut self,
        from: SocketAddr,
        session: Salt,
        challenge: Challenge,
        opened: &mut Opened,
        now: Instant,
    ) {
        let accepts = self.position(challenge.uses).is_some();
        let echo = Echo { cookie: challenge.cookie, first: self.counter, accepts };
        let is_proven = self.sessions.get(&session).is_some_and(|known| known.address == from);
        let peer = self.peer(from, now);
        peer.owed = Some(Owed { echo, until: now + OWED });
        peer.unproven = (!is_proven).then_some(session);
        let (repeated, kept) = std::mem::take(&mut self.recent)
            .into_iter()
            .partition::<VecDeque<_>, _>(|recent| recent.to == from);
        self.recent = kept;
        let fresh = repeated.into_iter().filter(|recent| now < recent.sent + RECENT);
        opened.answers.extend(fresh.map(|recent| Outgoing::Repeated(recent.body)));
        // Whoever is believed and has said something gets the cookie with the answer.
        if opened.answers.is_empty() && opened.body.is_none() {
            opened.answers.push(Outgoing::Proof);
        }
    }

    /// Asks whether a session lives, if it was not asked a moment ago.
    fn ask(
        &mut self,
        header: Header,
        len: usize,
        now: Instant,
    ) -> Result<Option<Outgoing>, Refused> {
        // Whoever sends less than it gets could let others be flooded.
        if len < HEADER_LEN + FLAGS_LEN + CHALLENGE_LEN + TAG_LEN {
            return Err(Refused::Malformed);
        }
        if self.challenged.get(&header.session).is_some_and(|at| now < *at + CHALLENGE_PAUSE) {
            return Ok(None);
        }
        if self.challenged.len() >= CHALLENGED_MAX {
            self.challenged.retain(|_, at| now < *at + CHALLENGE_PAUSE);
        }
        if self.challenged.len() >= CHALLENGED_MAX || !self.limiter.take(1, now) {
            return Err(Refused::RateLimited);
        }
        self.challenged.insert(header.session, now);
        Ok(Some(Outgoing::Challenge { session: header.session, key: header.key }))
    }

    fn challenge(&self, to: SocketAddr, session: Salt, now: Instant) -> Challenge {
        let cookie = self.baker.bake(session, to, self.ms(now));
        Challenge { cookie, uses: self.keys[0].0.id }
    }

    /// Which key a datagram is sealed with.
    fn key_for(&self, to: SocketAddr) -> usize {
        let used = self.keys[0].0.id;
        let accepts = self.peers.get(&to).map_or(&[][..], |peer| &peer.accepts);
        if accepts.is_empty() || accepts.contains(&used) {
            return 0;
        }
        accepts.iter().find_map(|id| self.position(*id)).unwrap_or(0)
    }

    fn position(&self, id: KeyId) -> Option<usize> {
        self.keys.iter().position(|(key, _)| key.id == id)
    }

    fn keep(&mut self, to: SocketAddr, body: &[u8], now: Instant) {
        while self.recent.len() >= RECENT_MAX
            || self.recent.front().is_some_and(|oldest| now >= oldest.sent + RECENT)
        {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { to, body: body.to_vec(), sent: now });
    }

    fn peer(&mut self, address: SocketAddr, now: Instant) -> &mut Peer {
        if self.peers.len() >= self.peers_max && !self.peers.contains_key(&address) {
            let oldest = self.peers.iter().min_by_key(|(_, peer)| peer.touched);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.peers.remove(&oldest);
            }
        }
        let new = Peer { accepts: Vec::new(), owed: None, unproven: None, touched: now };
        let peer = self.peers.entry(address).or_insert(new);
        peer.touched = now;
        peer
    }

    fn ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.started);
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Session {
    /// What datagrams under `key` are opened with.
    fn key(&mut self, key: &NetworkKey, salt: Salt) -> &SessionKey {
        let ix = self.keys.iter().position(|(id, _)| *id == key.id).unwrap_or_else(|| {
            self.keys.push((key.id, key.session(salt)));
            self.keys.len() - 1
        });
        &self.keys[ix].1
    }
}

impl Preface {
    fn write(&self, bytes: &mut Vec<u8>) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        bytes.push(
            flag(self.challenge.is_some(), FLAG_CHALLENGE)
                | flag(self.echo.is_some(), FLAG_ECHO)
                | flag(self.echo.is_some_and(|echo| echo.accepts), FLAG_ACCEPTS),
        );
        if let Some(Challenge { cookie, uses }) = self.challenge {
            bytes.extend_from_slice(&cookie.0);
            bytes.extend_from_slice(&uses.0);
        }
        if let Some(Echo { cookie, first, .. }) = self.echo {
            bytes.extend_from_slice(&cookie.0);
            bytes.extend_from_slice(&first.to_be_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (&flags, mut rest) = bytes.split_first()?;
        let mut preface = Self::default();
        if flags & FLAG_CHALLENGE != 0 {
            let (cookie, after) = rest.split_first_chunk()?;
            let (uses, after) = after.split_first_chunk()?;
            preface.challenge = Some(Challenge { cookie: Cookie(*cookie), uses: KeyId(*uses) });
            rest = after;
        }
        if flags & FLAG_ECHO != 0 {
            let (cookie, after) = rest.split_first_chunk()?;
            let (first, after) = after.split_first_chunk()?;
            let (cookie, first) = (Cookie(*cookie), u64::from_be_bytes(*first));
            preface.echo = Some(Echo { cookie, first, accepts: flags & FLAG_ACCEPTS != 0 });
            rest = after;
        }
        (flags <= FLAG_CHALLENGE | FLAG_ECHO | FLAG_ACCEPTS).then_some((preface, rest))
    }
}
