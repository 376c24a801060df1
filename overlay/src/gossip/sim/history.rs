//! What happened in a run, in words: who said what to whom, who won and lost what, and what was done to
//! them.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::super::Event;
use super::super::codec::{self, Datagram, Message, RecordItem, SwimCodec, View};
use super::super::pod_store::Delta;
use super::super::record::Record;

/// What happened, in its order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct History {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    at: Duration,
    is_talk: bool,
    text: String,
}

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Arrives(usize),
    Lost,
    /// Nobody is there, or nothing gets there.
    CutOff,
}

impl History {
    /// Notes what the script does, or what was found.
    pub(super) fn note(&mut self, at: Duration, text: String) {
        self.lines.push(Line { at, is_talk: false, text });
    }

    pub(super) fn event(&mut self, at: Duration, name: &str, event: &Event) {
        self.note(at, format!("  {name}: {event:?}"));
    }

    pub(super) fn datagram(
        &mut self,
        at: Duration,
        from: &str,
        to: &str,
        fate: Fate,
        said: Option<&[u8]>,
    ) {
        let arrow = match fate {
            Fate::Arrives(_) => "──►",
            Fate::Lost => "─✗ (lost)",
            Fate::CutOff => "─✗ (nobody reached)",
        };
        let text = format!("    {from} {arrow} {to}: {}", describe(said));
        self.lines.push(Line { at, is_talk: true, text });
    }

    /// Writes it down, with only those datagrams that were on their way in the time of `talk` before the
    /// end.
    pub fn render(&self, talk: Duration) -> String {
        let end = self.lines.last().map_or(Duration::ZERO, |line| line.at);
        let mut text = String::new();
        for line in
            self.lines.iter().filter(|line| !line.is_talk || line.at.saturating_add(talk) >= end)
        {
            // Memory takes whatever is written.
            let _written = writeln!(text, "{:>12.6}  {}", line.at.as_secs_f64(), line.text);
        }
        text
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Duration::MAX))
    }
}

fn describe(said: Option<&[u8]>) -> String {
    let Some(said) = said else { return "something that cannot be opened".to_owned() };
    if said.is_empty() {
        return "who lives, and that it does".to_owned();
    }
    match codec::decode(said) {
        Ok(Datagram::Swim(body)) => swim(body),
        Ok(Datagram::Message(envelope)) => {
            format!("{} (clock {})", message(&envelope.message), envelope.clock)
        }
        Err(reason) => format!("{} bytes, refused as {}", said.len(), reason.name()),
    }
}

fn swim(body: &[u8]) -> String {
    let Ok((header, header_len)) = SwimCodec::peek(body) else {
        return format!("{} bytes for the failure detector that do not decode", body.len());
    };
    let mut text = match header.message {
        foca::Message::Ping(number) => format!("ping {number}"),
        foca::Message::Ack(number) => format!("ack {number}"),
        foca::Message::PingReq { target, probe_number } => {
            format!("please ping {} ({probe_number})", target.id.short())
        }
        foca::Message::IndirectPing { origin, probe_number } => {
            format!("ping for {} ({probe_number})", origin.id.short())
        }
        foca::Message::IndirectAck { target, probe_number } => {
            format!("ack for {} ({probe_number})", target.id.short())
        }
        foca::Message::ForwardedAck { origin, probe_number } => {
            format!("ack of {} ({probe_number})", origin.id.short())
        }
        foca::Message::Announce => "take me in".to_owned(),
        foca::Message::Feed => "these are here".to_owned(),
        foca::Message::Gossip => "news".to_owned(),
        foca::Message::Broadcast => "broadcast".to_owned(),
        foca::Message::TurnUndead => "you are dead".to_owned(),
    };
    let _written = write!(text, " [life {}]", header.src.incarnation);
    for member in SwimCodec::members(body.get(header_len..).unwrap_or_default()) {
        let (id, life) = (member.id().id.short(), member.id().incarnation);
        let _written = write!(text, "; {id} {:?} [life {life}]", member.state());
    }
    text
}

fn message(message: &Message) -> String {
    match message {
        Message::Hello { you, .. } => format!("hello{}", view(you.as_ref())),
        Message::Welcome { you, .. } => format!("welcome{}", view(you.as_ref())),
        Message::Digest { session, .. } => format!("my sums ({session:08x})"),
        Message::InSync { session } => format!("mine are the same ({session:08x})"),
        Message::Versions { session, part, parts, items, .. } => {
            let items: Vec<_> =
                items.iter().map(|item| format!("{} v{}", item.id.short(), item.version)).collect();
            format!("mine, {}/{parts} ({session:08x}): {}", part + 1, items.join(", "))
        }
        Message::Request { ids } => {
            let ids: Vec<_> = ids.iter().map(|id| id.short()).collect();
            format!("send me {}", ids.join(", "))
        }
        Message::Records { items } => {
            let items: Vec<_> = items.iter().map(item).collect();
            format!("records: {}", items.join("; "))
        }
        Message::Clocks { session, items, .. } => {
            let items: Vec<_> = items
                .iter()
                .map(|item| format!("{} at {}", item.id.short(), item.clock.change))
                .collect();
            format!("of pods I know ({session:08x}): {}", items.join(", "))
        }
        Message::PodRequest { wants } => {
            let wants: Vec<_> = wants
                .iter()
                .map(|want| format!("{} after {}", want.id.short(), want.clock.change))
                .collect();
            format!("send me the pods of {}", wants.join(", "))
        }
        Message::Pods { items, answers } => {
            let items: Vec<_> = items.iter().map(delta).collect();
            format!("pods ({answers:?}): {}", items.join("; "))
        }
    }
}

fn view(view: Option<&View>) -> String {
    let Some(View { id, incarnation, version, buried }) = view else { return String::new() };
    let life = match incarnation {
        Some((life, true)) => format!("dead in life {life}"),
        Some((life, false)) => format!("in life {life}"),
        None => "unknown".to_owned(),
    };
    let forgotten = if *buried { " (forgotten)" } else { "" };
    let record =
        version.map_or_else(String::new, |version| format!(", record v{version}{forgotten}"));
    format!(", you are {} {life}{record}", id.short())
}

fn item(item: &RecordItem) -> String {
    let dead = item.dead_for_s.map_or_else(String::new, |age| format!(" dead for {age} s"));
    format!("{}{dead}", record(&item.record))
}

fn delta(delta: &Delta) -> String {
    let changes = delta.changes.iter().map(|change| match &change.pod {
        Some(item) => format!("+{}", item.pod.name),
        None => format!("-{}", change.key),
    });
    let changes: Vec<_> = changes.collect();
    format!("{} {}..{} {}", delta.id.short(), delta.base, delta.upto, changes.join(" "))
}

fn record(record: &Record) -> String {
    let mut text = format!("{} v{} [life {}]", record.name, record.version, record.incarnation);
    if record.left {
        text.push_str(" left");
    }
    for lease in &record.leases {
        let claim = if lease.held { "holds" } else { "claims" };
        let (network, len, epoch) = (lease.network, lease.prefix_len, lease.epoch);
        let _written = write!(text, " {claim} {network}/{len} e{epoch}");
    }
    text
}
