//! The client side, for the command line.

use std::path::{Path, PathBuf};

use axum::body::Body;
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{Answer, Drain, Order, Status};

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
    #[error("no controller answers on {socket}: {source}. Start it: steer run")]
    Absent {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The controller ended before it answered.
    #[error("the controller on {socket} is ending. Ask again in a moment")]
    Ending {
        /// The socket.
        socket: PathBuf,
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

    /// Has the endpoint list changed.
    pub async fn endpoints(&self, order: &Order) -> Result<Answer, ClientError> {
        self.request("POST", "/v1/endpoints", Some(order)).await
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
        let ending = || ClientError::Ending {
            socket: self.socket.clone(),
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
        // A connection that ends without an answer is a controller that ends: what is no HTTP is an
        // error of parsing.
        let response = sender.send_request(request).await.map_err(|error| {
            if error.is_parse() && !error.is_incomplete_message() {
                bad(error.to_string())
            } else {
                ending()
            }
        })?;
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            return Err(ending());
        }
        let bytes = axum::body::to_bytes(Body::new(response.into_body()), LIMIT)
            .await
            .map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
    };

    use super::*;

    /// What a client hears from somebody who takes the request, says `words`, and goes.
    async fn hear(words: &'static [u8]) -> ClientError {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("steer.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(words).unwrap();
        });
        let error = Client::new(&socket).status().await.unwrap_err();
        server.join().unwrap();
        error
    }

    #[tokio::test]
    async fn a_controller_that_goes_before_it_answers_is_ending() {
        for words in [
            &b""[..],
            b"HTTP/1.1 200",
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        ] {
            let error = hear(words).await;
            assert!(matches!(error, ClientError::Ending { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn somebody_else_on_the_socket_is_not_taken_for_a_controller() {
        let error = hear(b"SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(error, ClientError::Answer { .. }), "{error}");
    }
}
