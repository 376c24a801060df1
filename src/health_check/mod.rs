//! Answers at `healthCheckNodePort`: whether this node has endpoints of a Service, for load balancers in front of it that
//! send only to nodes which have (`externalTrafficPolicy: Local`).
//!
//! Status, headers and body are those of kube-proxy (`pkg/proxy/healthcheck/service_health.go`).

mod listener;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use conf::cluster::ObjectName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use self::listener::Guarded;

/// What is answered at one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ObjectName,
    /// How many of its endpoints are on this node, and ready.
    pub local_endpoints: usize,
}

/// What is answered at all ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// By port.
    pub ports: BTreeMap<u16, HealthCheck>,
    /// Whether this node serves Services at all.
    pub is_healthy: bool,
}

/// How often a port that cannot be listened on is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Connections to one port at a time: pods and the world may open them, too.
const CONNECTIONS_MAX: usize = 256;

/// How long one of them lives: longer than an answer takes anywhere.
const LIFETIME_MAX: Duration = Duration::from_secs(10);

/// The same as on the wire at kube-proxy.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Serves all ports for as long as somebody says what to answer. `problem` is told when a port cannot be listened on,
/// and when all can be.
pub async fn run(
    mut checks: watch::Receiver<HealthChecks>,
    problem: watch::Sender<Option<String>>,
) {
    let mut servers = JoinSet::new();
    let mut open: BTreeMap<u16, Vec<AbortHandle>> = BTreeMap::new();
    checks.mark_changed();
    loop {
        tokio::select! {
            changed = checks.changed() => if changed.is_err() {
                return;
            },
            // One that ended by itself is opened again below.
            Some(_ended) = servers.join_next() => {}
            () = sleep(RETRY), if problem.borrow().is_some() => {}
        }
        let wanted: Vec<u16> = checks.borrow_and_update().ports.keys().copied().collect();
        open.retain(|port, handles| {
            let stays = wanted.contains(port) && handles.iter().all(|handle| !handle.is_finished());
            if !stays {
                handles.iter().for_each(AbortHandle::abort);
            }
            stays
        });
        let mut problems = Vec::new();
        for port in wanted.into_iter().filter(|port| !open.contains_key(port)).collect::<Vec<_>>() {
            match listen(port) {
                Ok(listeners) => {
                    let serve = |listener| servers.spawn(serve(listener, port, checks.clone()));
                    open.insert(port, listeners.into_iter().map(serve).collect());
                }
                Err(error) => problems.push(format!("{port} ({error})")),
            }
        }
        let told = (!problems.is_empty()).then(|| {
            format!(
                "health of Services is not told, since these ports cannot be listened on: {}",
                problems.join(", ")
            )
        });
        problem.send_if_modified(|old| {
            let is_new = *old != told;
            *old = told;
            is_new
        });
    }
}

/// All addresses of both families; of one, where the other is switched off.
fn listen(port: u16) -> io::Result<Vec<TcpListener>> {
    let v4 = listen_on((Ipv4Addr::UNSPECIFIED, port).into())?;
    let v6 = listen_on((Ipv6Addr::UNSPECIFIED, port).into()).ok();
    Ok([Some(v4), v6].into_iter().flatten().collect())
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

async fn serve(
    listener: TcpListener,
    port: u16,
    checks: watch::Receiver<HealthChecks>,
) -> io::Result<()> {
    let router = Router::new().fallback(move || {
        let checks = checks.clone();
        async move { answer(&checks.borrow(), port) }
    });
    let listener = Guarded::new(listener, CONNECTIONS_MAX, LIFETIME_MAX);
    axum::serve(listener, router).await
}

fn answer(checks: &HealthChecks, port: u16) -> Response {
    let Some(check) = checks.ports.get(&port) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let HealthCheck { service, local_endpoints } = check;
    let is_well = *local_endpoints > 0 && checks.is_healthy;
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, local_endpoints.to_string()),
    ];
    // Names of Services need no escapes.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\
         \t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {}\n}}",
        service.namespace, service.name, checks.is_healthy
    );
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(local_endpoints: usize, is_healthy: bool) -> (u16, String, String) {
        let service = ObjectName::new("default", "web");
        let ports = [(32000, HealthCheck { service, local_endpoints })].into();
        let response = answer(&HealthChecks { ports, is_healthy }, 32000);
        let weight = response.headers()[WEIGHT].to_str().unwrap().to_owned();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        (status, weight, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn as_kube_proxy_answers() {
        let (status, weight, body) = ask(2, true).await;
        assert_eq!((status, weight.as_str()), (200, "2"));
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
             \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert_eq!(ask(0, true).await.0, 503);
        let (status, weight, body) = ask(2, false).await;
        assert_eq!((status, weight.as_str()), (503, "2"));
        assert!(body.contains("\"serviceProxyHealthy\": false"), "{body}");
    }
}
