//! A web service over HTTPS that says whatever a test wants: a list of a version, or anything else.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Result;
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::namespace::Namespace;

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then silence.
    Stall(Vec<u8>),
}

impl Reply {
    /// A whole answer with this status line, header lines and body.
    pub fn http(status: &str, headers: &str, body: &[u8]) -> Self {
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        Self::Raw(bytes)
    }

    /// 200 with JSON.
    pub fn json(value: &serde_json::Value) -> Self {
        Self::http(
            "200 OK",
            "content-type: application/json\r\n",
            value.to_string().as_bytes(),
        )
    }
}

type Script = Box<dyn Fn(&str) -> Reply + Send>;

/// The service; it answers as long as the program runs.
pub struct WebService {
    /// Where.
    pub address: SocketAddr,
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl WebService {
    /// Listens in a namespace, and writes the certificate that proves it into `pem`. `name` is what
    /// the certificate says.
    pub fn start(
        namespace: &Namespace,
        address: SocketAddr,
        name: &str,
        pem: &Path,
    ) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
        std::fs::write(pem, made.cert.pem())?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let config = Arc::new(config);
        let listener = namespace.run(|| Ok(TcpListener::bind(address)?))?;
        let address = listener.local_addr()?;
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(|_| {
            Reply::http("404 Not Found", "", b"")
        })));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (said, heard) = (Arc::clone(&script), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, script, asked) =
                    (Arc::clone(&config), Arc::clone(&said), Arc::clone(&heard));
                // A client that goes away is what some tests are about.
                thread::spawn(move || drop(answer(stream, config, &script, &asked)));
            }
        });
        Ok(Self {
            address,
            script,
            asked,
        })
    }

    /// From now on it answers so.
    pub fn say(&self, script: impl Fn(&str) -> Reply + Send + 'static) {
        *lock(&self.script) = Box::new(script);
    }

    /// The targets that were asked for since the last question.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.asked))
    }
}

fn answer(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    script: &Mutex<Script>,
    asked: &Mutex<Vec<String>>,
) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    let request = String::from_utf8_lossy(&request);
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    lock(asked).push(target.clone());
    let reply = lock(script)(&target);
    match reply {
        Reply::Raw(bytes) => {
            stream.write_all(&bytes)?;
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        Reply::Stall(bytes) => {
            stream.write_all(&bytes)?;
            stream.flush()?;
            // Until the client has had enough.
            let _ = stream.read(&mut [0]);
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
