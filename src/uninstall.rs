//! Removes every trace of the daemon from a node.

use std::fs;
use std::io;
use std::path::Path;

use cni::plugin::PODS_MARKER;
use conf::NodeConfig;
use ipam::Ipam;

use crate::control::{device, now_unix_s};
use crate::host;

/// Name of the file with the pods' addresses, in the state directory.
pub const ALLOCATIONS: &str = "pods.json";

/// Removes the pods' interfaces, `weft0`, its routes and the nftables table, and with `files` the node's
/// identity, lease and allocations. The daemon must not run.
///
/// Goes on past errors; the answer lists what could not be removed, and is empty when nothing is left.
pub fn uninstall(config: &NodeConfig, files: bool) -> Vec<String> {
    let allocations = config.paths.state.join(ALLOCATIONS);
    let mut problems = Vec::new();
    match Ipam::open(&allocations) {
        Ok(ipam) => problems.extend(remove_devices(ipam)),
        // The daemon still runs: then nothing may be touched.
        Err(error @ ipam::Error::Store(ipam::StoreError::Locked { .. })) => {
            return vec![format!("nothing was removed: {error}")];
        }
        Err(error) => problems.push(format!("pods' interfaces: {error}")),
    }
    problems.extend(host::remove(&config.host.interface));
    let socket = config.paths.socket();
    note(&mut problems, &socket, fs::remove_file(&socket));
    for name in [PODS_MARKER, "deletions"] {
        let path = socket.with_file_name(name);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        note(&mut problems, &path, removed);
    }
    // Kernel settings that others may rely on by now (forwarding) stay.
    if files {
        let state = &config.paths.state;
        note(&mut problems, state, fs::remove_dir_all(state));
    }
    problems
}

fn remove_devices(mut ipam: Ipam) -> Vec<String> {
    let mut problems = Vec::new();
    for allocation in ipam.iter().cloned().collect::<Vec<_>>() {
        let attachment = &allocation.attachment;
        let removed = device::remove_leftover(&allocation).map_err(anyhow::Error::from);
        let released = removed.and_then(|()| Ok(ipam.release(attachment, now_unix_s())?));
        if let Err(error) = released {
            problems.push(format!("pod {attachment}: {error}"));
        }
    }
    problems
}

fn note(problems: &mut Vec<String>, path: &Path, removed: io::Result<()>) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            problems.push(format!("{}: {error}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
}
