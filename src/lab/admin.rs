//! The client of a daemon's admin socket, for code that is not asynchronous.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use cni::rpc::{Client, ClientError};
use conf::source::Listing;

use crate::admin::api::{CountersReport, NodeStatus, PodStatus, PortRequest, Status};
use crate::dns::report::{DnsAnswer, DnsStatus};

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

    /// The pods on the node.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn pods(&self) -> Result<Vec<PodStatus>> {
        wait(self.client.get("/v1/pods"))
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

    /// The objects that are declared, and what became of them.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn objects(&self) -> Result<Listing> {
        wait(self.client.get("/v1/objects"))
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
