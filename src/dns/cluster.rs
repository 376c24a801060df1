//! The cluster's own zones: `cluster.local` and the reverse zones of its addresses. Pure.
//!
//! After the Kubernetes DNS specification 1.1.0; where that is silent, as CoreDNS' `kubernetes` plugin.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnetwork::IpNetwork;

use super::answer::{Answer, server_name, soa};
use super::directory::{Directory, Endpoint, Port, Target, protocol_label, undashed};
use super::place;

/// The version of the specification, as `dns-version` tells it.
const SPECIFICATION: &str = "1.1.0";

/// Which names of the form `10-244-1-7.NAMESPACE.pod` exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodNames {
    /// None.
    Disabled,
    /// All whose label is an address: nobody looks whether the pod is there.
    Insecure,
    /// Those of pods that are there.
    Verified,
}

/// The zones that are made of the cluster's state.
#[derive(Debug, Clone)]
pub struct ClusterZones {
    domain: Name,
    ttl: u32,
    pods: PodNames,
    /// Where this server is by its configuration.
    servers: Vec<IpAddr>,
    /// Whose reverse names are ours, with the reverse zone that contains each.
    reverse: Vec<(IpNetwork, Name)>,
}

/// What the cluster's zones say to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This.
    Answer(Answer),
    /// The name stands for another one, which is asked next; the answer so far has the CNAME.
    Alias(Answer, Name),
    /// The name is not of these zones.
    Foreign,
}

impl ClusterZones {
    /// The zones of `domain` and of the addresses in `ranges`. `ttl` is in seconds.
    pub fn new(
        domain: Name,
        ttl: u32,
        pods: PodNames,
        servers: Vec<IpAddr>,
        ranges: impl IntoIterator<Item = IpNetwork>,
    ) -> Self {
        let reverse = ranges.into_iter().map(|range| (range, reverse_zone(range))).collect();
        Self { domain, ttl, pods, servers, reverse }
    }

    /// The cluster's domain.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// The names of all these zones: the domain, then the reverse zones, each once.
    pub fn zones(&self) -> Vec<Name> {
        let mut zones = vec![self.domain.clone()];
        for (_, zone) in &self.reverse {
            if !zones.contains(zone) {
                zones.push(zone.clone());
            }
        }
        zones
    }

    /// Whether the name is in one of these zones, whatever it stands for.
    pub fn contains(&self, name: &Name) -> bool {
        self.domain.zone_of(name) || self.reverse_zone_of(name).is_some()
    }

    /// Answers a question. `None` for the directory means that the state is not known yet: then nobody is
    /// told that a name does not exist.
    pub fn answer(&self, directory: Option<&Directory>, name: &Name, kind: RecordType) -> Found {
        let forward = self.domain.zone_of(name);
        let reverse = self.reverse_zone_of(name);
        if !forward && reverse.is_none() && !is_reverse(name) {
            return Found::Foreign;
        }
        let Some(directory) = directory else {
            return match forward || reverse.is_some() {
                true => Found::Answer(Answer::failure(ResponseCode::ServFail)),
                false => Found::Foreign,
            };
        };
        if forward {
            let owned: Vec<_> = relative_labels(&self.domain, name);
            let labels: Option<Vec<&str>> = owned.iter().map(Option::as_deref).collect();
            let Some(labels) = labels else {
                return Found::Answer(self.no_name());
            };
            return self.forward(directory, name, &labels, kind);
        }
        self.reverse(directory, name, reverse, kind)
    }

    fn forward(
        &self,
        directory: &Directory,
        name: &Name,
        labels: &[&str],
        kind: RecordType,
    ) -> Found {
        let found = match labels {
            [] => self.apex(directory, name, kind),
            ["dns-version"] => {
                let text = RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]));
                self.only(name, kind, RecordType::TXT, vec![text])
            }
            ["ns", "dns"] => self.addresses(name, kind, self.servers(directory)),
            ["dns" | "svc"] => self.no_data(),
            ["pod"] if self.pods != PodNames::Disabled => self.no_data(),
            [namespace, "svc"] | [namespace, "pod"] if directory.has_namespace(namespace) => {
                match self.pods == PodNames::Disabled && labels.last() == Some(&"pod") {
                    true => self.no_name(),
                    false => self.no_data(),
                }
            }
            [address, namespace, "pod"] => self.pod(directory, name, address, namespace, kind),
            [rest @ .., service, namespace, "svc"] => match directory.service(namespace, service) {
                Some(Target::External(target)) if rest.is_empty() => {
                    return self.external(name, target, kind);
                }
                Some(target) => self.service(name, (service, namespace), target, rest, kind),
                None => self.no_name(),
            },
            _ => self.no_name(),
        };
        Found::Answer(found)
    }

    fn servers(&self, directory: &Directory) -> Vec<IpAddr> {
        place::chosen(directory.servers(), &self.servers)
    }

    fn apex(&self, directory: &Directory, name: &Name, kind: RecordType) -> Answer {
        if kind == RecordType::SOA || kind == RecordType::ANY {
            return Answer::records(vec![soa(&self.domain, self.ttl)]);
        }
        let server = server_name(&self.domain);
        let mut answer = self.only(name, kind, RecordType::NS, vec![RData::NS(NS(server.clone()))]);
        if kind == RecordType::NS {
            answer.additionals = self.glue(&server, self.servers(directory));
        }
        answer
    }

    fn pod(
        &self,
        directory: &Directory,
        name: &Name,
        label: &str,
        namespace: &str,
        kind: RecordType,
    ) -> Answer {
        let exists = |address: &IpAddr| match self.pods {
            PodNames::Disabled => false,
            PodNames::Insecure => directory.has_namespace(namespace),
            PodNames::Verified => directory.is_pod(namespace, *address),
        };
        match undashed(label).filter(exists) {
            Some(address) => self.addresses(name, kind, [address]),
            None => self.no_name(),
        }
    }

    fn external(&self, name: &Name, target: &Name, kind: RecordType) -> Found {
        let alias = Record::from_rdata(name.clone(), self.ttl, RData::CNAME(CNAME(target.clone())));
        let answer = Answer::records(vec![alias]);
        match kind == RecordType::CNAME || kind == RecordType::ANY {
            true => Found::Answer(answer),
            false => Found::Alias(answer, target.clone()),
        }
    }

    fn service(
        &self,
        name: &Name,
        (service, namespace): (&str, &str),
        target: &Target,
        rest: &[&str],
        kind: RecordType,
    ) -> Answer {
        let base = format!("{service}.{namespace}.svc");
        match (target, rest) {
            // An alias has nothing below it.
            (Target::External(_), _) => self.no_name(),
            // A headless service nobody serves does not exist, says the specification.
            (Target::Headless(endpoints), _) if endpoints.is_empty() => self.no_name(),
            (_, []) if kind == RecordType::SRV => self.srv(name, &base, target, |_| true),
            (Target::Cluster { addresses, .. }, []) => {
                self.addresses(name, kind, addresses.iter().copied())
            }
            (Target::Headless(endpoints), []) => {
                self.addresses(name, kind, distinct(endpoints.iter().map(|end| end.address)))
            }
            (_, [port, protocol]) if port.starts_with('_') => {
                let wanted = |offered: &Port| {
                    protocol_label(offered.protocol) == *protocol
                        && !offered.name.is_empty()
                        && port[1..].eq_ignore_ascii_case(&offered.name)
                };
                match has_port(target, wanted) {
                    true if kind == RecordType::SRV => self.srv(name, &base, target, wanted),
                    true => self.no_data(),
                    false => self.no_name(),
                }
            }
            // Nothing is here, but ports are below (RFC 8020).
            (_, [protocol]) if protocol.starts_with('_') => {
                match has_port(target, |port| protocol_label(port.protocol) == *protocol) {
                    true => self.no_data(),
                    false => self.no_name(),
                }
            }
            (Target::Headless(endpoints), [host]) => {
                let named = endpoints.iter().filter(|end| end.label().eq_ignore_ascii_case(host));
                let addresses: Vec<_> = distinct(named.map(|end| end.address));
                match addresses.is_empty() {
                    true => self.no_name(),
                    false => self.addresses(name, kind, addresses),
                }
            }
            (Target::Cluster { .. } | Target::Headless(_), _) => self.no_name(),
        }
    }

    /// SRV records of the ports that are wanted, with the addresses of their targets beside them.
    fn srv(
        &self,
        name: &Name,
        base: &str,
        target: &Target,
        wanted: impl Fn(&Port) -> bool,
    ) -> Answer {
        let mut offers: Vec<(u16, Name)> = Vec::new();
        let mut additionals = Vec::new();
        match target {
            Target::Cluster { addresses, ports } => {
                let host = self.absolute(base);
                additionals = self.glue(&host, addresses.iter().copied());
                offers = ports
                    .iter()
                    .filter(|port| wanted(port))
                    .map(|port| (port.number, host.clone()))
                    .collect();
            }
            Target::Headless(endpoints) => {
                for endpoint in endpoints {
                    let host = self.absolute(&format!("{}.{base}", endpoint.label()));
                    let mut offered = false;
                    for port in endpoint.ports.iter().filter(|port| wanted(port)) {
                        let offer = (port.number, host.clone());
                        offered = true;
                        if !offers.contains(&offer) {
                            offers.push(offer);
                        }
                    }
                    if offered {
                        additionals.extend(self.glue(&host, [endpoint.address]));
                    }
                }
            }
            Target::External(_) => {}
        }
        if offers.is_empty() {
            return self.no_data();
        }
        let weight = u16::try_from(100 / offers.len()).unwrap_or(1).max(1);
        let records = offers.into_iter().map(|(port, host)| {
            let data = RData::SRV(SRV::new(0, weight, port, host));
            Record::from_rdata(name.clone(), self.ttl, data)
        });
        let mut answer = Answer::records(records.collect());
        answer.additionals = additionals;
        answer
    }

    fn reverse(
        &self,
        directory: &Directory,
        name: &Name,
        zone: Option<&Name>,
        kind: RecordType,
    ) -> Found {
        let address = whole_address(name);
        let names = address.map_or(&[][..], |address| directory.names_of(address));
        let negative = |rcode| {
            zone.map_or(Found::Foreign, |zone| {
                Found::Answer(Answer::negative(rcode, soa(zone, self.ttl)))
            })
        };
        if let Some(zone) = zone.filter(|zone| *zone == name) {
            if kind == RecordType::SOA {
                return Found::Answer(Answer::records(vec![soa(zone, self.ttl)]));
            }
            if kind == RecordType::NS {
                let data = RData::NS(NS(server_name(&self.domain)));
                let record = Record::from_rdata(name.clone(), self.ttl, data);
                return Found::Answer(Answer::records(vec![record]));
            }
        }
        if names.is_empty() {
            // Between the zone's top and an address there are names without records.
            return match address.is_some() || !may_lead_to_address(name) {
                true => negative(ResponseCode::NXDomain),
                false => negative(ResponseCode::NoError),
            };
        }
        if kind != RecordType::PTR && kind != RecordType::ANY {
            return negative(ResponseCode::NoError);
        }
        let records = names.iter().map(|target| {
            let data = RData::PTR(PTR(self.absolute(target)));
            Record::from_rdata(name.clone(), self.ttl, data)
        });
        Found::Answer(Answer::records(records.collect()))
    }

    /// The addresses of the asked family; none of it is "no data", never "no name".
    fn addresses(
        &self,
        name: &Name,
        kind: RecordType,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Answer {
        if kind == RecordType::ANY {
            return self.minimal(name);
        }
        let wanted = |address: &IpAddr| match address {
            IpAddr::V4(_) => kind == RecordType::A,
            IpAddr::V6(_) => kind == RecordType::AAAA,
        };
        let records: Vec<_> = addresses
            .into_iter()
            .filter(wanted)
            .map(|address| Record::from_rdata(name.clone(), self.ttl, address_data(address)))
            .collect();
        match records.is_empty() {
            true => self.no_data(),
            false => Answer::records(records),
        }
    }

    /// Records of one type, at a name that has no others.
    fn only(&self, name: &Name, asked: RecordType, has: RecordType, data: Vec<RData>) -> Answer {
        if asked == RecordType::ANY {
            return self.minimal(name);
        }
        if asked != has {
            return self.no_data();
        }
        let records = data.into_iter();
        let record = |data| Record::from_rdata(name.clone(), self.ttl, data);
        Answer::records(records.map(record).collect())
    }

    /// The answer to ANY at a name that exists (RFC 8482 §4.2).
    fn minimal(&self, name: &Name) -> Answer {
        let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
        Answer::records(vec![Record::from_rdata(name.clone(), self.ttl, data)])
    }

    fn glue(&self, host: &Name, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
        let record = |address| Record::from_rdata(host.clone(), self.ttl, address_data(address));
        addresses.into_iter().map(record).collect()
    }

    fn no_data(&self) -> Answer {
        Answer::negative(ResponseCode::NoError, soa(&self.domain, self.ttl))
    }

    fn no_name(&self) -> Answer {
        Answer::negative(ResponseCode::NXDomain, soa(&self.domain, self.ttl))
    }

    /// The full name of one that is relative to the domain. Kubernetes' names are short enough.
    fn absolute(&self, relative: &str) -> Name {
        Name::from_ascii(relative)
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_too_long| self.domain.clone())
    }

    fn reverse_zone_of(&self, name: &Name) -> Option<&Name> {
        if !is_reverse(name) {
            return None;
        }
        let inside = |range: &IpNetwork| match whole_address(name) {
            Some(address) => range.contains(address),
            None => true,
        };
        let zone = self.reverse.iter().find(|(range, zone)| zone.zone_of(name) && inside(range));
        zone.map(|(_, zone)| zone)
    }
}

fn has_port(target: &Target, wanted: impl Fn(&Port) -> bool) -> bool {
    match target {
        Target::Cluster { ports, .. } => ports.iter().any(wanted),
        Target::Headless(endpoints) => {
            endpoints.iter().flat_map(|end: &Endpoint| &end.ports).any(wanted)
        }
        Target::External(_) => false,
    }
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut seen = std::collections::HashSet::new();
    addresses.filter(|address| seen.insert(*address)).collect()
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// The labels in front of the zone's name, in lower case; `None` for one that is not text.
fn relative_labels(zone: &Name, name: &Name) -> Vec<Option<String>> {
    let count = usize::from(name.num_labels()).saturating_sub(usize::from(zone.num_labels()));
    let text = |label: &[u8]| String::from_utf8(label.to_ascii_lowercase()).ok();
    name.iter().take(count).map(text).collect()
}

fn is_reverse(name: &Name) -> bool {
    let mut labels = name.iter().rev();
    let top = labels.next().is_some_and(|label| label.eq_ignore_ascii_case(b"arpa"));
    top && labels.next().is_some_and(|label| {
        label.eq_ignore_ascii_case(b"in-addr") || label.eq_ignore_ascii_case(b"ip6")
    })
}

/// Whether a reverse name is the beginning of an address: nothing is below an address, or beside one.
fn may_lead_to_address(name: &Name) -> bool {
    name.parse_arpa_name().is_ok()
}

/// The address that a reverse name spells out completely.
fn whole_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// The smallest reverse zone that contains the whole range: cut at bytes (IPv4) or half bytes (IPv6).
fn reverse_zone(range: IpNetwork) -> Name {
    let labels: Vec<String> = match range {
        IpNetwork::V4(v4) => {
            let bytes = v4.network().octets();
            bytes.iter().take(usize::from(v4.prefix() / 8)).map(ToString::to_string).collect()
        }
        IpNetwork::V6(v6) => {
            let bytes = v6.network().octets();
            let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            digits.take(usize::from(v6.prefix() / 4)).map(|digit| format!("{digit:x}")).collect()
        }
    };
    let top = if range.is_ipv4() { "in-addr.arpa." } else { "ip6.arpa." };
    let text: String = labels.iter().rev().map(|label| format!("{label}.")).collect();
    Name::from_ascii(text + top).unwrap_or_else(|_never| Name::root())
}

#[cfg(test)]
#[path = "tests/cluster.rs"]
mod tests;
