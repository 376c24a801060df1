//! An answer, before it becomes a message.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record};

/// What is said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How it went (RFC 1035 §4.1.1).
    pub rcode: ResponseCode,
    /// Whether this server owns the zone (the AA bit).
    pub authoritative: bool,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section: the zone's SOA with negative answers (RFC 2308).
    pub authorities: Vec<Record>,
    /// The additional section, without EDNS.
    pub additionals: Vec<Record>,
}

impl Answer {
    /// Records of a zone of this server.
    pub fn records(answers: Vec<Record>) -> Self {
        Self {
            rcode: ResponseCode::NoError,
            authoritative: true,
            answers,
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    /// "There is no such record" (`NoError`) or "no such name" (`NXDomain`) in the zone with this SOA.
    pub fn negative(rcode: ResponseCode, soa: Record) -> Self {
        Self { rcode, authorities: vec![soa], ..Self::records(Vec::new()) }
    }

    /// Nothing but a code.
    pub fn failure(rcode: ResponseCode) -> Self {
        Self { rcode, authoritative: false, ..Self::records(Vec::new()) }
    }

    /// Whether the name exists, with or without records of the type.
    pub fn exists(&self) -> bool {
        self.rcode == ResponseCode::NoError
    }
}

/// The name of this server in a zone.
pub fn server_name(zone: &Name) -> Name {
    let server = zone.prepend_label("dns").and_then(|name| name.prepend_label("ns"));
    server.unwrap_or_else(|_too_long| zone.clone())
}

/// The SOA record of a zone that is made up as it is asked for.
///
/// Its serial says nothing, since nobody transfers the zone; its minimum is how long a negative answer may
/// be kept (RFC 2308 §5).
pub fn soa(zone: &Name, ttl: u32) -> Record {
    let person = zone.prepend_label("hostmaster").unwrap_or_else(|_too_long| zone.clone());
    let data = SOA::new(server_name(zone), person, 1, 7200, 1800, 86_400, ttl);
    Record::from_rdata(zone.clone(), ttl, RData::SOA(data))
}
