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
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
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
    /// These bytes, and then blanks, one after the other, for as long as the client waits.
    Drip(Vec<u8>),
}

/// How the service proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By a certificate of its authority.
    Good,
    /// By one that is over.
    Expired,
    /// By one that is not valid yet, as for a client whose clock is behind.
    Early,
    /// By one for another name.
    OtherName,
    /// By one of an authority that the client does not know.
    UnknownAuthority,
    /// Not at all: there is no TLS.
    Plain,
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
    name: String,
    authority: CertifiedIssuer<'static, KeyPair>,
    shared: Arc<Shared>,
}

struct Shared {
    /// None: no TLS.
    tls: Mutex<Option<Arc<ServerConfig>>>,
    script: Mutex<Script>,
    asked: Mutex<Vec<String>>,
}

impl WebService {
    /// Listens in a namespace, and writes its authority's certificate into `pem`. `name` is what its
    /// own certificate says.
    pub fn start(
        namespace: &Namespace,
        address: SocketAddr,
        name: &str,
        pem: &Path,
    ) -> Result<Self> {
        let authority = issuer("the mirror's authority")?;
        std::fs::write(pem, authority.pem())?;
        let listener = namespace.run(|| Ok(TcpListener::bind(address)?))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            tls: Mutex::new(None),
            script: Mutex::new(Box::new(|_| Reply::http("404 Not Found", "", b""))),
            asked: Mutex::default(),
        });
        let service = Self {
            address,
            name: name.into(),
            authority,
            shared: Arc::clone(&shared),
        };
        service.prove(Proof::Good)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that goes away is what some tests are about.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Ok(service)
    }

    /// From now on it answers so.
    pub fn say(&self, script: impl Fn(&str) -> Reply + Send + 'static) {
        *lock(&self.shared.script) = Box::new(script);
    }

    /// From now on it proves so who it is.
    pub fn prove(&self, proof: Proof) -> Result<()> {
        let name = match proof {
            Proof::OtherName => "portal.example",
            _ => &self.name,
        };
        let mut parameters = CertificateParams::new([name.to_owned()])?;
        (parameters.not_before, parameters.not_after) = match proof {
            Proof::Expired => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Proof::Early => (date_time_ymd(2200, 1, 1), date_time_ymd(2300, 1, 1)),
            _ => (date_time_ymd(2000, 1, 1), date_time_ymd(2300, 1, 1)),
        };
        let key = KeyPair::generate()?;
        let certificate = match proof {
            Proof::UnknownAuthority => {
                let stranger = issuer("a box between")?;
                parameters.signed_by(&key, &stranger)?
            }
            _ => parameters.signed_by(&key, &self.authority)?,
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        *lock(&self.shared.tls) = (proof != Proof::Plain).then(|| Arc::new(config));
        Ok(())
    }

    /// The targets that were asked for since the last question.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.asked))
    }
}

/// A new authority.
fn issuer(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut parameters = CertificateParams::new(vec![])?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(
        parameters,
        KeyPair::generate()?,
    )?)
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let config = lock(&self.tls).clone();
        let Some(config) = config else {
            let _ = stream.read(&mut [0; 64])?;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
            return Ok(());
        };
        let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.extend(byte);
        }
        let request = String::from_utf8_lossy(&request);
        let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
        lock(&self.asked).push(target.clone());
        let reply = lock(&self.script)(&target);
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
            Reply::Drip(bytes) => {
                stream.write_all(&bytes)?;
                loop {
                    stream.write_all(b" ")?;
                    stream.flush()?;
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
