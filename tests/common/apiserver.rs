//! A stand-in for the API server of a Kubernetes cluster: it lists in chunks, tells what happens, forgets, and
//! fails in every way that servers and the networks before them do.
//!
//! It keeps JSON, checks nothing, and adds to each object what a server of today adds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// How often things go wrong, each as a probability.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// A request is answered with an error.
    pub(crate) refuse: f64,
    /// The place in a list, or the version of a watch, is forgotten.
    pub(crate) forget: f64,
    /// An answer ends in the middle of an object.
    pub(crate) cut: f64,
    /// A watch ends as watches do, at an event.
    pub(crate) end: f64,
    /// An event that was told before is told again.
    pub(crate) again: f64,
    /// Two events are told in the wrong order.
    pub(crate) swap: f64,
    /// An event comes in pieces.
    pub(crate) slow: f64,
}

/// A request as somebody has sent it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Recorded {
    /// What for, as the rules of roles name it: `list`, `watch`, `get`, `create`, `update`, `patch`.
    pub(crate) verb: String,
    /// The API group; empty for the core.
    pub(crate) group: String,
    /// The kind's name in paths, and a subresource behind `/`.
    pub(crate) resource: String,
    /// The namespace; empty for all.
    pub(crate) namespace: String,
    /// The name; empty for all.
    pub(crate) name: String,
}

/// What a server has. It may be served by one server after the other.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    version: u64,
    /// By plural, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    history: Vec<Happened>,
    /// What happened up to this version is forgotten.
    forgotten: u64,
    chunk_len_max: usize,
    /// Lists that are being fetched, by number, each with its version.
    lists: Vec<(u64, Vec<Value>)>,
    faults: Faults,
    rng: StdRng,
    requests: Vec<Recorded>,
    /// Kinds that are not there.
    absent: Vec<String>,
    /// Who may ask; `None` for everybody.
    tokens: Option<Vec<String>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
struct Happened {
    version: u64,
    plural: String,
    what: &'static str,
    object: Value,
}

impl Store {
    /// An empty cluster. The seed decides which requests fail.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(World {
            // Real ones have counted for a while.
            version: 1000,
            objects: BTreeMap::new(),
            history: Vec::new(),
            forgotten: 0,
            chunk_len_max: 500,
            lists: Vec::new(),
            faults: Faults::default(),
            rng: StdRng::seed_from_u64(seed),
            requests: Vec::new(),
            absent: Vec::new(),
            tokens: None,
            changed: watch::Sender::new(0),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often things go wrong from now on.
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// At most so many objects in one answer, whatever is asked for.
    pub(crate) fn set_chunk_len_max(&self, len: usize) {
        self.lock().chunk_len_max = len;
    }

    /// Kinds that the server has not.
    pub(crate) fn set_absent(&self, plurals: &[&str]) {
        self.lock().absent = plurals.iter().map(|plural| (*plural).to_owned()).collect();
    }

    /// Only who sends one of these bearer tokens is answered from now on.
    pub(crate) fn set_tokens(&self, tokens: &[&str]) {
        self.lock().tokens = Some(tokens.iter().map(|token| (*token).to_owned()).collect());
    }

    /// Makes or changes an object.
    pub(crate) fn set(&self, plural: &str, object: &Value) {
        self.lock().set(plural, object.clone());
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut world = self.lock();
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(mut object) = world.objects.remove(&key) else { return };
        world.version += 1;
        object["metadata"]["resourceVersion"] = world.version.to_string().into();
        world.happen(plural, "DELETED", object);
    }

    /// An object as it is there now.
    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.lock().objects.get(&key).cloned()
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let world = self.lock();
        let of_kind = world.objects.iter().filter(|((kind, ..), _)| kind == plural);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    /// Forgets what happened so far, as etcd does when it is compacted.
    pub(crate) fn forget(&self) {
        let mut world = self.lock();
        world.forgotten = world.version;
        world.history.clear();
    }

    /// Every request so far.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.lock().requests.clone()
    }
}

impl World {
    fn set(&mut self, plural: &str, mut object: Value) -> Value {
        self.version += 1;
        let text = |object: &Value, field: &str| {
            object["metadata"][field].as_str().unwrap_or_default().to_owned()
        };
        let key = (plural.to_owned(), text(&object, "namespace"), text(&object, "name"));
        let known = self.objects.get(&key).map(|known| known["metadata"]["uid"].clone());
        let is_new = known.is_none();
        let new = || format!("0d1f5a2c-0000-4000-8000-{:012x}", self.version).into();
        let uid = known.unwrap_or_else(new);
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = self.version.to_string().into();
        meta["uid"] = uid;
        meta["creationTimestamp"] = "2026-05-04T03:02:01Z".into();
        meta["generation"] = 1.into();
        meta["managedFields"] = json!([{
            "manager": "kubectl-client-side-apply", "operation": "Update", "apiVersion": "v1",
            "time": "2026-05-04T03:02:01Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}}}}}
        }]);
        self.objects.insert(key, object.clone());
        self.happen(plural, if is_new { "ADDED" } else { "MODIFIED" }, object.clone());
        object
    }

    fn happen(&mut self, plural: &str, what: &'static str, object: Value) {
        let version = self.version;
        self.history.push(Happened { version, plural: plural.to_owned(), what, object });
        self.changed.send_replace(version);
    }

    fn by_chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random_bool(probability)
    }
}

/// A server that answers, until it is dropped.
#[derive(Debug)]
pub(crate) struct ApiServer {
    address: SocketAddr,
    scheme: &'static str,
    runtime: Option<tokio::runtime::Runtime>,
}

impl ApiServer {
    /// Serves a store at an address; port 0 is any.
    pub(crate) fn start(store: Store, address: SocketAddr) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        Self::serve(store, listener)
    }

    /// Serves a store.
    pub(crate) fn serve(store: Store, listener: std::net::TcpListener) -> std::io::Result<Self> {
        Self::run(store, listener, None)
    }

    /// Serves a store to those who speak TLS.
    pub(crate) fn serve_tls(
        store: Store,
        listener: std::net::TcpListener,
        tls: Arc<ServerConfig>,
    ) -> std::io::Result<Self> {
        Self::run(store, listener, Some(tls))
    }

    fn run(
        store: Store,
        listener: std::net::TcpListener,
        tls: Option<Arc<ServerConfig>>,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("apiserver")
            .enable_all()
            .build()?;
        let app = Router::new().fallback(answer).with_state(store);
        let scheme = if tls.is_some() { "https" } else { "http" };
        runtime.spawn(async move {
            let listener =
                tokio::net::TcpListener::from_std(listener).expect("the listener does not block");
            match tls {
                Some(tls) => axum::serve(Tls::new(listener, tls), app).await,
                None => axum::serve(listener, app).await,
            }
        });
        Ok(Self { address, scheme, runtime: Some(runtime) })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The text of a kubeconfig that leads there.
    pub(crate) fn kubeconfig(&self) -> String {
        self.kubeconfig_of("", "token: secret")
    }

    /// The same, with what else it says of the cluster and of the user: fields of YAML, in one line.
    pub(crate) fn kubeconfig_of(&self, cluster: &str, user: &str) -> String {
        let Self { address, scheme, .. } = self;
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters: [{{name: lab, cluster: {{server: '{scheme}://{address}', {cluster}}}}}]\n\
             users: [{{name: node, user: {{{user}}}}}]\n\
             contexts: [{{name: lab, context: {{cluster: lab, user: node}}}}]\n"
        )
    }
}

/// Connections that have shaken hands.
struct Tls {
    made: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Tls {
    fn new(listener: tokio::net::TcpListener, config: Arc<ServerConfig>) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let (send, made) = mpsc::channel(16);
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(config);
            while let Ok((stream, client)) = listener.accept().await {
                let (acceptor, send) = (acceptor.clone(), send.clone());
                // Nobody waits for who is slow; and whoever does not believe this server has gone.
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = send.send((stream, client)).await;
                    }
                });
            }
        });
        Self { made, address }
    }
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.made.recv().await {
            Some(made) => made,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for ApiServer {
    /// All its connections break.
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        // Not on this thread, which may be one of another runtime.
        let end = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5)));
        // A panic there has been reported by itself.
        let _ = end.join();
    }
}

/// What a path names.
struct Target {
    group: String,
    plural: String,
    namespace: String,
    name: String,
    sub: String,
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let group = match parts.next()? {
            "api" => String::new(),
            "apis" => parts.next()?.to_owned(),
            _ => return None,
        };
        let _version = parts.next()?;
        let rest: Vec<&str> = parts.collect();
        let (namespace, rest) = match &rest[..] {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let mut rest = rest.iter().map(|part| (*part).to_owned());
        Some(Self {
            group,
            plural: rest.next()?,
            namespace: namespace.to_owned(),
            name: rest.next().unwrap_or_default(),
            sub: rest.next().unwrap_or_default(),
        })
    }
}

fn status(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16()
    })
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Response {
    (code, axum::Json(status(code, reason, message))).into_response()
}

async fn answer(State(store): State<Store>, request: Request) -> Response {
    let method = request.method().clone();
    let uri = request.uri().clone();
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let body = axum::body::to_bytes(request.into_body(), 4 << 20).await.unwrap_or_default();
    let query = |name: &str| {
        let pairs = uri.query().unwrap_or_default().split('&');
        let value = pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
        value.map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty())
    };
    let Some(target) = Target::of(uri.path()) else {
        return refusal(StatusCode::NOT_FOUND, "NotFound", "no such path");
    };
    let is_watch = query("watch").as_deref() == Some("true");
    let verb = match (&method, target.name.is_empty(), is_watch) {
        (&Method::GET, true, true) => "watch",
        (&Method::GET, true, false) => "list",
        (&Method::GET, false, _) => "get",
        (&Method::POST, ..) => "create",
        (&Method::PUT, ..) => "update",
        (&Method::PATCH, ..) => "patch",
        _ => return refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "no such verb"),
    };
    {
        let mut world = store.lock();
        if world.tokens.as_ref().is_some_and(|known| !token.is_some_and(|it| known.contains(&it))) {
            return refusal(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
        }
        let resource = match target.sub.as_str() {
            "" => target.plural.clone(),
            sub => format!("{}/{sub}", target.plural),
        };
        world.requests.push(Recorded {
            verb: verb.to_owned(),
            group: target.group.clone(),
            resource,
            namespace: target.namespace.clone(),
            name: target.name.clone(),
        });
        if world.absent.contains(&target.plural) {
            return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
        }
        let probability = world.faults.refuse;
        if world.by_chance(probability) {
            return if world.rng.random_bool(0.5) {
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "etcd has no leader")
            } else {
                let answer = refusal(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "slow down");
                ([("Retry-After", "0")], answer).into_response()
            };
        }
    }
    match verb {
        "watch" => watch_kind(&store, &target, query("resourceVersion")),
        "list" => list(&store, &target, query("limit"), query("continue")),
        "get" => match store.get(&target.plural, &target.namespace, &target.name) {
            Some(object) => axum::Json(object).into_response(),
            None => refusal(StatusCode::NOT_FOUND, "NotFound", "there is none"),
        },
        _ => write(&store, &target, verb, &body),
    }
}

fn list(store: &Store, target: &Target, limit: Option<String>, from: Option<String>) -> Response {
    let mut world = store.lock();
    let limit = limit.and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    // A list in one piece is one, whatever the chunks are.
    let limit = if limit == usize::MAX { limit } else { limit.min(world.chunk_len_max) };
    let (number, offset) = match from {
        Some(from) => {
            let parts = from.split_once("%2D").and_then(|(number, offset)| {
                Some((number.parse::<usize>().ok()?, offset.parse::<usize>().ok()?))
            });
            let probability = world.faults.forget;
            match parts {
                Some(parts) if !world.by_chance(probability) => parts,
                _ => {
                    let text = "The provided continue parameter is too old";
                    return refusal(StatusCode::GONE, "Expired", text);
                }
            }
        }
        None => {
            let of_kind = world.objects.iter().filter(|((kind, namespace, _), _)| {
                *kind == target.plural
                    && (target.namespace.is_empty() || *namespace == target.namespace)
            });
            let items: Vec<Value> = of_kind
                .map(|(_, object)| {
                    let mut object = object.clone();
                    // Those of a typed list do not say what they are.
                    if let Some(fields) = object.as_object_mut() {
                        fields.remove("kind");
                        fields.remove("apiVersion");
                    }
                    object
                })
                .collect();
            let version = world.version;
            world.lists.push((version, items));
            (world.lists.len() - 1, 0)
        }
    };
    let (version, items) = &world.lists[number];
    let end = offset.saturating_add(limit).min(items.len());
    let mut meta = json!({"resourceVersion": version.to_string()});
    if end < items.len() {
        meta["continue"] = format!("{number}-{end}").into();
        meta["remainingItemCount"] = (items.len() - end).into();
    }
    let body =
        json!({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items[offset..end]});
    let mut bytes = body.to_string().into_bytes();
    let probability = world.faults.cut;
    if world.by_chance(probability) {
        let len = world.rng.random_range(1..bytes.len());
        bytes.truncate(len);
        return broken(vec![bytes.into()]);
    }
    bytes.into_response()
}

/// An answer whose connection breaks before its end.
fn broken(pieces: Vec<Bytes>) -> Response {
    let pieces = pieces.into_iter().map(Ok).chain([Err(std::io::Error::other("cut"))]);
    Body::from_stream(futures_util::stream::iter(pieces)).into_response()
}

fn watch_kind(store: &Store, target: &Target, version: Option<String>) -> Response {
    let version: u64 = version.and_then(|version| version.parse().ok()).unwrap_or(0);
    {
        let mut world = store.lock();
        let probability = world.faults.forget;
        if version < world.forgotten || world.by_chance(probability) {
            let text = format!("too old resource version: {version} ({})", world.forgotten);
            let gone = status(StatusCode::GONE, "Expired", &text);
            return if world.rng.random_bool(0.5) {
                (StatusCode::GONE, axum::Json(gone)).into_response()
            } else {
                let line = json!({"type": "ERROR", "object": gone}).to_string() + "\n";
                line.into_response()
            };
        }
    }
    let (send, receive) = mpsc::channel::<Result<Bytes, std::io::Error>>(16);
    tokio::spawn(tell(store.clone(), target.plural.clone(), version, send));
    let stream = futures_util::stream::unfold(receive, |mut receive| async move {
        let next: Option<Result<Bytes, std::io::Error>> = receive.recv().await;
        next.map(|next| (next, receive))
    });
    Body::from_stream(stream).into_response()
}

/// What becomes of a watch.
enum Fate {
    Goes,
    Ends,
    Breaks,
}

async fn tell(
    store: Store,
    plural: String,
    mut version: u64,
    send: mpsc::Sender<Result<Bytes, std::io::Error>>,
) {
    let mut changed = store.lock().changed.subscribe();
    let mut told: Vec<String> = Vec::new();
    loop {
        changed.borrow_and_update();
        let (pieces, fate) = {
            let mut world = store.lock();
            let (pieces, fate) = lines(&mut world, &plural, version, &mut told);
            version = world.version;
            (pieces, fate)
        };
        for (ix, piece) in pieces.into_iter().enumerate() {
            if ix > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if send.send(Ok(piece)).await.is_err() {
                return;
            }
        }
        match fate {
            Fate::Goes => {}
            Fate::Ends => return,
            Fate::Breaks => {
                // The other side may have gone already.
                let _ = send.send(Err(std::io::Error::other("cut"))).await;
                return;
            }
        }
        tokio::select! {
            _ = send.closed() => return,
            more = changed.changed() => if more.is_err() { return },
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                // Real ones come every minute.
                let mark = json!({"type": "BOOKMARK", "object": {
                    "kind": "Bookmark", "apiVersion": "v1",
                    "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
                    "spec": {}, "status": {}
                }});
                if send.send(Ok((mark.to_string() + "\n").into())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What a watch is told after a version, in the pieces that it comes in.
fn lines(
    world: &mut World,
    plural: &str,
    version: u64,
    told: &mut Vec<String>,
) -> (Vec<Bytes>, Fate) {
    let faults = world.faults;
    let news: Vec<Happened> = (world.history.iter())
        .filter(|event| event.version > version && event.plural == plural)
        .cloned()
        .collect();
    let mut news = news.iter().map(|Happened { what, object, .. }| {
        json!({"type": what, "object": object}).to_string() + "\n"
    });
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut text = String::new();
    while let Some(first) = news.next() {
        if world.by_chance(faults.cut) {
            let len = world.rng.random_range(1..first.len());
            text.push_str(&first[..len]);
            pieces.push(text.into());
            return (pieces, Fate::Breaks);
        }
        if world.by_chance(faults.end) {
            pieces.push(text.into());
            return (pieces, Fate::Ends);
        }
        // Two in the wrong order come at once: a server that told the later one, and then broke off, would
        // have lied of what it told.
        let second = if world.by_chance(faults.swap) { news.next() } else { None };
        let is_swapped = second.is_some();
        for line in second.into_iter().chain([first]) {
            if !is_swapped && world.by_chance(faults.slow) {
                let middle = line.len() / 2;
                text.push_str(&line[..middle]);
                pieces.push(std::mem::take(&mut text).into());
                text.push_str(&line[middle..]);
            } else {
                text.push_str(&line);
            }
            told.push(line);
        }
        if world.by_chance(faults.again) {
            let ix = world.rng.random_range(0..told.len());
            text.push_str(&told[ix]);
        }
    }
    if !text.is_empty() {
        pieces.push(text.into());
    }
    (pieces, Fate::Goes)
}

/// What a server of 1.36 checks of an event of `events.k8s.io/v1` (pkg/apis/core/validation/events.go).
fn check_event(target: &Target, event: &Value) -> Result<(), String> {
    if target.plural != "events" {
        return Ok(());
    }
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    for (field, len_max) in [("reportingController", 63 + 254), ("reportingInstance", 128)] {
        if text(field).is_empty() || text(field).len() > len_max {
            return Err(format!("{field}: Required, of at most {len_max} bytes"));
        }
    }
    for field in ["action", "reason"] {
        if text(field).is_empty() || text(field).len() > 128 {
            return Err(format!("{field}: Required, of at most 128 bytes"));
        }
    }
    if text("note").len() > 1024 {
        return Err("note: can have at most 1024 bytes".to_owned());
    }
    if !["Normal", "Warning"].contains(&text("type")) {
        return Err("type: has invalid value".to_owned());
    }
    // A MicroTime.
    let is_time = text("eventTime").len() == "2026-05-04T03:02:01.000000Z".len();
    if !is_time || !text("eventTime").ends_with('Z') {
        return Err("eventTime: Required".to_owned());
    }
    match event["regarding"]["namespace"].as_str().unwrap_or_default() {
        "" if target.namespace == "default" => Ok(()),
        of if !of.is_empty() && of == target.namespace => Ok(()),
        _ => Err("regarding.namespace: does not match event.namespace".to_owned()),
    }
}

fn write(store: &Store, target: &Target, verb: &str, body: &[u8]) -> Response {
    let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
        return refusal(StatusCode::BAD_REQUEST, "BadRequest", "the body is no JSON");
    };
    let mut world = store.lock();
    if verb == "create" {
        if object["metadata"]["name"].is_null() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or("x-").to_owned();
            object["metadata"]["name"] = format!("{prefix}{}", world.version).into();
        }
        object["metadata"]["namespace"] = target.namespace.clone().into();
        if let Err(why) = check_event(target, &object) {
            return refusal(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &why);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = (target.plural.clone(), target.namespace.clone(), name);
        if world.objects.contains_key(&key) {
            return refusal(StatusCode::CONFLICT, "AlreadyExists", "it exists already");
        }
        let made = world.set(&target.plural, object);
        return (StatusCode::CREATED, axum::Json(made)).into_response();
    }
    let key = (target.plural.clone(), target.namespace.clone(), target.name.clone());
    let Some(known) = world.objects.get(&key).cloned() else {
        return refusal(StatusCode::NOT_FOUND, "NotFound", "there is none");
    };
    let new = if verb == "patch" {
        let mut new = known;
        merge(&mut new, &object);
        new
    } else {
        if object["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"] {
            let text = "the object has been modified";
            return refusal(StatusCode::CONFLICT, "Conflict", text);
        }
        object
    };
    axum::Json(world.set(&target.plural, new)).into_response()
}

/// RFC 7386; and lists of conditions are merged by their types, as in a strategic merge.
fn merge(into: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        match (name.as_str(), value) {
            (_, Value::Null) => {
                if let Some(fields) = into.as_object_mut() {
                    fields.remove(name);
                }
            }
            ("conditions", Value::Array(new)) => {
                let mut all = into[name].as_array().cloned().unwrap_or_default();
                all.retain(|old| new.iter().all(|new| new["type"] != old["type"]));
                all.extend(new.iter().cloned());
                into[name] = Value::Array(all);
            }
            (_, value) => merge(&mut into[name], value),
        }
    }
}
