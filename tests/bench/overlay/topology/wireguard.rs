//! wireguard-go: an encrypted tunnel in userspace between the nodes, bridges and veths to the pods, as
//! flannel's wireguard backend sets them up.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft::lab::{Interrupt, Namespace, Wait};

use super::super::tools::{self, Program};
use super::{Ground, Process, kernel};

/// The programs that it needs.
const PROGRAMS: [Program; 3] =
    [("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools"), tools::IP];

/// Where wireguard-go puts its sockets, whatever the namespace: devices need names of their own.
const SOCKETS: &str = "/var/run/wireguard";

/// UDP port of the tunnel.
const PORT: u16 = 51820;

/// Bytes that the tunnel adds over IPv6, as WireGuard's own default assumes for both protocols.
const OVERHEAD: u16 = 80;

/// How long it may take to start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What it needs and does not find.
pub(super) fn missing() -> Option<String> {
    let unwritable = |error| format!("{SOCKETS} cannot be made ({error}): run this as root");
    tools::missing(&PROGRAMS).or_else(|| std::fs::create_dir_all(SOCKETS).map_err(unwritable).err())
}

/// The tunnel's device on a node.
fn device(node: usize) -> String {
    format!("wg-bench{}", node + 1)
}

pub(super) fn join(ground: &mut Ground) -> Result<()> {
    let mtu = ground.wire.mtu() - OVERHEAD;
    let nodes = usize::from(ground.layout.nodes);
    let keys = (0..nodes).map(|node| key(&ground.node(node)?)).collect::<Result<Vec<_>>>()?;
    for node in 0..nodes {
        let (namespace, device) = (ground.node(node)?, device(node));
        kernel::add_bridge(ground, node, mtu)?;
        for pod in 0..ground.layout.pods_per_node {
            kernel::add_pod(ground, node, pod, mtu)?;
        }
        // The tunnel has routes for IPv4 only.
        for pod in &mut ground.pods[node] {
            pod.addresses.retain(std::net::IpAddr::is_ipv4);
        }
        start(ground, &namespace, &device)?;
        let (own, _) = &keys[node];
        // Writing to a string cannot fail.
        let mut config = format!("[Interface]\nPrivateKey = {own}\nListenPort = {PORT}\n");
        let mut routes = format!("link set {device} mtu {mtu} up\n");
        for (peer, (_, public)) in keys.iter().enumerate().filter(|(peer, _)| *peer != node) {
            let (subnet, underlay) = (format!("10.244.{}.0/24", peer + 1), ground.underlay(peer)?);
            let _ = write!(
                config,
                "[Peer]\nPublicKey = {public}\nAllowedIPs = {subnet}\nEndpoint = {underlay}:{PORT}\n"
            );
            let _ = writeln!(routes, "route add {subnet} dev {device}");
        }
        let path = ground.lab.dir().join(format!("wireguard-{node}.conf"));
        std::fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
        tools::run(&namespace, "wg", &["setconf", &device, &path.to_string_lossy()])?;
        tools::ip(&namespace, &routes)?;
    }
    Ok(())
}

/// A private and a public key.
fn key(namespace: &Namespace) -> Result<(String, String)> {
    let private = tools::run(namespace, "wg", &["genkey"])?;
    let public = tools::run_with_input(namespace, "wg", &["pubkey"], &private)?;
    Ok((private.trim().to_owned(), public.trim().to_owned()))
}

fn start(ground: &mut Ground, namespace: &Namespace, device: &str) -> Result<()> {
    let log = std::fs::File::create(ground.lab.dir().join("wireguard-go.log"))?;
    let mut command = tools::command(namespace, "wireguard-go")?;
    command
        .args(["--foreground", device])
        // Without it, it refuses to run where the kernel has WireGuard itself.
        .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    ground.processes.push(Process(command.spawn().context("starting wireguard-go")?));
    Interrupt::default().wait_for(START_LIMIT, || {
        let process = ground.processes.last_mut().context("it was just added")?;
        ensure!(process.0.try_wait()?.is_none(), "wireguard-go ended at once");
        Ok(match tools::run(namespace, "wg", &["show", device]) {
            Ok(_) => Wait::Done(()),
            Err(error) => Wait::NotYet(format!("{error:#}")),
        })
    })
}
