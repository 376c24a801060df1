//! A Service with endpoints on two nodes: its name, its address, and who serves.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use serde::Serialize;

use super::measure::Endpoint;
use super::progress::Outcome;
use crate::admin::services::FlowsQuery;
use crate::lab::probe::{EchoServer, tcp_seen_as};
use crate::lab::{Family, Interrupt, Lab, Namespace, Wait, address_of};

/// The Service, and the namespace of a lab's pods.
const NAMESPACE: &str = "lab";
const NAME: &str = "web";
const PORT: u16 = 80;

/// Connections that are made to it.
const CONNECTIONS: usize = 40;

/// How long the manifest, and then the name, may take to be in force.
const LIMIT: Duration = Duration::from_secs(10);

/// How long the name server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What a Service did.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ServiceShown {
    /// The name that the client looked up.
    pub(super) name: String,
    /// What the name server of the client's node answered.
    pub(super) address: IpAddr,
    /// The port.
    pub(super) port: u16,
    /// The pod that connected.
    pub(super) client: String,
    /// Connections by the pod that served them.
    pub(super) served: BTreeMap<String, usize>,
    /// Connections whose server saw another address than the client's own.
    pub(super) rewritten: usize,
}

/// Declares the Service, looks its name up in a pod, and connects to it.
pub(super) fn show(
    lab: &Lab,
    endpoints: &[Endpoint],
    interrupt: &Interrupt,
    outcome: &mut Outcome,
) -> Result<ServiceShown> {
    let pods: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.is_pod).collect();
    let first = pods.first().context("a demo has pods")?;
    let second = pods.iter().find(|pod| pod.node != first.node).context("a demo has two nodes")?;
    let backends = [*first, *second];
    let is_client = |pod: &&&Endpoint| backends.iter().all(|backend| backend.name != pod.name);
    // With no other pod one of them talks to itself now and then, as a pod may.
    let client = pods.iter().find(is_client).unwrap_or(first);

    let mut servers = Vec::new();
    let mut manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {NAME}, namespace: {NAMESPACE}}}\n\
         spec: {{ports: [{{name: http, port: {PORT}}}]}}\n"
    );
    for backend in backends {
        let address = address_of(&backend.addresses, Family::V4).context("pods have IPv4")?;
        let server = EchoServer::start(backend.namespace(), address)
            .with_context(|| format!("listening in {}", backend.name))?;
        manifest.push_str(&format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {pod}\n  \
             namespace: {NAMESPACE}\n  labels: {{kubernetes.io/service-name: {NAME}}}\n\
             addressType: IPv4\nports: [{{name: http, port: {port}}}]\nendpoints:\n\
             - {{addresses: [{address}], nodeName: {node}, targetRef: {{kind: Pod, name: {pod}, \
             namespace: {NAMESPACE}}}}}\n",
            pod = backend.name,
            node = backend.node,
            port = server.port(),
        ));
        servers.push(server);
    }
    let file = lab.manifests().join("demo.yaml");
    fs::write(&file, manifest).with_context(|| format!("writing {}", file.display()))?;

    let admin = lab.admin(&client.node)?;
    interrupt.wait_for(LIMIT, || {
        let known = admin.endpoints()?.into_iter().filter(|end| end.ready).count();
        Ok(match known == backends.len() {
            true => Wait::Done(()),
            false => Wait::NotYet(format!("{} knows {known} endpoints", client.node)),
        })
    })?;
    let status = admin.dns()?.context("the lab's nodes have name servers")?;
    let server = status.addresses.first().copied().context("a name server has an address")?;
    let name = format!("{NAME}.{NAMESPACE}.svc.{}", status.domain.trim_end_matches('.'));
    let address = interrupt.wait_for(LIMIT, || {
        Ok(match look_up(client.namespace(), server, &name)? {
            Some(address) => Wait::Done(address),
            None => Wait::NotYet(format!("{name} has no address yet")),
        })
    })?;

    let mut shown = ServiceShown {
        name,
        address,
        port: PORT,
        client: client.name.clone(),
        served: BTreeMap::new(),
        rewritten: 0,
    };
    for _ in 0..CONNECTIONS {
        interrupt.check()?;
        let seen = tcp_seen_as(client.namespace(), SocketAddr::new(address, PORT))
            .with_context(|| format!("connecting from {} to {}", client.name, shown.name))?;
        shown.rewritten += usize::from(seen.is_rewritten());
    }
    let query = FlowsQuery {
        service: Some(format!("{NAMESPACE}/{NAME}")),
        client: Some(format!("{NAMESPACE}/{}", client.name)),
        ..FlowsQuery::default()
    };
    for flow in admin.flows(&query)?.flows {
        let pod = flow.endpoint_pod.unwrap_or_else(|| flow.endpoint.to_string());
        let pod = pod.trim_start_matches("lab/").to_owned();
        *shown.served.entry(pod).or_default() += 1;
    }
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    drop(servers);

    outcome.require(shown.served.len() == backends.len(), || {
        format!("not all endpoints served: {:?}", shown.served)
    });
    let talks_to_itself = backends.iter().any(|backend| backend.name == client.name);
    outcome.require(shown.rewritten == 0 || talks_to_itself, || {
        format!("{} connections were seen as somebody else's", shown.rewritten)
    });
    let served: Vec<String> =
        shown.served.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
    outcome.detail = format!("{} is {address}; {}", shown.name, served.join(", "));
    Ok(shown)
}

/// Asks a name server from a namespace for the IPv4 address of a name; `None` while there is none.
fn look_up(namespace: &Namespace, server: IpAddr, name: &str) -> Result<Option<IpAddr>> {
    let mut request = Message::new(1, MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(Name::from_ascii(format!("{name}."))?, RecordType::A));
    let request = request.to_vec()?;
    let mut buffer = [0; 1500];
    let answer = namespace.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect((server, crate::dns::PORT))?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        socket.send(&request)?;
        socket.recv(&mut buffer)
    })?;
    let len = answer.with_context(|| format!("asking {server} for {name}"))?;
    let answer = Message::from_vec(&buffer[..len])?;
    let code = answer.metadata.response_code;
    if code == ResponseCode::NXDomain || code == ResponseCode::ServFail {
        // Not known yet.
        return Ok(None);
    }
    if code != ResponseCode::NoError {
        bail!("{server} answers {code} for {name}");
    }
    Ok(answer.answers.iter().find_map(|record| {
        let RData::A(address) = &record.data else { return None };
        Some(IpAddr::V4(address.0))
    }))
}
