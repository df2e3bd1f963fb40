//! The client side, for the command line.

use std::path::{Path, PathBuf};

use axum::body::Body;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{Answer, Drain, Status};

/// More than any answer of the controller.
const LIMIT: usize = 16 << 20;

/// A connection to a running controller.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why the controller did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no controller answers on {socket}: {source}")]
    Absent {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody answered, but not as steer does.
    #[error(
        "the controller on {socket} answered badly: {reason}. Is it of another version? Compare `steer --version`, or restart it"
    )]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

impl Client {
    /// Names the socket; nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_path_buf(),
        }
    }

    /// What the controller is doing.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.request("GET", "/v1/status", None::<&()>).await
    }

    /// Has configuration and feed read again.
    pub async fn reload(&self) -> Result<Answer, ClientError> {
        self.request("POST", "/v1/reload", None::<&()>).await
    }

    /// Has everything removed.
    pub async fn detach(&self, drain: Drain) -> Result<Answer, ClientError> {
        self.request("POST", "/v1/detach", Some(&drain)).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Absent {
                    socket: self.socket.clone(),
                    source,
                })?;
        let bad = |reason: String| ClientError::Answer {
            socket: self.socket.clone(),
            reason,
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| bad(error.to_string()))?;
        tokio::spawn(connection);
        let body = match body {
            Some(body) => Body::from(serde_json::to_vec(body).map_err(|e| bad(e.to_string()))?),
            None => Body::empty(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "steer")
            .header("content-type", "application/json")
            .body(body)
            .map_err(|error| bad(error.to_string()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| bad(error.to_string()))?;
        let bytes = axum::body::to_bytes(Body::new(response.into_body()), LIMIT)
            .await
            .map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
    }
}
