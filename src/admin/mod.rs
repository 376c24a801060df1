//! What the node tells and is told: the admin socket, and the metrics and health port.

pub mod api;
pub mod capability;
pub mod ipam;
pub mod metrics;
pub mod services;

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use cni::rpc::{CniRequest, CniResponse};
use futures_util::stream;
use serde::Deserialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use vswitch::service::Protocol;

use self::api::{ErrorBody, PortRequest};
use self::ipam::ReleaseRequest;
use self::services::{FlowsQuery, FlowsReport};
use crate::control::policies::Scope;
use crate::control::{Control, ServiceViews, SharedControl};
use crate::dns;
use crate::dns::report::DnsAnswer;
use crate::dns::resolver::Resolver;
use crate::dns::stats::{LogLine, QueryLine};
use crate::explain::{self, Explained};
use crate::policy::Evaluator;
use crate::policy::list::PolicyStatus;
use crate::policy::matrix::{Matrix, Probe, ProbePort};

/// Opens the admin socket, readable and writable by its owner alone.
///
/// A socket file that a killed daemon left behind is replaced; that no other daemon is alive is known by
/// the lock on the state directory.
///
/// # Errors
/// When the socket cannot be made, or the path is taken by something that is not a socket.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the path is taken by something that is not a socket; move it away",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bound under a temporary name and only then moved into place, so that nobody can connect before
    // the mode is set.
    let temporary = path.with_extension("sock.new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

/// Serves the admin socket until `stop` says so.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: UnixListener,
    control: SharedControl,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let (watched, logged) = (stop.clone(), stop.clone());
    let router = Router::new()
        .route("/v1/status", get(async |State(control)| read(control, Control::status).await))
        .route("/v1/nodes", get(async |State(control)| read(control, Control::nodes).await))
        .route(
            "/v1/leases",
            get(async |State(control)| read(control, Control::leases_report).await),
        )
        .route("/v1/watch", get(move |State(control)| watch(control, watched)))
        .route("/v1/pods", get(async |State(control)| read(control, Control::pods).await))
        .route("/v1/map/pods", get(map_pods))
        .route("/v1/ipam", get(async |State(control)| read(control, Control::ipam).await))
        .route("/v1/ipam/release", post(release_address))
        .route("/v1/counters", get(async |State(control)| read(control, Control::counters).await))
        .route("/v1/dns", get(async |State(control)| read(control, Control::dns_status).await))
        .route("/v1/dns/query", get(dns_query))
        .route("/v1/dns/log", get(move |State(control), query| dns_log(control, query, logged)))
        .route("/v1/explain", get(explain))
        .route(
            "/v1/services",
            get(async |State(control)| list(control, ServiceViews::services).await),
        )
        .route(
            "/v1/endpoints",
            get(async |State(control)| list(control, ServiceViews::endpoints).await),
        )
        .route("/v1/flows", get(flows))
        .route("/v1/policies", get(async |State(control)| read(control, Control::policies).await))
        .route("/v1/objects", get(async |State(control)| read(control, Control::objects).await))
        .route("/v1/policy/list", get(policy_list))
        .route("/v1/policy/matrix", get(policy_matrix))
        .route("/v1/ports", post(add_port))
        .route("/v1/ports/{device}", delete(remove_port))
        .route("/v1/cni", post(cni))
        .with_state(control);
    axum::serve(listener, router).with_graceful_shutdown(stopped(stop)).await
}

/// Serves `/metrics`, `/healthz` and `/readyz` until `stop` says so.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_metrics(
    listener: TcpListener,
    control: SharedControl,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(control);
    axum::serve(listener, router).with_graceful_shutdown(stopped(stop)).await
}

/// Opens the metrics port.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind_metrics(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone: the daemon is ending, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Runs `action` where it may block: control work writes files and talks to the kernel.
async fn blocking<T: Send + 'static>(
    control: SharedControl,
    action: impl FnOnce(&mut Control) -> T + Send + 'static,
) -> Result<T, Response> {
    beside(move || action(&mut control.lock())).await
}

/// Runs `work` on a thread that may be busy for a while.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Response> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| {
        let error = format!("the daemon failed inside: {panic}; its log says where");
        failure(StatusCode::INTERNAL_SERVER_ERROR, error)
    })
}

fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(ErrorBody { error })).into_response()
}

async fn read<T: serde::Serialize + Send + 'static>(
    control: SharedControl,
    action: fn(&Control) -> T,
) -> Result<Json<T>, Response> {
    blocking(control, move |control| action(control)).await.map(Json)
}

/// All events from now on, one JSON object to a line, until the client or the daemon ends.
async fn watch(control: SharedControl, stop: watch::Receiver<bool>) -> Result<Response, Response> {
    let events = blocking(control, |control| control.events().watch()).await?;
    let lines = stream::unfold((events, stop), async |(mut events, mut stop)| {
        let record = tokio::select! {
            record = events.next() => record?,
            // An error means that the sender is gone: the daemon is ending, too.
            _ = stop.wait_for(|stop| *stop) => return None,
        };
        let line = serde_json::to_string(&*record).map(|line| line + "\n");
        Some((line, (events, stop)))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Whose questions are wanted.
#[derive(Debug, Deserialize)]
struct DnsLog {
    /// Only those of this client: a pod as `namespace/name`, or an address.
    client: Option<String>,
}

/// All questions to the name server from now on, one JSON object to a line, until the client or the daemon ends.
async fn dns_log(
    control: SharedControl,
    Query(query): Query<DnsLog>,
    stop: watch::Receiver<bool>,
) -> Result<Response, Response> {
    let resolver = name_server(control).await?;
    // A pod may have been there, or come later, so that its name is compared and not its address.
    let wanted = query.client.map(|client| client.parse::<IpAddr>().map_err(|_name| client));
    let is_wanted = move |line: &QueryLine| match &wanted {
        None => true,
        Some(Ok(address)) => line.client == *address,
        Some(Err(pod)) => line.pod.as_ref() == Some(pod),
    };
    let lines = stream::unfold(
        (resolver.stats().watch(), stop, is_wanted),
        async |(mut log, mut stop, is_wanted)| {
            let line = loop {
                let line = tokio::select! {
                    line = log.recv() => line,
                    _ = stop.wait_for(|stop| *stop) => return None,
                };
                match line {
                    Ok(line) if is_wanted(&line) => break LogLine::Query(line),
                    Ok(_) => {}
                    Err(RecvError::Lagged(missed)) => break LogLine::Missed { missed },
                    Err(RecvError::Closed) => return None,
                }
            };
            let line = serde_json::to_string(&line).map(|line| line + "\n");
            Some((line, (log, stop, is_wanted)))
        },
    );
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Who answers pods' names, or what is told when nobody does.
async fn name_server(control: SharedControl) -> Result<Arc<Resolver>, Response> {
    let resolver = blocking(control, |control| control.dns().cloned()).await?;
    resolver.ok_or_else(|| {
        let why = "this node has no name server: enabled = false under [dns]".to_owned();
        failure(StatusCode::NOT_FOUND, why)
    })
}

/// Written out beside the control side: there may be some ten thousand.
async fn map_pods(State(control): State<SharedControl>) -> Result<Response, Response> {
    let pods = blocking(control, |control| control.map_pods()).await?;
    Ok(Json(pods.list()).into_response())
}

async fn cni(
    State(control): State<SharedControl>,
    Json(request): Json<CniRequest>,
) -> Result<Json<CniResponse>, Response> {
    blocking(control, move |control| control.cni(&request)).await.map(Json)
}

async fn release_address(
    State(control): State<SharedControl>,
    Json(ReleaseRequest { address, force }): Json<ReleaseRequest>,
) -> Result<Response, Response> {
    let released =
        blocking(control, move |control| control.release_address(address, force)).await?;
    released
        .map(|released| Json(released).into_response())
        .map_err(|error| failure(StatusCode::CONFLICT, error.to_string()))
}

async fn add_port(
    State(control): State<SharedControl>,
    Json(request): Json<PortRequest>,
) -> Result<Response, Response> {
    let added =
        blocking(control, move |control| control.attach_device(&request.device, request.mac))
            .await?;
    added
        .map(|pod| Json(pod).into_response())
        .map_err(|error| failure(StatusCode::CONFLICT, error.to_string()))
}

async fn remove_port(
    State(control): State<SharedControl>,
    UrlPath(device): UrlPath<String>,
) -> Result<StatusCode, Response> {
    let removed = blocking(control, move |control| control.detach_device(&device)).await?;
    removed
        .map(|()| StatusCode::NO_CONTENT)
        .map_err(|error| failure(StatusCode::NOT_FOUND, error.to_string()))
}

/// A question to the name server.
#[derive(Debug, Deserialize)]
struct DnsQuery {
    name: String,
    #[serde(rename = "type", default = "address")]
    kind: String,
    /// The pod that asks, as `namespace/name`, or an address.
    from: Option<String>,
}

fn address() -> String {
    "A".to_owned()
}

async fn dns_query(
    State(control): State<SharedControl>,
    Query(query): Query<DnsQuery>,
) -> Result<Json<DnsAnswer>, Response> {
    let resolver = name_server(control).await?;
    let refuse = |why| failure(StatusCode::BAD_REQUEST, why);
    let request = dns::question(&query.name, &query.kind).map_err(refuse)?;
    let client = match &query.from {
        Some(from) => dns::client(&resolver, from).map_err(refuse)?,
        None => IpAddr::from([127, 0, 0, 1]),
    };
    let (answer, part) = resolver.answer(&request, client).await;
    Ok(Json(DnsAnswer::new(&answer, part)))
}

/// Written out beside the control side, which is only asked for what there is.
async fn list<T: serde::Serialize + Send + 'static>(
    control: SharedControl,
    action: fn(&ServiceViews) -> T,
) -> Result<Json<T>, Response> {
    let views = blocking(control, |control| control.service_views()).await?;
    beside(move || action(&views)).await.map(Json)
}

async fn flows(
    State(control): State<SharedControl>,
    Query(query): Query<FlowsQuery>,
) -> Result<Json<FlowsReport>, Response> {
    let views = blocking(control, |control| control.service_views()).await?;
    let report = beside(move || views.flows(&query)).await?;
    report.map(Json).map_err(|why| failure(StatusCode::BAD_REQUEST, why))
}

async fn explain(
    State(control): State<SharedControl>,
    Query(query): Query<explain::Query>,
) -> Result<Json<Explained>, Response> {
    let explained = blocking(control, move |control| control.explain(&query)).await?;
    explained.map(Json).map_err(|why| failure(StatusCode::BAD_REQUEST, why))
}

async fn policy_list(
    State(control): State<SharedControl>,
) -> Result<Json<Vec<PolicyStatus>>, Response> {
    blocking(control, |control| control.policy_list()).await.map(Json)
}

/// What pairs of pods are asked about.
#[derive(Debug, Deserialize)]
struct MatrixQuery {
    protocol: String,
    port: String,
}

/// Made beside the control side: it takes as long as there are pairs of pods.
async fn policy_matrix(
    State(control): State<SharedControl>,
    Query(query): Query<MatrixQuery>,
) -> Result<Json<Matrix>, Response> {
    let refuse = |why| failure(StatusCode::BAD_REQUEST, why);
    let protocol = match query.protocol.as_str() {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        "ICMP" => None,
        other => {
            return Err(refuse(format!("protocol: {other:?} is none of TCP, UDP, SCTP, ICMP")));
        }
    };
    let probe = Probe { protocol, port: ProbePort::parse(&query.port) };
    let cluster = blocking(control, |control| control.cluster()).await?;
    let made = tokio::task::spawn_blocking(move || {
        let state = cluster.read().clone();
        Evaluator::new(state, Scope::All).matrix(&probe)
    });
    let made = made.await.map_err(|panic| {
        let error = format!("the daemon failed inside: {panic}; its log says where");
        failure(StatusCode::INTERNAL_SERVER_ERROR, error)
    })?;
    made.map(Json).map_err(refuse)
}

async fn metrics_text(State(control): State<SharedControl>) -> Result<Response, Response> {
    let report = blocking(control, |control| control.report()).await?;
    let text = metrics::encode(report)
        .map_err(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content)], text).into_response())
}

/// Alive: the workers breathe and the control side answers.
async fn healthz(State(control): State<SharedControl>) -> Result<Response, Response> {
    let health = blocking(control, |control| control.health()).await?;
    Ok(match health {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    }
    .into_response())
}

/// Ready: pods can be attached.
async fn readyz(State(control): State<SharedControl>) -> Result<Response, Response> {
    let status = blocking(control, |control| control.status()).await?;
    Ok(if status.ready {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        let problems = status.problems.iter().map(|problem| format!("{}\n", problem.text));
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}", problems.collect::<String>()))
    }
    .into_response())
}
