//! What people expect of their policies, in a file, checked against them.
//!
//! ```yaml
//! manifests: ../manifests          # from here; --manifests says otherwise
//! checks:
//! - {from: shop/web, to: shop/api, port: 8080, reachable: true}
//! - {from: [shop/*, "*/probe"], to: shop/db, port: postgres, reachable: false}
//! - {from: 203.0.113.9, to: shop/web, port: 53, protocol: UDP, reachable: true}
//! - {from: shop/web, to: 192.0.2.1, protocol: ICMP, reachable: true}
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use conf::cluster::PodView;
use serde::{Deserialize, Serialize};
use vswitch::policy::Traffic;
use vswitch::service::Protocol;

use super::matrix::{Probe, ProbePort};
use super::{Evaluator, addresses_of};

/// Longest file of expectations.
const FILE_LEN_MAX: usize = 1 << 20;

/// Most failures that are told.
const FAILURES_MAX: usize = 1000;

/// A file of expectations.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// The directory of manifests, from where the file is.
    #[serde(default)]
    pub manifests: Option<PathBuf>,
    /// What is expected.
    pub checks: Vec<Check>,
}

/// One expectation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What it is about, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Who sends: `namespace/pod`, with `*` for any of either, or an address.
    pub from: OneOrMore<String>,
    /// Who is sent to, likewise.
    pub to: OneOrMore<String>,
    /// Ports by number or name.
    #[serde(default)]
    pub port: Option<OneOrMore<Port>>,
    /// The protocol. ICMP stands for everything that has no ports.
    #[serde(default)]
    pub protocol: CheckProtocol,
    /// Whether all of these senders reach all of these receivers, or none does.
    pub reachable: bool,
}

/// One, or a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore<T> {
    /// One.
    One(T),
    /// A list.
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// A port by its number or its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Port {
    /// The number.
    Number(u16),
    /// The name that the receiver's containers have for it.
    Name(String),
}

/// A protocol that can be expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// What has no ports.
    Icmp,
}

/// What came of all checks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Checks that hold.
    pub passed: usize,
    /// Checks that do not.
    pub failed: usize,
    /// What does not hold.
    pub failures: Vec<Failure>,
}

/// A sender and a receiver for whom a check does not hold, or a check that is about nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The check's place in the file, from 0.
    pub check: usize,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who sends.
    pub from: String,
    /// Who is sent to.
    pub to: String,
    /// What is sent: `TCP 80`.
    pub what: String,
    /// What was expected.
    pub expected: bool,
    /// Why it is not so.
    pub reason: String,
}

/// Reads a file of expectations.
///
/// # Errors
/// What is wrong, with the line where that is known.
pub fn parse(text: &str) -> Result<Expectations, String> {
    if text.len() > FILE_LEN_MAX {
        return Err(format!("the file is longer than {FILE_LEN_MAX} bytes: divide it"));
    }
    let found: Expectations = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if found.checks.is_empty() {
        return Err("checks: is empty: a test that expects nothing cannot fail".to_owned());
    }
    for (ix, check) in found.checks.iter().enumerate() {
        let is_icmp = check.protocol == CheckProtocol::Icmp;
        let refuse = |what: &str| Err(format!("checks[{ix}]: {what}"));
        match &check.port {
            Some(_) if is_icmp => return refuse("port: ICMP has no ports"),
            Some(ports) if ports.as_slice().is_empty() => return refuse("port: is empty"),
            None if !is_icmp => {
                return refuse("port: is missing; for what has none write `protocol: ICMP`");
            }
            Some(_) | None => {}
        }
        if check.from.as_slice().is_empty() || check.to.as_slice().is_empty() {
            return refuse("from, to: an empty list is about nobody");
        }
    }
    Ok(found)
}

/// A sender or receiver.
enum End<'s> {
    Pod(&'s Arc<PodView>),
    Address(IpAddr),
}

impl End<'_> {
    fn title(&self) -> String {
        match self {
            Self::Pod(view) => view.id.to_string(),
            Self::Address(address) => address.to_string(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.title() == other.title()
    }
}

impl Evaluator {
    /// Checks what is expected.
    pub fn check(&self, expectations: &Expectations) -> Report {
        let mut report = Report::default();
        for (ix, check) in expectations.checks.iter().enumerate() {
            let failures = self.check_one(ix, check);
            if failures.is_empty() {
                report.passed += 1;
            } else {
                report.failed += 1;
            }
            report.failures.extend(failures);
        }
        report.failures.truncate(FAILURES_MAX);
        report
    }

    fn check_one(&self, ix: usize, check: &Check) -> Vec<Failure> {
        let failure = |from: String, to: String, what: String, reason: String| Failure {
            check: ix,
            name: check.name.clone(),
            from,
            to,
            what,
            expected: check.reachable,
            reason,
        };
        let mut failures = Vec::new();
        let mut ends = |patterns: &OneOrMore<String>| {
            let mut found = Vec::new();
            for pattern in patterns.as_slice() {
                let ends = self.ends(pattern);
                if ends.is_empty() {
                    let reason =
                        format!("{pattern:?} is no pod that has an address, and no address");
                    let text = || pattern.clone();
                    failures.push(failure(text(), text(), "-".to_owned(), reason));
                }
                found.extend(ends);
            }
            found
        };
        let (senders, receivers) = (ends(&check.from), ends(&check.to));
        let mut asked = 0;
        for from in &senders {
            for to in receivers.iter().filter(|to| !to.is(from)) {
                for (what, traffic) in probes(check, to) {
                    asked += 1;
                    let found = match traffic {
                        Ok(traffic) => self.check_pair(from, to, traffic),
                        Err(why) => (false, why),
                    };
                    if found.0 != check.reachable {
                        failures.push(failure(from.title(), to.title(), what, found.1));
                    }
                }
            }
        }
        if asked == 0 && failures.is_empty() {
            let reason = "it is about nobody but a pod and itself".to_owned();
            failures.push(failure(String::new(), String::new(), "-".to_owned(), reason));
        }
        failures
    }

    fn ends(&self, pattern: &str) -> Vec<End<'_>> {
        if let Ok(address) = pattern.parse() {
            return vec![End::Address(address)];
        }
        let Some((namespace, name)) = pattern.split_once('/') else { return Vec::new() };
        let is_meant = |view: &&Arc<PodView>| {
            is_like(&view.id.namespace, namespace) && is_like(&view.id.name, name)
        };
        self.pods().filter(is_meant).map(End::Pod).collect()
    }

    /// Whether it may go on, and why or why not.
    fn check_pair(&self, from: &End<'_>, to: &End<'_>, traffic: Traffic) -> (bool, String) {
        let of_family = |addresses: &[IpAddr], like: IpAddr| {
            addresses.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
        };
        let found = match (from, to) {
            (End::Pod(from), End::Pod(to)) => addresses_of(from, to),
            (End::Pod(from), End::Address(to)) => {
                of_family(&from.addresses, *to).map(|from| (from, *to))
            }
            (End::Address(from), End::Pod(to)) => {
                of_family(&to.addresses, *from).map(|to| (*from, to))
            }
            (End::Address(from), End::Address(to)) => {
                (from.is_ipv4() == to.is_ipv4()).then_some((*from, *to))
            }
        };
        let Some((from, to)) = found else {
            return (false, "they have no family of addresses in common".to_owned());
        };
        let answer = self.explain(from, to, traffic);
        let sides = [("egress", &answer.egress), ("ingress", &answer.ingress)];
        let passes = answer.passes();
        let told = sides.iter().filter(|(_, side)| side.verdict.passes() == passes);
        let told: Vec<String> =
            told.map(|(direction, side)| format!("{direction}: {}", side.reason)).collect();
        (passes, told.join("; "))
    }
}

/// What a check sends to a receiver, with its name for people. An error says why nothing can be sent.
fn probes(check: &Check, to: &End<'_>) -> Vec<(String, Result<Traffic, String>)> {
    let protocol = match check.protocol {
        CheckProtocol::Tcp => Protocol::Tcp,
        CheckProtocol::Udp => Protocol::Udp,
        CheckProtocol::Sctp => Protocol::Sctp,
        CheckProtocol::Icmp => return vec![("ICMP".to_owned(), Ok(Traffic::Portless))],
    };
    let mut probes = Vec::new();
    for port in check.port.iter().flat_map(OneOrMore::as_slice) {
        match (port, to) {
            (Port::Number(port), _) => {
                let traffic = Traffic::Port { protocol, port: *port };
                probes.push((format!("{protocol} {port}"), Ok(traffic)));
            }
            (Port::Name(name), End::Pod(view)) => {
                let port = ProbePort::Name(name.clone());
                let found = Probe { protocol: Some(protocol), port }.traffic(view);
                if found.is_empty() {
                    let why = format!("{} has no {protocol} port with the name {name:?}", view.id);
                    probes.push((format!("{protocol} {name}"), Err(why)));
                }
                probes.extend(found.into_iter().map(|one| (format!("{protocol} {name}"), Ok(one))));
            }
            (Port::Name(name), End::Address(_)) => {
                let why = "an address has no names for its ports".to_owned();
                probes.push((format!("{protocol} {name}"), Err(why)));
            }
        }
    }
    probes
}

/// Whether a name is like a pattern, in which `*` stands for anything.
fn is_like(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else { return false };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (name, pattern, like) in [
            ("web", "web", true),
            ("web", "we", false),
            ("web", "*", true),
            ("web-1", "web-*", true),
            ("web", "web-*", false),
            ("a-b-c", "*b*", true),
            ("a-b-c", "a*c", true),
            ("ac", "a*c*c", false),
            ("acc", "a*c*c", true),
            ("", "*", true),
        ] {
            assert_eq!(is_like(name, pattern), like, "{name} {pattern}");
        }
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused() {
        let check = |text: &str| parse(&format!("checks:\n- {{{text}}}\n")).map(drop);
        assert_eq!(check("from: a/b, to: a/c, port: 80, reachable: true"), Ok(()));
        assert_eq!(check("from: [a/b, x/*], to: a/c, port: [80, http], reachable: true"), Ok(()));
        assert_eq!(check("from: a/b, to: a/c, protocol: ICMP, reachable: true"), Ok(()));
        for (text, why) in [
            ("from: a/b, to: a/c, reachable: true", "checks[0]: port: is missing"),
            ("from: a/b, to: a/c, port: 1, protocol: ICMP, reachable: true", "ICMP has no ports"),
            ("from: a/b, to: a/c, port: 80", "reachable"),
            ("from: a/b, to: a/c, port: 80, reachable: true, extra: 1", "extra"),
            ("from: [], to: a/c, port: 80, reachable: true", "about nobody"),
            ("from: a/b, to: a/c, port: [], reachable: true", "port: is empty"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(parse("checks: []").unwrap_err().contains("cannot fail"));
    }
}
