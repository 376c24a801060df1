//! Requests and responses as bytes. Pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use super::answer::Answer;

/// Longest response over UDP, in bytes, whatever the client says it takes: what passes everywhere without
/// being fragmented (the DNS flag day of 2020).
pub const UDP_MAX: u16 = 1232;

/// What a client without EDNS takes over UDP (RFC 1035 §4.2.1).
const UDP_PLAIN: u16 = 512;

const HEADER_LEN: usize = 12;

/// A question that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it.
    pub id: u16,
    /// The name, in the client's own letters (RFC 4343; some clients use their case as a nonce).
    pub name: Name,
    /// The type of the records.
    pub kind: RecordType,
    /// Whether the client wants recursion, which is told back.
    pub recursion_desired: bool,
    /// Whether the client leaves DNSSEC's checks to itself.
    pub checking_disabled: bool,
    /// What the client takes, when it speaks EDNS (RFC 6891).
    pub edns: Option<ClientEdns>,
}

/// What an EDNS client says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEdns {
    /// Longest UDP payload that it takes, in bytes.
    pub payload: u16,
    /// Whether it wants DNSSEC's records.
    pub dnssec_ok: bool,
}

/// Why there is no [`Request`] in some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswerable {
    /// Nobody is waiting for an answer: it is too short for a header, or itself a response.
    Silent,
    /// The client is told this.
    Refused(ResponseCode, Vec<u8>),
}

/// Reads a request.
///
/// # Errors
/// When it is none, or one of a kind that this server does not serve.
pub fn parse(bytes: &[u8]) -> Result<Request, Unanswerable> {
    let Some([high, low, flags, ..]) = bytes.get(..HEADER_LEN) else {
        return Err(Unanswerable::Silent);
    };
    if flags & 0x80 != 0 {
        return Err(Unanswerable::Silent);
    }
    let id = u16::from_be_bytes([*high, *low]);
    let op_code = OpCode::from_u8((flags >> 3) & 15);
    let refuse = |code, edns: Option<&Edns>, query: Option<Query>| {
        let mut message = Message::error_msg(id, op_code, code);
        message.metadata.recursion_desired = flags & 1 != 0;
        if edns.is_some() {
            message.set_edns(own_edns(false));
        }
        message.queries.extend(query);
        // A header and what was read before always fit.
        Err(Unanswerable::Refused(code, message.to_vec().unwrap_or_default()))
    };
    if op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp, None, None);
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        return refuse(ResponseCode::FormErr, None, None);
    };
    let edns = message.edns.take();
    let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
        return refuse(ResponseCode::FormErr, edns.as_ref(), None);
    };
    if edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(ResponseCode::BADVERS, edns.as_ref(), Some(query));
    }
    let transfer = [RecordType::AXFR, RecordType::IXFR].contains(&query.query_type);
    if query.query_class != DNSClass::IN || transfer {
        return refuse(ResponseCode::Refused, edns.as_ref(), Some(query));
    }
    let mut name = query.name;
    name.set_fqdn(true);
    Ok(Request {
        id,
        name,
        kind: query.query_type,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns: edns.map(|edns| ClientEdns {
            payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        }),
    })
}

/// Writes the response to a request that came over UDP: as much of the answer as the client takes, with
/// the TC bit when it is not all of it.
pub fn respond_udp(request: &Request, answer: &Answer) -> Vec<u8> {
    let taken = request.edns.map_or(UDP_PLAIN, |edns| edns.payload.clamp(UDP_PLAIN, UDP_MAX));
    respond(request, answer, usize::from(taken))
}

/// Writes the response to a request that came over TCP, without the length in front.
pub fn respond_tcp(request: &Request, answer: &Answer) -> Vec<u8> {
    respond(request, answer, usize::from(u16::MAX))
}

fn respond(request: &Request, answer: &Answer, limit: usize) -> Vec<u8> {
    let whole = encode(request, answer, answer.answers.len(), true, false);
    if whole.as_ref().is_some_and(|bytes| bytes.len() <= limit) {
        return whole.unwrap_or_default();
    }
    // What is only a service goes first: it may be left out without a word (RFC 2181 §9).
    let fits = |answers: usize, truncated: bool| {
        let bytes = encode(request, answer, answers, false, truncated);
        bytes.filter(|bytes| bytes.len() <= limit)
    };
    if let Some(bytes) = fits(answer.answers.len(), false) {
        return bytes;
    }
    // Clients that do not come back over TCP live on the part that they get: as much as there is room for.
    let (mut kept, mut over) = (0, answer.answers.len().min(limit / RECORD_MIN + 1));
    while over - kept > 1 {
        let middle = usize::midpoint(kept, over);
        match fits(middle, true) {
            Some(_) => kept = middle,
            None => over = middle,
        }
    }
    fits(kept, true).unwrap_or_else(|| servfail(request))
}

/// Fewest bytes of a record: a compressed name, type, class, TTL, length and an IPv4 address.
const RECORD_MIN: usize = 16;

/// The response with this many records of the answer; `None` if it is longer than any message can be.
fn encode(
    request: &Request,
    answer: &Answer,
    answers: usize,
    extras: bool,
    truncated: bool,
) -> Option<Vec<u8>> {
    let mut message = Message::new(request.id, MessageType::Response, OpCode::Query);
    let metadata = &mut message.metadata;
    metadata.response_code = answer.rcode;
    metadata.authoritative = answer.authoritative;
    metadata.recursion_desired = request.recursion_desired;
    metadata.recursion_available = true;
    metadata.checking_disabled = request.checking_disabled;
    metadata.truncation = truncated;
    message.add_query(Query::query(request.name.clone(), request.kind));
    message.answers.extend(answer.answers.iter().take(answers).cloned());
    message.authorities.extend_from_slice(&answer.authorities);
    if extras {
        message.additionals.extend_from_slice(&answer.additionals);
    }
    if let Some(edns) = request.edns {
        message.set_edns(own_edns(edns.dnssec_ok));
    }
    message.to_vec().ok()
}

fn servfail(request: &Request) -> Vec<u8> {
    let failure = Answer::failure(ResponseCode::ServFail);
    encode(request, &failure, 0, false, false).unwrap_or_default()
}

fn own_edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MAX).set_dnssec_ok(dnssec_ok);
    edns
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};
    use proptest::prelude::*;

    use super::*;

    fn request(name: &str, edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        if let Some(payload) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn answer(name: &str, count: u32) -> Answer {
        let name = Name::from_ascii(name).unwrap();
        let record = |ix: u32| {
            let address = Ipv4Addr::from_bits(0x0af4_0000 + ix);
            Record::from_rdata(name.clone(), 5, RData::A(A(address)))
        };
        Answer::records((0..count).map(record).collect())
    }

    #[test]
    fn the_question_comes_back_letter_by_letter() {
        let request = parse(&request("WeB.deFAULT.svc.Cluster.Local.", None)).unwrap();
        let bytes = respond_udp(&request, &answer("WeB.deFAULT.svc.Cluster.Local.", 1));
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.id, 0x1234);
        assert_eq!(message.queries[0].name.to_ascii(), "WeB.deFAULT.svc.Cluster.Local.");
        assert_eq!(message.answers[0].name.to_ascii(), "WeB.deFAULT.svc.Cluster.Local.");
        assert!(message.metadata.authoritative && message.metadata.recursion_available);
        assert!(message.edns.is_none());
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        for (edns, limit) in [(None, 512), (Some(400), 512), (Some(1000), 1000), (Some(9000), 1232)]
        {
            let request = parse(&request("all.default.svc.cluster.local.", edns)).unwrap();
            let all = answer("all.default.svc.cluster.local.", 300);
            let bytes = respond_udp(&request, &all);
            assert!(bytes.len() <= limit, "{} > {limit}", bytes.len());
            let message = Message::from_vec(&bytes).unwrap();
            assert!(message.metadata.truncation);
            assert!(message.answers.len() > 20, "{}", message.answers.len());
            let whole = Message::from_vec(&respond_tcp(&request, &all)).unwrap();
            assert_eq!(whole.answers.len(), 300);
            assert!(!whole.metadata.truncation);
        }
    }

    #[test]
    fn extras_are_left_out_before_anything_is_cut() {
        let request = parse(&request("a.", None)).unwrap();
        let crowded = Answer { additionals: answer("b.", 100).answers, ..answer("a.", 2) };
        let message = Message::from_vec(&respond_udp(&request, &crowded)).unwrap();
        assert!(!message.metadata.truncation);
        assert_eq!((message.answers.len(), message.additionals.len()), (2, 0));
    }

    #[test]
    fn an_answer_longer_than_any_message_is_cut_over_tcp_too() {
        let request = parse(&request("many.", None)).unwrap();
        let bytes = respond_tcp(&request, &answer("many.", 6000));
        assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
    }

    #[test]
    fn what_cannot_be_served_is_told_by_its_code() {
        let code = |bytes: &[u8]| match parse(bytes).unwrap_err() {
            Unanswerable::Refused(code, reply) => {
                let message = Message::from_vec(&reply).unwrap();
                assert_eq!(message.metadata.id, 0x1234);
                code
            }
            Unanswerable::Silent => panic!("no answer"),
        };
        let good = request("a.", None);
        let mut update = good.clone();
        update[2] |= 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut cut = good.clone();
        cut.truncate(14);
        assert_eq!(code(&cut), ResponseCode::FormErr);
        let mut chaos = good.clone();
        let end = chaos.len();
        chaos[end - 1] = 3;
        assert_eq!(code(&chaos), ResponseCode::Refused);
        let mut transfer = good.clone();
        transfer[end - 3] = 252;
        assert_eq!(code(&transfer), ResponseCode::Refused);
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(parse(&response), Err(Unanswerable::Silent));
        assert_eq!(parse(&good[..11]), Err(Unanswerable::Silent));
        let mut version = request("a.", Some(1232));
        let at = version.len() - 5;
        version[at] = 1;
        assert_eq!(code(&version), ResponseCode::BADVERS);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(request) = parse(&bytes) {
                prop_assert!(respond_udp(&request, &answer("a.", 40)).len() <= 1232);
            }
        }
    }
}
