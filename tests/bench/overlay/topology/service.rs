//! A Service in front of one pod: by Weft's own means, and by what kube-proxy's nftables mode sets up.
//!
//! The traffic generator listens where the kernel lets it, so that the Service has as many ports as the kernel may
//! choose from. It stands only while it is measured: in the kernel, translation has connection tracking look at
//! every packet, those of other measurements too.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use ::weft::lab::{Family, Interrupt, Namespace, Wait};
use anyhow::{Context, Result, bail};

use super::super::tools;
use super::{Contestant, Pod, Stage};

/// The Service's address.
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 7));

/// The ports that the pod may listen on, and the Service has.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_063;

/// How long it may take to be in force.
const LIMIT: Duration = Duration::from_secs(10);

/// nftables' own program.
const NFT: tools::Program = ("nft", "nftables");

/// A Service that stands until this is dropped.
#[derive(Debug)]
pub(crate) struct Service<'s> {
    stage: &'s Stage,
    target: &'s Pod,
    /// The ports that the pod might listen on before.
    ports_before: String,
}

impl<'s> Service<'s> {
    /// Puts a Service before `target`, a pod of the second node, for clients on the first.
    pub(crate) fn make(stage: &'s Stage, target: &'s Pod) -> Result<Self> {
        let ports = format!("{} {}", PORTS.start(), PORTS.end());
        let ports_before = set_local_ports(&target.namespace, &ports)?;
        let service = Self { stage, target, ports_before };
        let address = target.address(Family::V4)?;
        match &stage.contestant {
            Contestant::Kernel => service.translate(address)?,
            Contestant::Weft | Contestant::OtherWeft(_) => service.declare(address)?,
            other @ (Contestant::WeftOverV4
            | Contestant::Plain
            | Contestant::Ovs
            | Contestant::WireguardGo) => bail!("{other} is not measured with Services"),
        }
        Ok(service)
    }

    /// Where a server of the pod is reached through the Service, once it is.
    pub(crate) fn wait_for(
        &self,
        client: &Pod,
        server: SocketAddr,
        interrupt: &Interrupt,
    ) -> Result<SocketAddr> {
        let at = SocketAddr::new(ADDRESS, server.port());
        interrupt.wait_for(LIMIT, || {
            let connect = || TcpStream::connect_timeout(&at, Duration::from_millis(200));
            Ok(match client.namespace.run(connect)? {
                Ok(_) => Wait::Done(()),
                Err(error) => Wait::NotYet(format!("{at} does not lead to {server}: {error}")),
            })
        })?;
        Ok(at)
    }

    /// The chains and maps that kube-proxy makes: one map from address and port to the Service's chain, one chain
    /// for each endpoint, marks for what must be masqueraded, and the look at new connections on their way.
    fn translate(&self, address: IpAddr) -> Result<()> {
        tools::require(&[NFT])?;
        let (mut elements, mut chains) = (Vec::new(), String::new());
        for port in PORTS {
            elements.push(format!("{ADDRESS} . tcp . {port} : goto service-{port}"));
            // Writing to a string cannot fail.
            let _ = write!(
                chains,
                "chain endpoint-{port} {{\n\
                 ip saddr {address} jump mark-for-masquerade\n\
                 meta l4proto tcp dnat to {address}:{port}\n\
                 }}\n\
                 chain service-{port} {{\n\
                 ip daddr {ADDRESS} tcp dport {port} ip saddr != 10.244.0.0/16 jump mark-for-masquerade\n\
                 numgen random mod 1 vmap {{ 0 : goto endpoint-{port} }}\n\
                 }}\n"
            );
        }
        let elements = elements.join(", ");
        let rules = format!(
            "table ip kube-proxy {{\n\
             chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}\n\
             {chains}\
             map service-ips {{\n\
             type ipv4_addr . inet_proto . inet_service : verdict\n\
             elements = {{ {elements} }}\n\
             }}\n\
             map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
             chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}\n\
             chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
             chain filter-forward {{\n\
             type filter hook forward priority -110;\n\
             ct state new jump service-endpoints-check\n\
             }}\n\
             chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
             chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
             chain nat-postrouting {{\n\
             type nat hook postrouting priority srcnat;\n\
             meta mark & 0x4000 == 0 return\n\
             meta mark set meta mark ^ 0x4000\n\
             masquerade fully-random\n\
             }}\n\
             }}\n"
        );
        let node = self.stage.node(0)?;
        tools::run_with_input(&node, NFT.0, &["-f", "-"], &rules)?;
        // Connections that end by a reset are remembered for ten seconds, and the table would be full before a
        // long measurement ends.
        let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close";
        node.run(|| fs::write(path, "1"))?.with_context(|| format!("writing {path}"))
    }

    fn declare(&self, address: IpAddr) -> Result<()> {
        let lab = self.stage.lab();
        let node = lab.nodes().get(1).context("there is no second node")?;
        let ports = PORTS.map(|port| format!("{{name: p{port}, port: {port}}}"));
        let ports = ports.collect::<Vec<_>>().join(", ");
        let manifest = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: bench, namespace: lab}}\n\
             spec: {{clusterIP: {ADDRESS}, ports: [{ports}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: bench, namespace: lab, labels: {{kubernetes.io/service-name: bench}}}}\n\
             addressType: IPv4\nports: [{ports}]\n\
             endpoints: [{{addresses: [{address}], nodeName: {}}}]\n",
            node.name
        );
        let file = lab.manifests().join("bench.yaml");
        fs::write(&file, manifest).with_context(|| format!("writing {}", file.display()))
    }

    fn remove(&self) -> Result<()> {
        set_local_ports(&self.target.namespace, &self.ports_before)?;
        if self.stage.contestant == Contestant::Kernel {
            let node = self.stage.node(0)?;
            return tools::run(&node, NFT.0, &["delete", "table", "ip", "kube-proxy"]).map(drop);
        }
        let file = self.stage.lab().manifests().join("bench.yaml");
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the Service of {} stays: {error:#}", self.stage.contestant);
        }
    }
}

/// Sets where the kernel chooses ports in a namespace; gives what it was.
fn set_local_ports(namespace: &Namespace, ports: &str) -> Result<String> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let set = || {
        let before = fs::read_to_string(PATH)?;
        fs::write(PATH, ports).map(|()| before)
    };
    namespace.run(set)?.with_context(|| format!("setting {PATH}"))
}
