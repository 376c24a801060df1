//! Requests to an API server: who it is, who this is, and what comes back.
//!
//! A token and a CA from files are read again every minute, by `kube_client`. What else a kubeconfig names is
//! read again when the server refuses who this is, or nobody answers.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use kube_client::client::Body;
use kube_client::config::{KubeConfigOptions, Kubeconfig};
use kube_client::{Client, Config};

use super::reflector::Failure;
use super::wire;

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// How long a watch may be silent. Servers send bookmarks every minute; one that is not heard for so long is
/// not there any more, or the way to it is not.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Most bytes of an answer. A chunk of 500 objects, as large as they may be, is below it.
const ANSWER_LEN_MAX: usize = 768 << 20;

/// Most bytes of a line of a watch: etcd holds no object of more than 1.5 MB.
const LINE_LEN_MAX: usize = 16 << 20;

/// How to reach an API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The file that says it; `None` within a pod, whose service account does.
    pub kubeconfig: Option<PathBuf>,
    /// Servers to be asked instead of the one that is told there, in this order: `https://address:port`.
    pub servers: Vec<String>,
    /// How often credentials are read again at most.
    pub renew_pause: Duration,
}

impl Default for Access {
    fn default() -> Self {
        Self { kubeconfig: None, servers: Vec::new(), renew_pause: Duration::from_secs(60) }
    }
}

/// API servers that are asked one after the other.
#[derive(Debug, Clone)]
pub struct Api {
    access: Arc<Access>,
    current: Arc<Mutex<Current>>,
}

struct Current {
    clients: Vec<(String, Client)>,
    ix: usize,
    made: Instant,
    renewing: bool,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<&str> = self.clients.iter().map(|(server, _)| server.as_str()).collect();
        f.debug_struct("Current").field("servers", &servers).field("ix", &self.ix).finish()
    }
}

impl Api {
    /// Reads who is to be asked and who this is. Nobody is asked yet.
    ///
    /// # Errors
    /// When that cannot be read; in words.
    pub async fn new(access: Access) -> Result<Self, String> {
        let clients = clients(&access).await?;
        let current = Current { clients, ix: 0, made: Instant::now(), renewing: false };
        Ok(Self { access: Arc::new(access), current: Arc::new(Mutex::new(current)) })
    }

    /// The server that is asked at present.
    pub fn server(&self) -> String {
        let current = self.lock();
        current.clients[current.ix].0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for something that is answered at once.
    ///
    /// # Errors
    /// When there is no answer, or it says no.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// Sends a JSON body of this media type.
    ///
    /// # Errors
    /// When there is no answer, or it says no.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        media_type: &'static str,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        self.call(method, path, Some((media_type, body))).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Vec<u8>, Failure> {
        let answer = async {
            let response = self.open(method, path, body).await?;
            collect(response).await
        };
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                Err(Failure::Unreachable(format!("no answer within {} s", ANSWER_MAX.as_secs())))
            }
        }
    }

    /// Opens a watch.
    ///
    /// # Errors
    /// When there is no answer, or it says no.
    pub async fn watch(&self, path: &str) -> Result<Lines, Failure> {
        let opened = self.open(Method::GET, path, None);
        match tokio::time::timeout(ANSWER_MAX, opened).await {
            Ok(response) => Ok(Lines::new(response?)),
            Err(_elapsed) => {
                Err(Failure::Unreachable(format!("no answer within {} s", ANSWER_MAX.as_secs())))
            }
        }
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Response<Body>, Failure> {
        let (ix, client) = {
            let current = self.lock();
            (current.ix, current.clients[current.ix].1.clone())
        };
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(ACCEPT, "application/json").header(ACCEPT_ENCODING, "identity");
        let body = match body {
            Some((media_type, body)) => {
                request = request.header(CONTENT_TYPE, media_type);
                Body::from(body)
            }
            None => Body::empty(),
        };
        let request = request.body(body).map_err(|error| {
            Failure::Unreachable(format!("{path} cannot be asked for: {error}"))
        })?;
        let response = match client.send(request).await {
            Ok(response) => response,
            Err(error) => {
                self.turn_from(ix);
                self.renew();
                return Err(Failure::Unreachable(advised(words(&error))));
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == http::StatusCode::UNAUTHORIZED {
            self.renew();
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = collect(response).await.unwrap_or_default();
        Err(wire::failure(status.as_u16(), retry_after.map(Duration::from_secs), &body))
    }

    /// Asks the next server from now on, unless somebody has turned from this one already.
    fn turn_from(&self, ix: usize) {
        let mut current = self.lock();
        if current.ix == ix {
            current.ix = (ix + 1) % current.clients.len();
        }
    }

    /// Reads credentials again, beside whatever goes on.
    fn renew(&self) {
        {
            let mut current = self.lock();
            if current.renewing || current.made.elapsed() < self.access.renew_pause {
                return;
            }
            current.renewing = true;
        }
        let api = self.clone();
        tokio::spawn(async move {
            let clients = clients(&api.access).await;
            let mut current = api.lock();
            current.renewing = false;
            current.made = Instant::now();
            match clients {
                Ok(clients) => {
                    current.ix %= clients.len();
                    current.clients = clients;
                }
                Err(error) => tracing::warn!("the API server's clients stay as they are: {error}"),
            }
        });
    }
}

/// One client for each server; at least one.
async fn clients(access: &Access) -> Result<Vec<(String, Client)>, String> {
    let mut config = match &access.kubeconfig {
        Some(file) => {
            let read = Kubeconfig::read_from(file)
                .map_err(|error| format!("{} cannot be used: {error}", file.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|error| format!("{} cannot be used: {error}", file.display()))?
        }
        None => Config::incluster_env().map_err(|error| {
            format!(
                "this is no pod with a service account ({error}): set kubeconfig under [objects], or run weftd \
                 as in conf/kubernetes/weft.yaml"
            )
        })?,
    };
    // As client-go, take off the end of line that people leave in a file. The file is read again when the server
    // refuses the token.
    let auth = &mut config.auth_info;
    if let Some(file) = &auth.token_file {
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| format!("{file} cannot be read: {error}"))?;
        if text.trim() != text {
            auth.token = Some(text.trim().to_owned().into());
            auth.token_file = None;
        }
    }
    let mut urls = Vec::new();
    for server in &access.servers {
        let url: Uri = server.parse().map_err(|error| format!("{server} is no URL: {error}"))?;
        urls.push(url);
    }
    if urls.is_empty() {
        urls.push(config.cluster_url.clone());
    }
    let client = |url: Uri| {
        let name = url.to_string().trim_end_matches('/').to_owned();
        let mut config = config.clone();
        config.cluster_url = url;
        config.connect_timeout = Some(CONNECT_MAX);
        // When to try again is decided by who asks.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| format!("{name}: {error}"))?;
        Ok((name, client))
    };
    urls.into_iter().map(client).collect()
}

async fn collect(response: Response<Body>) -> Result<Vec<u8>, Failure> {
    let mut stream = response.into_body().into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Failure::Unreachable(words(&error)))?;
        if bytes.len() + chunk.len() > ANSWER_LEN_MAX {
            let text = format!("an answer has more than {ANSWER_LEN_MAX} bytes");
            return Err(Failure::Unreachable(text));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The same, with what to do where people can do something.
fn advised(text: String) -> String {
    let advice = if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        ". Its certificate is not of the CA that this node was given: certificate-authority in the kubeconfig, \
         or the service account's ca.crt"
    } else if text.contains("not valid for name") || text.contains("NotValidForName") {
        ". Name it under api_servers in [objects] as its certificate does"
    } else {
        ""
    };
    text + advice
}

/// An error with all its causes, each said once.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The lines of a watch.
pub struct Lines {
    stream: futures_util::stream::BoxStream<'static, Result<Vec<u8>, Failure>>,
    buffer: Vec<u8>,
    /// Up to here the buffer is given out.
    used: usize,
    /// Up to here there is no line's end in it.
    searched: usize,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl Lines {
    fn new(response: Response<Body>) -> Self {
        let stream = response.into_body().into_data_stream().map(|chunk| match chunk {
            Ok(chunk) => Ok(chunk.to_vec()),
            Err(error) => Err(Failure::Unreachable(words(&error))),
        });
        Self { stream: stream.boxed(), buffer: Vec::new(), used: 0, searched: 0 }
    }

    /// The next line, if one is there already.
    pub fn ready(&mut self) -> Option<&[u8]> {
        let at = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(at) = at else {
            self.buffer.drain(..self.used);
            self.used = 0;
            self.searched = self.buffer.len();
            return None;
        };
        let (begin, end) = (self.used, self.searched + at);
        self.used = end + 1;
        self.searched = self.used;
        Some(&self.buffer[begin..end])
    }

    /// Waits for more. False when the watch has ended, or nobody says anything any more; what is left is no
    /// whole line then. May be cancelled.
    ///
    /// # Errors
    /// When the connection breaks, or a line has no end.
    pub async fn more(&mut self) -> Result<bool, Failure> {
        let Ok(chunk) = tokio::time::timeout(SILENCE_MAX, self.stream.next()).await else {
            return Ok(false);
        };
        let Some(chunk) = chunk else { return Ok(false) };
        self.buffer.extend_from_slice(&chunk?);
        if self.buffer.len() - self.used > LINE_LEN_MAX {
            let text = format!("an event has more than {LINE_LEN_MAX} bytes");
            return Err(Failure::Unreachable(text));
        }
        Ok(true)
    }
}
