//! The `[dns]` section as types that cannot hold a wrong value.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::txt::Parser;
use serde::{Deserialize, Serialize};

use crate::node::as_text;

/// The `[dns]` section: the name server that pods ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Whether there is one on this node.
    pub enabled: bool,
    /// The cluster's domain.
    pub domain: DomainName,
    /// Where pods find it: at most one address per family.
    pub addresses: Vec<IpAddr>,
    /// How long pods may keep names of the cluster, in seconds.
    pub ttl_s: u32,
    /// Which names made of pods' addresses exist.
    pub pods: PodRecords,
    /// Whether the server walks a pod's search path itself.
    pub autopath: bool,
    /// Who is asked for all other names; empty stands for those in `resolv_conf`.
    pub upstreams: Vec<Upstream>,
    /// Where the node's own name servers and search domains are.
    pub resolv_conf: PathBuf,
    /// Zones that other servers are asked for.
    pub stubs: Vec<Stub>,
    /// Zones that this server has alone: what is not in `records` does not exist.
    pub zones: Vec<DomainName>,
    /// Records of its own.
    pub records: Vec<StaticRecord>,
    /// Most answers of other servers that are kept.
    pub cache_entries: u32,
    /// For how long an answer that has ended is told when no server answers, in seconds.
    pub serve_stale_s: u32,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            domain: DomainName(
                Name::from_ascii("cluster.local.").unwrap_or_else(|_never| Name::root()),
            ),
            addresses: vec![IpAddr::from([10, 96, 0, 10])],
            ttl_s: 5,
            pods: PodRecords::Insecure,
            autopath: true,
            upstreams: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            stubs: Vec::new(),
            zones: Vec::new(),
            records: Vec::new(),
            cache_entries: 10_000,
            serve_stale_s: 3600,
        }
    }
}

/// Which names of the form `10-244-1-7.NAMESPACE.pod.DOMAIN` exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodRecords {
    /// None.
    Disabled,
    /// Those of all addresses, in namespaces that exist.
    Insecure,
    /// Those of pods that exist.
    Verified,
}

/// A domain's name, without or with the dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(Name);

impl DomainName {
    /// The name, absolute.
    pub fn name(&self) -> &Name {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let short = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| !label.is_empty() && label.bytes().all(good);
        if !short.split('.').all(label) {
            return Err("a domain is letters, digits, - and _, with dots between its labels".into());
        }
        let mut name = Name::from_ascii(short).map_err(|error| error.to_string())?.to_lowercase();
        name.set_fqdn(true);
        Ok(Self(name))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_ascii().trim_end_matches('.'))
    }
}

/// A name server: `address`, `address:port` or `[v6]:port`; without a port it is 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream(SocketAddr);

impl Upstream {
    /// Where it listens.
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53));
        let address = match plain {
            Ok(address) => address,
            Err(_) => text.parse().map_err(|_| "a name server is an address or address:port")?,
        };
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err("nothing can be asked there".into());
        }
        Ok(Self(address))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            53 => self.0.ip().fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

/// A zone and the servers that are asked for it: `corp.example=10.0.0.53,10.0.0.54:5353`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stub {
    /// The zone.
    pub zone: DomainName,
    /// Its servers, at least one.
    pub servers: Vec<Upstream>,
}

impl FromStr for Stub {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (zone, servers) = text.split_once('=').ok_or("a stub is ZONE=SERVER[,SERVER...]")?;
        let servers: Result<Vec<_>, _> = servers.split(',').map(|one| one.trim().parse()).collect();
        Ok(Self { zone: zone.trim().parse()?, servers: servers? })
    }
}

impl fmt::Display for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(ToString::to_string).collect();
        write!(f, "{}={}", self.zone, servers.join(","))
    }
}

/// A record as a line of a zone file (RFC 1035 §5.1): `NAME [TTL] TYPE DATA`, the name being absolute with or
/// without the dot at its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StaticRecord {
    text: String,
    record: Record,
}

impl StaticRecord {
    /// The record.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

impl PartialEq for StaticRecord {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for StaticRecord {}

/// TTL of a record that has none of its own, in seconds.
const RECORD_TTL: u32 = 60;

impl FromStr for StaticRecord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Directives could make it read files.
        if text.starts_with(['$', ' ', '\t']) || text.contains(['\n', '\r']) {
            return Err("a record is one line: NAME [TTL] TYPE DATA".into());
        }
        let zone = format!("$TTL {RECORD_TTL}\n{text}\n");
        let (_, sets) = Parser::new(zone, None, Some(Name::root()))
            .parse()
            .map_err(|error| format!("it is no record, NAME [TTL] TYPE DATA: {error}"))?;
        let mut records = sets.values().flat_map(|set| set.records_without_rrsigs());
        match (records.next(), records.next()) {
            (Some(record), None) => Ok(Self { text: text.into(), record: record.clone() }),
            _ => Err("a record is NAME [TTL] TYPE DATA".into()),
        }
    }
}

impl fmt::Display for StaticRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

as_text!(DomainName, Upstream, Stub, StaticRecord);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let stub: Stub = "Corp.Example. = 10.0.0.53, [fd00::53]:5353".parse().unwrap();
        assert_eq!(stub.to_string(), "corp.example=10.0.0.53,[fd00::53]:5353");
        assert_eq!(stub.to_string().parse::<Stub>().unwrap(), stub);
        let record: StaticRecord = "db.lab.example. 30 A 192.0.2.7".parse().unwrap();
        assert_eq!(record.record().ttl, 30);
        assert_eq!(record.record().name.to_ascii(), "db.lab.example.");
        for text in [
            "db.lab.example A 192.0.2.7",
            "lab.example. MX 10 mail.lab.example.",
            "_x._tcp.lab.example. SRV 0 5 5060 sip.lab.example.",
            "*.lab.example. CNAME www.lab.example.",
            "t.lab.example. TXT \"a b\" c",
            "x.lab.example. AAAA fd00::1",
        ] {
            let record: StaticRecord = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert!(record.record().name.is_fqdn(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["", "a", "=10.0.0.1", "a=", "a=b", "a=10.0.0.1:0", "a b=10.0.0.1"] {
            assert!(text.parse::<Stub>().is_err(), "{text}");
        }
        for text in ["", "db", "db A", "db A x", "$INCLUDE /etc/passwd", "a A 1.2.3.4\nb A 1.2.3.4"]
        {
            assert!(text.parse::<StaticRecord>().is_err(), "{text}");
        }
        for text in ["", ".", "a..b", "a b", &"a".repeat(64)] {
            assert!(text.parse::<DomainName>().is_err(), "{text}");
        }
        for text in ["0.0.0.0", "224.0.0.1", "10.0.0.1:0", "dns.example"] {
            assert!(text.parse::<Upstream>().is_err(), "{text}");
        }
    }
}
