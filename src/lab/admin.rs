//! The client of a daemon's admin socket, for code that is not asynchronous.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use cni::rpc::{Client, ClientError};
use conf::source::Listing;

use crate::admin::api::{
    CountersReport, LeasesReport, MapPod, NodeStatus, PodStatus, PoliciesReport, PortRequest,
    Status,
};
use crate::admin::ipam::{IpamReport, ReleaseRequest, Released};
use crate::admin::services::{EndpointStatus, FlowsQuery, FlowsReport, ServiceStatus};
use crate::dns::report::{DnsAnswer, DnsStatus};
use crate::dns::stats::LogLine;
use crate::events::EventRecord;
use crate::explain::{Explained, Query};
use crate::policy::list::PolicyStatus;
use crate::policy::matrix::{Matrix, Probe};

/// How long an answer may take. The daemon has every answer at hand; a command line should not hang.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A daemon's admin socket.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    /// The daemon that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { client: Client::new(socket).with_answer_timeout(ANSWER_TIMEOUT) }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        self.client.socket()
    }

    /// The node and its health.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn status(&self) -> Result<Status> {
        wait(self.client.get("/v1/status"))
    }

    /// The nodes of the map.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn nodes(&self) -> Result<Vec<NodeStatus>> {
        wait(self.client.get("/v1/nodes"))
    }

    /// Who has which subnet.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn leases(&self) -> Result<LeasesReport> {
        wait(self.client.get("/v1/leases"))
    }

    /// Gives each event to `each` as it happens, until that breaks off or the daemon ends. `begun` is called when
    /// nothing is missed any more.
    ///
    /// # Errors
    /// When the daemon does not answer, or the connection breaks.
    pub fn watch(
        &self,
        begun: impl FnOnce(),
        each: impl FnMut(EventRecord) -> ControlFlow<()>,
    ) -> Result<()> {
        wait(self.client.lines("/v1/watch", begun, each))
    }

    /// The pods on the node.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn pods(&self) -> Result<Vec<PodStatus>> {
        wait(self.client.get("/v1/pods"))
    }

    /// The pods of all nodes, as the node knows them.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn map_pods(&self) -> Result<Vec<MapPod>> {
        wait(self.client.get("/v1/map/pods"))
    }

    /// The node's addresses that are not simply free.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn ipam(&self) -> Result<IpamReport> {
        wait(self.client.get("/v1/ipam"))
    }

    /// Takes an address back whose container is gone, or ends its rest.
    ///
    /// # Errors
    /// When the daemon does not answer or refuses.
    pub fn release_address(&self, request: &ReleaseRequest) -> Result<Released> {
        wait(self.client.post("/v1/ipam/release", request))
    }

    /// The node's counters.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn counters(&self) -> Result<CountersReport> {
        wait(self.client.get("/v1/counters"))
    }

    /// The node's name server; `None` when it has none.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn dns(&self) -> Result<Option<DnsStatus>> {
        wait(self.client.get("/v1/dns"))
    }

    /// Gives each question to the node's name server to `each` as it is answered, until that breaks off or the
    /// daemon ends. `client` is the pod or address whose questions are wanted. `begun` is called when nothing is
    /// missed any more.
    ///
    /// # Errors
    /// When the daemon does not answer, has no name server, or the connection breaks.
    pub fn dns_log(
        &self,
        client: Option<&str>,
        begun: impl FnOnce(),
        each: impl FnMut(LogLine) -> ControlFlow<()>,
    ) -> Result<()> {
        let client = client.map(|client| format!("?client={}", escaped(client)));
        let path = format!("/v1/dns/log{}", client.unwrap_or_default());
        wait(self.client.lines(&path, begun, each))
    }

    /// What the node's name server answers to a question that the pod or address `from` asks.
    ///
    /// # Errors
    /// When the daemon does not answer or refuses.
    pub fn dns_query(&self, name: &str, kind: &str, from: Option<&str>) -> Result<DnsAnswer> {
        let mut path = format!("/v1/dns/query?name={}&type={}", escaped(name), escaped(kind));
        if let Some(from) = from {
            path.push_str("&from=");
            path.push_str(&escaped(from));
        }
        wait(self.client.get(&path))
    }

    /// What becomes of a packet, and why.
    ///
    /// # Errors
    /// When the daemon does not answer, or does not understand the question.
    pub fn explain(&self, query: &Query) -> Result<Explained> {
        let Query { from, to, port, protocol, node } = query;
        let given = |(name, value): (&str, &Option<String>)| {
            let value = value.as_deref()?;
            Some(format!("&{name}={}", escaped(value)))
        };
        let more: String =
            [("protocol", protocol), ("node", node)].into_iter().filter_map(given).collect();
        let [from, to, port] = [from, to, port].map(|value| escaped(value));
        wait(self.client.get(&format!("/v1/explain?from={from}&to={to}&port={port}{more}")))
    }

    /// The Services that the node knows.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn services(&self) -> Result<Vec<ServiceStatus>> {
        wait(self.client.get("/v1/services"))
    }

    /// The endpoints of all Services.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn endpoints(&self) -> Result<Vec<EndpointStatus>> {
        wait(self.client.get("/v1/endpoints"))
    }

    /// The flows to Services through the node's switch.
    ///
    /// # Errors
    /// When the daemon does not answer, or does not know the client that is asked for.
    pub fn flows(&self, query: &FlowsQuery) -> Result<FlowsReport> {
        let FlowsQuery { max, service, client } = query;
        let max = max.map(|max| max.to_string());
        let given = [("max", &max), ("service", service), ("client", client)];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", escaped(value.as_deref()?))));
        wait(self.client.get(&format!("/v1/flows?{}", given.collect::<Vec<_>>().join("&"))))
    }

    /// The objects that are declared, and what became of them.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn objects(&self) -> Result<Listing> {
        wait(self.client.get("/v1/objects"))
    }

    /// All policies that the node knows, with what its switch has counted.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn policy_list(&self) -> Result<Vec<PolicyStatus>> {
        wait(self.client.get("/v1/policy/list"))
    }

    /// Which pod may reach which.
    ///
    /// # Errors
    /// When the daemon does not answer or refuses.
    pub fn policy_matrix(&self, probe: &Probe) -> Result<Matrix> {
        let protocol = probe.protocol.map_or("ICMP", vswitch::service::Protocol::as_str);
        let port = escaped(&probe.port.to_string());
        wait(self.client.get(&format!("/v1/policy/matrix?protocol={protocol}&port={port}")))
    }

    /// The policies in force, and what was counted of them.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn policies(&self) -> Result<PoliciesReport> {
        wait(self.client.get("/v1/policies"))
    }

    /// Makes an interface of the host a port.
    ///
    /// # Errors
    /// When the daemon does not answer or refuses.
    pub fn add_port(&self, request: &PortRequest) -> Result<PodStatus> {
        wait(self.client.post("/v1/ports", request))
    }

    /// Takes such a port away again.
    ///
    /// # Errors
    /// When the daemon does not answer or refuses.
    pub fn remove_port(&self, device: &str) -> Result<()> {
        let path = format!("/v1/ports/{device}");
        wait(self.client.delete::<serde_json::Value>(&path)).map(drop)
    }
}

/// Text as a value in a query string (RFC 3986 §2.1).
fn escaped(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'/' | b':' => {
                made.push(char::from(byte));
            }
            other => made.push_str(&format!("%{other:02X}")),
        }
    }
    made
}

fn wait<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(answer)?)
}
