//! The content of `gossip.json`: what gossip has to remember over a restart.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::gossip::{COUNTER_MAX, Memory, RememberedLease};
use crate::node_id::NodeId;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    node_id: NodeId,
    counter: u64,
    clock: u64,
    leases: Vec<LeaseLine>,
    #[serde(default)]
    retained: Vec<IpNetwork>,
    #[serde(default)]
    peers: Vec<SocketAddr>,
    #[serde(default)]
    origin: Option<NodeId>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseLine {
    prefix: IpNetwork,
    epoch: u64,
}

/// The file's content. `path` is for messages only.
///
/// # Errors
///
/// When it cannot be put into JSON.
pub fn encode(path: &Path, node_id: NodeId, memory: &Memory) -> Result<Vec<u8>, Error> {
    let leases = memory.leases.iter();
    let state = State {
        node_id,
        counter: memory.counter,
        clock: memory.clock,
        leases: leases
            .map(|lease| LeaseLine { prefix: lease.prefix, epoch: lease.epoch })
            .collect(),
        retained: memory.retained.clone(),
        peers: memory.peers.clone(),
        origin: memory.origin,
    };
    let mut text = serde_json::to_vec_pretty(&state).map_err(|error| Error::WriteState {
        path: path.to_owned(),
        cause: io::Error::other(error),
    })?;
    text.push(b'\n');
    Ok(text)
}

/// Whose memory this is, and what it remembers. `path` is for messages only.
///
/// # Errors
///
/// When it is not what [`encode`] writes, or a counter is one that nobody gets to by counting: this node could
/// not go above it.
pub fn decode(path: &Path, text: &[u8]) -> Result<(NodeId, Memory), Error> {
    let corrupt = |why: String| Error::CorruptState { path: path.to_owned(), why };
    let state: State = serde_json::from_slice(text).map_err(|error| corrupt(error.to_string()))?;
    let epochs = state.leases.iter().map(|lease| ("epoch", lease.epoch));
    let counters = [("counter", state.counter), ("clock", state.clock)];
    for (name, value) in counters.into_iter().chain(epochs) {
        if value >= COUNTER_MAX / 2 {
            return Err(corrupt(format!("{name} {value} is out of bounds: below 2^47")));
        }
    }
    let leases = state.leases.into_iter();
    let memory = Memory {
        counter: state.counter,
        clock: state.clock,
        leases: leases
            .map(|lease| RememberedLease { prefix: lease.prefix, epoch: lease.epoch })
            .collect(),
        retained: state.retained,
        peers: state.peers,
        origin: state.origin,
    };
    Ok((state.node_id, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory {
            counter: 1024,
            clock: 7,
            leases: vec![RememberedLease { prefix: "10.244.3.0/24".parse().unwrap(), epoch: 7 }],
            retained: vec!["10.244.9.0/24".parse().unwrap()],
            peers: vec!["192.0.2.7:7946".parse().unwrap()],
            origin: Some(NodeId([9; 16])),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let (path, id) = (Path::new("gossip.json"), NodeId([3; 16]));
        let text = encode(path, id, &memory()).unwrap();
        assert_eq!(decode(path, &text).unwrap(), (id, memory()));
    }

    #[test]
    fn counters_that_nobody_counts_to_are_refused_by_name() {
        let (path, id) = (Path::new("gossip.json"), NodeId([3; 16]));
        type Spoil = fn(&mut Memory);
        let cases: [(&str, Spoil); 3] = [
            ("counter", |memory| memory.counter = u64::MAX),
            ("clock", |memory| memory.clock = COUNTER_MAX / 2),
            ("epoch", |memory| memory.leases[0].epoch = COUNTER_MAX),
        ];
        for (name, spoil) in cases {
            let mut memory = memory();
            spoil(&mut memory);
            let text = encode(path, id, &memory).unwrap();
            let error = decode(path, &text).unwrap_err().to_string();
            assert!(error.contains("gossip.json") && error.contains(name), "{error}");
        }
    }
}
