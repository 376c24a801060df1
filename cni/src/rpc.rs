//! The way between the shim or the command line and the daemon: HTTP/1.1 with JSON over a Unix socket.

use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use crate::args::Environment;
use crate::error::CniError;

/// The path under which the daemon takes CNI requests.
pub const CNI_PATH: &str = "/v1/cni";

/// Largest answer that is read, in bytes: a node's whole state fits many times.
const BODY_LEN_MAX: usize = 64 << 20;

/// Longest line of an answer without end, in bytes.
const LINE_LEN_MAX: usize = 1 << 20;

/// How long a connection may take. On a Unix socket it takes microseconds, unless the daemon hangs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer may take. Runtimes give a plugin a minute or more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A CNI call, on its way to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniRequest {
    /// The environment: command, container, namespace, interface, arguments.
    #[serde(flatten)]
    pub environment: Environment,
    /// The network configuration, as the runtime wrote it.
    pub config: Value,
    /// The addresses that another IPAM plugin chose, where the configuration names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated: Option<Vec<IpAddr>>,
}

/// The daemon's answer. Both kinds come with HTTP status 200: the call itself worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CniResponse {
    /// It was done. For ADD with the result in the caller's version, otherwise with nothing.
    Result(Option<Value>),
    /// It was not.
    Error(CniError),
}

impl From<Result<Option<Value>, CniError>> for CniResponse {
    fn from(outcome: Result<Option<Value>, CniError>) -> Self {
        match outcome {
            Ok(result) => Self::Result(result),
            Err(error) => Self::Error(error),
        }
    }
}

/// Why a request got no answer. Each variant names the socket and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("weftd does not run: cannot connect to {}: {cause}. {}", socket.display(), advice(cause))]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// No answer in time.
    #[error(
        "weftd did not answer on {} within {seconds} s: look at its log (`journalctl -u weftd`)",
        socket.display()
    )]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The connection broke.
    #[error(
        "the connection to weftd on {} broke: {why}. If it restarts, try again; otherwise look at \
         its log (`journalctl -u weftd`)",
        socket.display()
    )]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        why: String,
    },
    /// The daemon refused the request.
    #[error("weftd on {} refused the request ({status}): {message}", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The HTTP status.
        status: u16,
        /// What the daemon said.
        message: String,
    },
    /// The answer is not what was expected.
    #[error(
        "the answer of weftd on {} cannot be read ({why}): are this program and weftd of the same \
         version?",
        socket.display()
    )]
    Unreadable {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl ClientError {
    /// Whether the daemon was not reached or did not finish, so that trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { cause, .. } => cause.kind() != io::ErrorKind::PermissionDenied,
            Self::Timeout { .. } | Self::Broken { .. } => true,
            Self::Refused { .. } | Self::Unreadable { .. } => false,
        }
    }
}

/// A client of the daemon. Each request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    answer_timeout: Duration,
}

impl Client {
    /// A client of the daemon that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), answer_timeout: ANSWER_TIMEOUT }
    }

    /// Sets how long an answer may take; the default is 30 s.
    #[must_use]
    pub fn with_answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for `path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Sends `body` to `path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.unreadable(&error))?;
        self.request(Method::POST, path, body.into()).await
    }

    /// Takes `path` away.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::DELETE, path, Bytes::new()).await
    }

    /// Sends a CNI call.
    ///
    /// # Errors
    /// When the daemon gave no answer. An answer that says no is not an error here.
    pub async fn cni(&self, request: &CniRequest) -> Result<CniResponse, ClientError> {
        self.post(CNI_PATH, request).await
    }

    /// Asks for `path`, whose answer is an object of JSON on each line and may have no end. Each goes to `each`, until
    /// that breaks off or the daemon ends. `begun` is called when the daemon has begun to answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        begun: impl FnOnce(),
        mut each: impl FnMut(T) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        let _driver = AbortOnDrop(tokio::spawn(connection).abort_handle());
        let request = self.build(Method::GET, path, Bytes::new())?;
        let response = self.within(self.answer_timeout, sender.send_request(request)).await?;
        let response = response.map_err(|error| self.broken(&error))?;
        let (status, mut body) = (response.status(), response.into_body());
        if !status.is_success() {
            let body = Limited::new(body, BODY_LEN_MAX).collect().await;
            let body = body.map(Collected::to_bytes).map_err(|error| self.broken(&error))?;
            return Err(self.refused(status, &body));
        }
        begun();
        let mut waiting = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            waiting.extend_from_slice(&data);
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                let item =
                    serde_json::from_slice(&line).map_err(|error| self.unreadable(&error))?;
                if each(item).is_break() {
                    return Ok(());
                }
            }
            if waiting.len() > LINE_LEN_MAX {
                return Err(self.unreadable(&"a line has no end"));
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let stream = self.within(CONNECT_TIMEOUT, UnixStream::connect(&self.socket)).await?;
        stream.map_err(|cause| ClientError::Connect { socket: self.socket.clone(), cause })
    }

    fn build(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "weftd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.unreadable(&error))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> ClientError {
        ClientError::Refused {
            socket: self.socket.clone(),
            status: status.as_u16(),
            message: refusal(body),
        }
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let stream = self.connect().await?;
        let (status, body) =
            self.within(self.answer_timeout, self.exchange(stream, method, path, body)).await??;
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        // 204 No Content: the answer is that there is nothing to say.
        let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
        serde_json::from_slice(&body).map_err(|error| self.unreadable(&error))
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        // Ends with the sender, or at the latest with this call.
        let _driver = AbortOnDrop(tokio::spawn(connection).abort_handle());
        let request = self.build(method, path, body)?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_LEN_MAX).collect().await;
        let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(error) => self.unreadable(&error),
            Err(error) => self.broken(&error),
        })?;
        Ok((status, body.to_bytes()))
    }

    async fn within<T>(
        &self,
        timeout: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(timeout, work).await.map_err(|_| ClientError::Timeout {
            socket: self.socket.clone(),
            seconds: timeout.as_secs(),
        })
    }

    fn broken(&self, why: &impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), why: why.to_string() }
    }

    fn unreadable(&self, why: &impl ToString) -> ClientError {
        ClientError::Unreadable { socket: self.socket.clone(), why: why.to_string() }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The daemon refuses with `{"error": "why"}` or with plain text.
fn refusal(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.error,
        Err(_) => String::from_utf8_lossy(body).chars().take(1000).collect(),
    }
}

fn advice(cause: &io::Error) -> &'static str {
    if cause.kind() == io::ErrorKind::PermissionDenied {
        "The socket is for root: run this as root (sudo)"
    } else {
        "Start it (`systemctl start weftd`), or name the right socket"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::args::Command;
    use crate::error::Code;

    fn request() -> CniRequest {
        CniRequest {
            environment: Environment {
                command: Command::Add,
                container_id: "c0ffee".into(),
                netns: "/run/netns/blue".into(),
                ifname: "eth0".into(),
                args: String::new(),
            },
            config: json!({ "name": "weft" }),
            delegated: None,
        }
    }

    /// Answers one request with `response`, and returns what was asked.
    async fn serve_once(listener: UnixListener, response: String) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        let mut chunk = [0; 4096];
        while !asked.ends_with(b"}") && !asked.ends_with(b"\r\n\r\n") {
            let len = stream.read(&mut chunk).await.unwrap();
            assert_ne!(len, 0, "the client hung up");
            asked.extend_from_slice(&chunk[..len]);
        }
        stream.write_all(response.as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap()
    }

    fn http(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    /// A client, and what it gets from a daemon that answers with `response`.
    async fn ask(response: String) -> (Result<CniResponse, ClientError>, String) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("weftd.sock");
        let daemon = tokio::spawn(serve_once(UnixListener::bind(&socket).unwrap(), response));
        let answer = Client::new(&socket).cni(&request()).await;
        (answer, daemon.await.unwrap())
    }

    #[test]
    fn the_form_on_the_socket() {
        assert_eq!(
            json!(request()),
            json!({
                "command": "ADD", "container_id": "c0ffee", "netns": "/run/netns/blue",
                "ifname": "eth0", "args": "", "config": { "name": "weft" }
            })
        );
        assert_eq!(json!(CniResponse::Result(None)), json!({ "result": null }));
        let error = CniResponse::Error(CniError::new(Code(101), "full"));
        assert_eq!(json!(error), json!({ "error": { "code": 101, "msg": "full" } }));
        assert_eq!(serde_json::from_value::<CniResponse>(json!(error)).unwrap(), error);
    }

    #[tokio::test]
    async fn a_request_is_answered() {
        let (answer, asked) = ask(http("200 OK", r#"{"result":{"cniVersion":"1.0.0"}}"#)).await;
        let expected = CniResponse::Result(Some(json!({ "cniVersion": "1.0.0" })));
        assert_eq!(answer.unwrap(), expected);
        assert!(asked.starts_with("POST /v1/cni HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\"command\":\"ADD\""), "{asked}");
    }

    #[tokio::test]
    async fn a_get_has_no_body() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("weftd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = tokio::spawn(serve_once(listener, http("200 OK", "[1,2]")));
        let answer: Vec<u8> = Client::new(&socket).get("/v1/nodes").await.unwrap();
        assert_eq!(answer, [1, 2]);
        assert!(daemon.await.unwrap().starts_with("GET /v1/nodes HTTP/1.1\r\n"));
    }

    #[tokio::test]
    async fn errors_name_the_socket_and_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("weftd.sock");
        let missing = Client::new(&socket).get::<Value>("/").await.unwrap_err();
        assert!(missing.is_transient());
        let text = missing.to_string();
        assert!(text.contains("weftd.sock") && text.contains("systemctl start weftd"), "{text}");

        drop(UnixListener::bind(&socket).unwrap());
        let stale = Client::new(&socket).get::<Value>("/").await.unwrap_err();
        assert!(matches!(stale, ClientError::Connect { .. }), "{stale}");

        let (refused, _) = ask(http("503 Busy", r#"{"error":"starting"}"#)).await;
        let refused = refused.unwrap_err();
        assert!(!refused.is_transient());
        assert!(refused.to_string().ends_with("(503): starting"), "{refused}");

        let (unreadable, _) = ask(http("200 OK", "hello")).await;
        assert!(matches!(unreadable, Err(ClientError::Unreadable { .. })));

        let (cut, _) = ask("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".into()).await;
        assert!(matches!(cut, Err(ClientError::Broken { .. })), "{cut:?}");
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("weftd.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket).with_answer_timeout(Duration::from_millis(20));
        let error = client.get::<Value>("/").await.unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }
}
