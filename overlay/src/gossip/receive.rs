//! What arrives: who may speak, and what is done about it.

use std::net::SocketAddr;
use std::time::Duration;

use super::codec::{self, Datagram, Envelope, Message, SwimCodec, View};
use super::counters::Refused;
use super::event::Event;
use super::identity::Identity;
use super::{Gossip, publish};
use crate::seal::{KEYS_MAX, KeyId};

/// How often one translated address is reported.
const TRANSLATED_PAUSE: Duration = Duration::from_secs(60);

/// Most translated addresses that are told apart.
const TRANSLATED_MAX: usize = 64;

impl Gossip {
    /// Takes a message out of a datagram from `from`.
    pub(super) fn receive(&mut self, from: SocketAddr, message: &[u8]) -> Result<(), Refused> {
        match codec::decode(message)? {
            Datagram::Swim(body) => self.receive_swim(from, body),
            Datagram::Message(envelope) => {
                self.admit(from, envelope.from)?;
                self.claims.witness(envelope.clock);
                self.receive_message(*envelope)
            }
        }
    }

    /// Whether a sender is who and where it says.
    fn admit(&mut self, from: SocketAddr, sender: Identity) -> Result<(), Refused> {
        if from != sender.address {
            self.report_translation(sender.address, from);
            return Err(Refused::SourceMismatch);
        }
        if sender.address == self.swim.identity().address {
            return Err(Refused::OwnAddress);
        }
        if sender.id == self.local.id {
            self.meet_twin(sender.address);
        }
        Ok(())
    }

    fn report_translation(&mut self, claimed: SocketAddr, seen: SocketAddr) {
        let now = self.now;
        self.translated.retain(|_, at| now.saturating_duration_since(*at) < TRANSLATED_PAUSE);
        if self.translated.len() < TRANSLATED_MAX && !self.translated.contains_key(&seen) {
            self.translated.insert(seen, now);
            self.event(Event::AddressTranslated { claimed, seen });
        }
    }

    fn receive_swim(&mut self, from: SocketAddr, body: &[u8]) -> Result<(), Refused> {
        let (header, header_len) = SwimCodec::peek(body)?;
        self.admit(from, header.src)?;
        let own = self.swim.identity();
        if (header.dst.id, header.dst.address) != (own.id, own.address) {
            return Err(Refused::NotForUs);
        }
        if header.dst != own && header.message != foca::Message::Announce {
            // Meant for another life of this node. If that was an earlier one, the sender has not heard
            // of this one yet; if a later one, this node's disk has forgotten it.
            self.swim.overtake(header.dst.incarnation, self.now);
            self.swim.announce(header.src, self.now);
            return Ok(());
        }
        if !self.swim.has_room() && self.swim.state(header.src.id, header.src.address).is_none() {
            return Err(Refused::TooManyNodes);
        }
        self.swim.handle(body, header_len, header.src, self.now)
    }

    fn receive_message(&mut self, envelope: Envelope) -> Result<(), Refused> {
        let Envelope { from: sender, message, .. } = envelope;
        match message {
            Message::Hello { you, keys } => {
                self.learn_keys(sender.address, &keys)?;
                self.learn_own_past(sender.address, you);
                let you = Some(self.view_of(sender.id, sender.address));
                self.swim.introduce(sender, self.now);
                let keys = self.envelopes.keys();
                self.send(sender.address, Message::Welcome { you, keys });
                Ok(())
            }
            Message::Welcome { you, keys } => {
                self.learn_keys(sender.address, &keys)?;
                self.learn_own_past(sender.address, you);
                self.welcome(sender);
                Ok(())
            }
            Message::Digest { session, buckets, pods } => {
                self.answer_digest(sender.address, session, (&buckets, &pods))
            }
            Message::InSync { session } => self.finish_pull(sender.address, session),
            Message::Versions { session, part, parts, complete, mask, low, high, items } => {
                let range = super::sync::Listed { mask, low, high, items };
                self.compare_versions(sender.address, session, (part, parts, complete), range)
            }
            Message::Request { ids } => self.answer_request(sender.address, &ids),
            Message::Records { items } => self.take_records(sender.address, items),
            Message::Clocks { session, mask, low, high, items } => {
                self.compare_clocks(sender.address, session, (mask, low, high), &items)
            }
            Message::PodRequest { wants } => self.answer_pod_request(sender.address, wants),
            Message::Pods { items, answers } => self.take_pods(sender.address, items, answers),
        }
    }

    /// Somebody answered: ask to be taken in, and for all that is known.
    fn welcome(&mut self, sender: Identity) {
        self.seeds.answered(sender.address, &self.config.timing, self.now);
        let known = self.swim.state(sender.id, sender.address);
        let alive = known.is_some_and(|(_, state)| state != foca::State::Down);
        if !alive {
            self.swim.announce(sender, self.now);
            // Where one of the dead lives, there may be more.
            self.next_dial = self.next_dial.min(self.now + Duration::from_millis(100));
        }
        if !self.synced {
            self.start_sync(Some(sender.address));
        }
    }

    /// A node says itself which keys it accepts: its record may be older, or out of reach.
    fn learn_keys(&mut self, from: SocketAddr, keys: &[KeyId]) -> Result<(), Refused> {
        if keys.len() > KEYS_MAX {
            return Err(Refused::BadKeys);
        }
        self.envelopes.note_keys(from, keys, self.now);
        Ok(())
    }

    /// Goes above whatever life of this node the cluster remembers.
    fn learn_own_past(&mut self, from: SocketAddr, view: Option<View>) {
        let Some(view) = view.filter(|view| view.id == self.local.id) else { return };
        let own = self.swim.identity().incarnation;
        if let Some((incarnation, down)) = view.incarnation
            && incarnation < publish::COUNTER_SANE
            && (incarnation > own || (incarnation == own && down))
        {
            self.swim.overtake(incarnation, self.now);
        }
        // What is buried cannot be sent.
        if view.buried
            && let Some(version) = view.version.filter(|version| *version < publish::COUNTER_SANE)
        {
            self.go_above(version);
            // The version that was forgotten is refused, too.
            self.version = self.version.max(version + 1);
        }
        // The record itself is wanted: it may tell of leases that this node has forgotten. Who has lost its memory may have
        // counted as far as that by now.
        let is_news = |version| version > self.version || (self.has_forgotten() && !self.has_held);
        if view.version.is_some_and(is_news) {
            self.send(from, Message::Request { ids: vec![self.local.id] });
        }
    }
}
