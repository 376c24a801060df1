//! Who may reach whom: every ordered pair of pods.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use conf::cluster::PodView;
use serde::{Deserialize, Serialize};
use vswitch::policy::Traffic;
use vswitch::service::Protocol;

use super::{Evaluator, addresses_of};

/// Most pods of a matrix: four million pairs.
pub const PODS_MAX: usize = 2000;

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The protocol; `None` for one without ports, such as ICMP.
    pub protocol: Option<Protocol>,
    /// The receiver's port.
    pub port: ProbePort,
}

/// A receiver's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbePort {
    /// This one.
    Number(u16),
    /// The one that the receiver's containers call so. A pod that has none is not reached there.
    Name(String),
}

/// Senders, each with its receivers, and whether it may reach them: pods as `namespace/name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Matrix(pub BTreeMap<String, BTreeMap<String, bool>>);

impl ProbePort {
    /// A number, or else a name.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Number)
    }
}

impl fmt::Display for ProbePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(port) => write!(f, "{port}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Probe {
    /// Everything that is meant at this receiver. None when it has no port of that name.
    pub fn traffic(&self, to: &PodView) -> Vec<Traffic> {
        let Some(protocol) = self.protocol else { return vec![Traffic::Portless] };
        match &self.port {
            ProbePort::Number(port) => vec![Traffic::Port { protocol, port: *port }],
            ProbePort::Name(name) => {
                let ports = to.ports().iter().filter(|port| {
                    port.name.as_ref() == name.as_str()
                        && crate::control::policies::protocol_of(port.protocol) == protocol
                });
                ports.map(|port| Traffic::Port { protocol, port: port.port }).collect()
            }
        }
    }
}

impl Evaluator {
    /// Whether a pod may reach another one. `None` when they have no family of addresses in common.
    pub fn reaches(&self, from: &PodView, to: &PodView, probe: &Probe) -> Option<bool> {
        if from.id == to.id {
            return Some(!probe.traffic(to).is_empty());
        }
        let (sender, receiver) = addresses_of(from, to)?;
        let traffic = probe.traffic(to);
        let all = traffic.iter().all(|traffic| self.judge(sender, receiver, *traffic).passes());
        Some(all && !traffic.is_empty())
    }

    /// The whole matrix.
    ///
    /// # Errors
    /// When there are more than [`PODS_MAX`] pods.
    pub fn matrix(&self, probe: &Probe) -> Result<Matrix, String> {
        let pods: Vec<&Arc<PodView>> = self.pods().collect();
        if pods.len() > PODS_MAX {
            return Err(format!(
                "there are {} pods, and a matrix has at most {PODS_MAX}: ask with `weft explain`",
                pods.len()
            ));
        }
        let row = |from: &Arc<PodView>| {
            let reaches =
                |to: &&Arc<PodView>| Some((to.id.to_string(), self.reaches(from, to, probe)?));
            pods.iter().filter_map(reaches).collect()
        };
        Ok(Matrix(pods.iter().map(|from| (from.id.to_string(), row(from))).collect()))
    }
}
