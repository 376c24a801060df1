//! What the name server tells about itself and its answers, as `weft dns -o json` shows it.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Record;
use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::resolver::Resolver;
use super::stats::{Part, code_name};

/// The name server of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// The cluster's domain.
    pub domain: String,
    /// Where pods find it: at the Service `kube-system/kube-dns` where there is one, else where it is configured.
    pub addresses: Vec<IpAddr>,
    /// Whether the state of the cluster is known; until then its names are answered with SERVFAIL.
    pub synced: bool,
    /// Services that have a name.
    pub services: usize,
    /// Pods that are known by their addresses.
    pub pods: usize,
    /// Answers of other servers that are kept.
    pub cached: usize,
    /// The other servers.
    pub upstreams: Vec<UpstreamStatus>,
    /// Responses so far, by zone and code.
    pub responses: Vec<ResponseCount>,
    /// Responses by how long they took: for each bound of [`super::stats::LATENCY_BOUNDS_US`], and for what
    /// took longer.
    pub latency: Vec<u64>,
    /// The sum of all that, in microseconds.
    pub latency_sum_us: u64,
    /// Other totals, by name.
    pub totals: Vec<(String, u64)>,
}

/// A server that is asked for names outside of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// For which zone; `.` for all.
    pub zone: String,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it answers.
    pub healthy: bool,
    /// Whether it leads back to this node, and is therefore not asked.
    pub looping: bool,
}

/// Responses of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseCount {
    /// The zone that they were about; `.` for all names that are in no other, `none` for what could not be served.
    pub zone: String,
    /// What the zone is: `cluster`, `static`, `forward` or `none`.
    pub part: String,
    /// Their code.
    pub rcode: String,
    /// How many.
    pub count: u64,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsAnswer {
    /// How it went: `NOERROR`, `NXDOMAIN`, `SERVFAIL`.
    pub rcode: String,
    /// Whether this server owns the zone.
    pub authoritative: bool,
    /// Who knows: the cluster, the configuration, or other servers.
    pub part: Part,
    /// The answer section.
    pub answer: Vec<DnsRecord>,
    /// The authority section.
    pub authority: Vec<DnsRecord>,
    /// The additional section.
    pub additional: Vec<DnsRecord>,
}

/// A record, as in a zone file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// Its name.
    pub name: String,
    /// For how long it may be kept, in seconds.
    pub ttl: u32,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its data.
    pub data: String,
}

impl DnsStatus {
    /// The state of a resolver that answers at these addresses.
    pub fn of(resolver: &Resolver, config: &conf::DnsConfig, addresses: &[IpAddr]) -> Self {
        let totals = resolver.stats().totals();
        let known = resolver.known();
        let (services, pods) = known.unwrap_or_default();
        let upstreams = resolver.upstreams().into_iter().map(|server| UpstreamStatus {
            zone: server.zone.to_ascii(),
            address: server.address,
            healthy: server.healthy,
            looping: server.looping,
        });
        let responses = totals.responses.into_iter().map(|(zone, rcode, count)| ResponseCount {
            zone: zone.name,
            part: zone.part.name().to_owned(),
            rcode,
            count,
        });
        let others = totals.others.into_iter().map(|(name, total)| (name.to_owned(), total));
        Self {
            domain: config.domain.to_string(),
            addresses: addresses.to_vec(),
            synced: known.is_some(),
            services,
            pods,
            cached: resolver.cached(),
            upstreams: upstreams.collect(),
            responses: responses.collect(),
            latency: totals.latency,
            latency_sum_us: totals.latency_sum_us,
            totals: others.collect(),
        }
    }
}

impl DnsAnswer {
    /// An answer to be shown.
    pub fn new(answer: &Answer, part: Part) -> Self {
        let records = |list: &[Record]| list.iter().map(DnsRecord::from).collect();
        Self {
            rcode: code_name(answer.rcode),
            authoritative: answer.authoritative,
            part,
            answer: records(&answer.answers),
            authority: records(&answer.authorities),
            additional: records(&answer.additionals),
        }
    }
}

impl From<&Record> for DnsRecord {
    fn from(record: &Record) -> Self {
        Self {
            name: record.name.to_ascii(),
            ttl: record.ttl,
            kind: record.record_type().to_string(),
            data: record.data.to_string(),
        }
    }
}
