//! Removes every trace of the daemon from a node.

use std::fs;
use std::io;
use std::path::Path;

use cni::netns;
use conf::NodeConfig;
use ipam::{Allocation, Ipam, PortKind};
use vswitch::tap::Tap;

use crate::host;

/// Name of the file with the pods' addresses, in the state directory.
pub const ALLOCATIONS: &str = "pods.json";

/// Removes the pods' interfaces, `weft0`, its routes and the nftables table, and with `files` the node's
/// identity, lease and allocations. The daemon must not run.
///
/// Goes on past errors; the answer lists what could not be removed, and is empty when nothing is left.
pub fn uninstall(config: &NodeConfig, files: bool) -> Vec<String> {
    let allocations = config.paths.state.join(ALLOCATIONS);
    let mut ipam = match Ipam::open(&allocations) {
        Ok(ipam) => ipam,
        // Above all when the daemon still runs and holds it: then nothing may be touched.
        Err(error) => return vec![format!("{error}. Stop weftd first, if it runs")],
    };
    let mut problems = Vec::new();
    for allocation in ipam.iter().cloned().collect::<Vec<_>>() {
        let attachment = &allocation.attachment;
        let removed = remove_interface(&allocation)
            .and_then(|()| Ok(ipam.release(attachment).map(|_released| ())?));
        if let Err(error) = removed {
            problems.push(format!("pod {attachment}: {error}"));
        }
    }
    problems.extend(host::remove(&config.host.interface));
    let socket = config.paths.socket();
    note(&mut problems, &socket, fs::remove_file(&socket));
    drop(ipam);
    if files {
        let state = &config.paths.state;
        note(&mut problems, state, fs::remove_dir_all(state));
    }
    problems
}

/// Removes a pod's interface; one that went with its namespace is gone already.
fn remove_interface(allocation: &Allocation) -> anyhow::Result<()> {
    let PortKind::Tap { netns } = &allocation.record.port else {
        return Ok(());
    };
    let same = netns::identity(&netns.path)
        .is_ok_and(|found| (found.device, found.inode) == (netns.device, netns.inode));
    if !same {
        return Ok(());
    }
    let name = &allocation.attachment.ifname;
    netns::run_in(&netns.path, || -> anyhow::Result<()> { Ok(Tap::open(name)?.delete()?) })?
}

fn note(problems: &mut Vec<String>, path: &Path, removed: io::Result<()>) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            problems.push(format!("{}: {error}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
}
