//! The client of a daemon's admin socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::admin::api::{CountersReport, NodeStatus, PodStatus, PortRequest, Status};

/// A daemon's admin socket.
#[derive(Debug, Clone)]
pub struct Admin {
    socket: PathBuf,
}

impl Admin {
    /// The daemon that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The node and its health.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn status(&self) -> Result<Status> {
        self.get("/v1/status")
    }

    /// The nodes of the map.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn nodes(&self) -> Result<Vec<NodeStatus>> {
        self.get("/v1/nodes")
    }

    /// The pods on the node.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn pods(&self) -> Result<Vec<PodStatus>> {
        self.get("/v1/pods")
    }

    /// The node's counters.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn counters(&self) -> Result<CountersReport> {
        self.get("/v1/counters")
    }

    /// Makes an interface of the host a port.
    ///
    /// # Errors
    /// When the daemon does not answer or refuses.
    pub fn add_port(&self, request: &PortRequest) -> Result<PodStatus> {
        self.call("POST", "/v1/ports", Some(request))
    }

    /// Takes such a port away again.
    ///
    /// # Errors
    /// When the daemon does not answer or refuses.
    pub fn remove_port(&self, device: &str) -> Result<()> {
        self.call("DELETE", &format!("/v1/ports/{device}"), None::<&()>)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call("GET", path, None::<&()>)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let _ = (method, path, body);
        Err(anyhow::anyhow!("stand-in")).context("x")
    }
}
