//! Weft itself: the real daemon on every node, pods attached by the real plugin.

use std::time::Duration;

use anyhow::Result;

use super::{Ground, Pod};

/// How long the nodes may take to learn of each other.
const MAP_LIMIT: Duration = Duration::from_secs(20);

pub(super) fn join(ground: &mut Ground) -> Result<()> {
    let lab = &mut ground.lab;
    let nodes: Vec<String> = lab.nodes().iter().map(|node| node.name.clone()).collect();
    for node in &nodes {
        lab.launch(node)?;
    }
    for node in &nodes {
        lab.wait_until_ready(node)?;
    }
    lab.wait_for_map(&nodes.iter().map(String::as_str).collect::<Vec<_>>(), MAP_LIMIT)?;
    for node in &nodes {
        let mut pods = Vec::new();
        for _ in 0..ground.layout.pods_per_node {
            let name = lab.add_pod(node)?;
            let namespace = lab.namespace(&name)?;
            let (_, pod) = lab.state().pod(&name)?;
            pods.push(Pod { namespace, addresses: pod.addresses.clone() });
        }
        ground.pods.push(pods);
    }
    Ok(())
}
