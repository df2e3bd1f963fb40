//! Fetches over HTTPS, bounded in every direction, over the path that the configuration names.
//!
//! It believes nothing: an answer that is too long, too late, elsewhere, compressed beyond measure or
//! cut short is an error with a kind, and nothing of it is used.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{
        ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HOST, HeaderMap, HeaderName,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION, RETRY_AFTER, USER_AGENT,
    },
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// The longest wait that `Retry-After` is obeyed for; the service asks for an hour.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
const DEFAULT_WAIT: Duration = Duration::from_hours(1);
const REDIRECTS: usize = 4;
const CONNECT: Duration = Duration::from_secs(10);

/// How servers are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The interface that they are asked over; none: as the kernel routes.
    pub device: Option<String>,
    /// A proxy that is asked with CONNECT: `http://[USER:PASSWORD@]HOST:PORT`.
    pub proxy: Option<Uri>,
    /// Certificates of authorities that are believed besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long one request may take with all that belongs to it.
    pub timeout: Duration,
}

/// What a server said of an answer, to be asked next time whether it has another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// `ETag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// `Last-Modified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

impl Validators {
    fn of(headers: &HeaderMap) -> Self {
        // What is longer is no word to be kept.
        let text = |name: HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            (value.len() <= 256).then(|| value.to_owned())
        };
        Self {
            etag: text(ETAG),
            last_modified: text(LAST_MODIFIED),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// A whole one.
    New(Vec<u8>, Validators),
    /// The one that the validators are of.
    Same,
}

/// Why the service's answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ServiceError {
    /// A word for counters.
    pub kind: ErrorKind,
    /// What happened, where, and what to do.
    pub text: String,
    /// How long the service wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// A word for what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The certificates or addresses of the configuration cannot be used.
    Setup,
    /// A name that does not resolve, or nobody who answers.
    Connect,
    /// A certificate that is not believed, or no TLS.
    Tls,
    /// The proxy refused.
    Proxy,
    /// No whole answer in time.
    Timeout,
    /// An answer that ends too early, or is no HTTP.
    Broken,
    /// Another status than 200.
    Status,
    /// 429.
    RateLimited,
    /// Too many redirections, or one to somewhere else than HTTPS.
    Redirect,
    /// More bytes than a list has.
    TooLarge,
    /// A compression that was not asked for, or does not unpack.
    Encoding,
    /// An answer of the version method that says no version.
    Version,
    /// A version older than the one in use.
    Older,
    /// A list that the signer did not sign for this version.
    Signature,
    /// A list that is refused.
    List,
    /// A list that the guards hold back.
    Held,
    /// A mirror's folder that cannot be read.
    Folder,
    /// The disk refuses.
    Disk,
}

impl ErrorKind {
    /// The label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Status => "status",
            Self::RateLimited => "rate_limited",
            Self::Redirect => "redirect",
            Self::TooLarge => "too_large",
            Self::Encoding => "encoding",
            Self::Version => "version",
            Self::Older => "older",
            Self::Signature => "signature",
            Self::List => "list",
            Self::Held => "held",
            Self::Folder => "folder",
            Self::Disk => "disk",
        }
    }
}

impl ServiceError {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            retry_after: None,
        }
    }
}

/// Asks servers.
#[derive(Clone)]
pub(super) struct Fetcher {
    access: Access,
    tls: Arc<ClientConfig>,
}

impl Fetcher {
    /// Fails when no certificate authority can be read.
    pub(super) fn new(access: Access) -> Result<Self, ServiceError> {
        let tls = Arc::new(tls(&access)?);
        Ok(Self { access, tls })
    }

    /// A whole answer of at most `most` bytes. `shown` is what errors call the URL.
    pub(super) async fn get(
        &self,
        url: &str,
        shown: &str,
        most: usize,
    ) -> Result<Vec<u8>, ServiceError> {
        match self
            .get_newer(url, shown, most, &Validators::default())
            .await?
        {
            Fetched::New(bytes, _) => Ok(bytes),
            // Nobody asked for that.
            Fetched::Same => Ok(Vec::new()),
        }
    }

    /// The same, if it is another one than the one that `known` is of.
    pub(super) async fn get_newer(
        &self,
        url: &str,
        shown: &str,
        most: usize,
        known: &Validators,
    ) -> Result<Fetched, ServiceError> {
        let timeout = self.access.timeout;
        let answer = tokio::time::timeout(timeout, self.follow(url, shown, most, known)).await;
        answer.unwrap_or_else(|_| {
            Err(ServiceError::new(
                ErrorKind::Timeout,
                format!(
                    "{shown}: no whole answer within {} s",
                    timeout.as_secs_f32()
                ),
            ))
        })
    }

    async fn follow(
        &self,
        url: &str,
        shown: &str,
        most: usize,
        known: &Validators,
    ) -> Result<Fetched, ServiceError> {
        let mut url: Uri = url
            .parse()
            .map_err(|error| ServiceError::new(ErrorKind::Setup, format!("{url}: {error}")))?;
        for _ in 0..=REDIRECTS {
            let response = self.ask(&url, known).await?;
            let at = |kind, text: String| {
                let host = url.authority().map_or("", |it| it.as_str());
                ServiceError::new(kind, format!("https://{host}{}: {text}", url.path()))
            };
            match response.status() {
                StatusCode::OK => {
                    let validators = Validators::of(response.headers());
                    let bytes = body(response, most).await.map_err(|(k, t)| at(k, t))?;
                    return Ok(Fetched::New(bytes, validators));
                }
                StatusCode::NOT_MODIFIED if *known != Validators::default() => {
                    return Ok(Fetched::Same);
                }
                StatusCode::TOO_MANY_REQUESTS => {
                    let wait = retry_after(response.headers());
                    let text = format!("too many requests; asked again in {} s", wait.as_secs());
                    return Err(ServiceError {
                        retry_after: Some(wait),
                        ..at(ErrorKind::RateLimited, text)
                    });
                }
                status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                    url = redirection(&url, response.headers())
                        .map_err(|text| at(ErrorKind::Redirect, text))?;
                }
                status => {
                    return Err(ServiceError {
                        retry_after: response
                            .headers()
                            .contains_key(RETRY_AFTER)
                            .then(|| retry_after(response.headers())),
                        ..at(ErrorKind::Status, format!("answered {status}"))
                    });
                }
            }
        }
        Err(ServiceError::new(
            ErrorKind::Redirect,
            format!("{shown}: more than {REDIRECTS} redirections"),
        ))
    }

    /// One request on a connection of its own.
    async fn ask(&self, url: &Uri, known: &Validators) -> Result<Response<Incoming>, ServiceError> {
        let host = url.host().unwrap_or_default();
        let fail = |kind, text: String| ServiceError::new(kind, format!("{host}: {text}"));
        let stream = self.connect(url).await?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| fail(ErrorKind::Setup, error.to_string()))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .map_err(|error| fail(ErrorKind::Tls, tls_text(&error)))?;
        let broken = |error: hyper::Error| fail(ErrorKind::Broken, broken_text(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // It ends with the connection, or when nobody wants the answer any more.
        tokio::spawn(connection);
        let target = url.path_and_query().map_or("/", |it| it.as_str());
        let mut request = Request::get(target)
            .header(HOST, url.authority().map_or(host, |it| it.as_str()))
            .header(USER_AGENT, concat!("steer/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json, */*;q=0.5")
            .header(ACCEPT_ENCODING, "gzip");
        for (name, value) in [
            (IF_NONE_MATCH, &known.etag),
            (IF_MODIFIED_SINCE, &known.last_modified),
        ] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request
            .body(Body::empty())
            .map_err(|error| fail(ErrorKind::Setup, error.to_string()))?;
        sender.send_request(request).await.map_err(broken)
    }

    /// A connection to the server, or through the proxy to it.
    async fn connect(&self, url: &Uri) -> Result<TcpStream, ServiceError> {
        let host = url.host().unwrap_or_default();
        let port = url.port_u16().unwrap_or(443);
        let Some(proxy) = &self.access.proxy else {
            return self.dial(host, port).await;
        };
        let stream = self
            .dial(
                proxy.host().unwrap_or_default(),
                proxy.port_u16().unwrap_or(3128),
            )
            .await?;
        let refused = |text: String| {
            let at = proxy.host().unwrap_or_default();
            ServiceError::new(ErrorKind::Proxy, format!("the proxy {at}: {text}"))
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| refused(error.to_string()))?;
        tokio::spawn(connection.with_upgrades());
        let target = format!("{host}:{port}");
        let mut request = Request::connect(&target).header(HOST, &target);
        let authority = proxy.authority().map_or("", |it| it.as_str());
        if let Some((user, _)) = authority.rsplit_once('@') {
            request = request.header(
                "proxy-authorization",
                format!("Basic {}", base64(user.as_bytes())),
            );
        }
        let request = request
            .body(Body::empty())
            .map_err(|error| refused(error.to_string()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| refused(error.to_string()))?;
        if !response.status().is_success() {
            return Err(refused(format!(
                "answered {} to CONNECT {target}",
                response.status()
            )));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| refused(error.to_string()))?;
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
            _ => Err(refused("speaks before it is asked".into())),
        }
    }

    /// A TCP connection over the path: to the first address that answers.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, ServiceError> {
        let over = self
            .access
            .device
            .as_ref()
            .map_or_else(String::new, |device| format!(" over {device}"));
        let fail = |text: String| {
            ServiceError::new(
                ErrorKind::Connect,
                format!("{host} port {port}{over}: {text}"),
            )
        };
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
                .await
                .map_err(|error| fail(format!("the name does not resolve: {error}")))?
                .collect();
        let mut last = "the name has no address".to_owned();
        for address in addresses {
            match tokio::time::timeout(CONNECT, self.dial_address(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = format!("{}: {error}", address.ip()),
                Err(_) => last = format!("{}: no answer for {} s", address.ip(), CONNECT.as_secs()),
            }
        }
        Err(fail(last))
    }

    async fn dial_address(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(device) = &self.access.device {
            // The table of the path, and no other, for a socket of its device: see the rules.
            setsockopt(&socket, BindToDevice, &device.into())?;
        }
        socket.connect(address).await
    }
}

fn tls(access: &Access) -> Result<ClientConfig, ServiceError> {
    let fail = |text: String| ServiceError::new(ErrorKind::Setup, text);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &access.ca_file {
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| fail(format!("[feed] ca_file: {}: {error}", path.display())))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(fail(format!(
                "[feed] ca_file: {} holds no certificate of an authority",
                path.display()
            )));
        }
    }
    if roots.is_empty() {
        return Err(fail(
            "this box trusts no certificate authority: install the package ca-certificates, or name one with [feed] ca_file".into(),
        ));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn tls_text(error: &io::Error) -> String {
    let text = error.to_string();
    let clock = text.contains("not valid yet") || text.contains("expired");
    let remedy = if clock {
        "; compare this machine's clock with the certificate's dates"
    } else if text.contains("UnknownIssuer") {
        "; a box between opens TLS, or the mirror's authority has to be named with [feed] ca_file"
    } else {
        ""
    };
    format!("TLS: {text}{remedy}")
}

fn broken_text(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error).map_or_else(String::new, |it| format!(": {it}"));
    format!("{error}{source}")
}

/// The whole body, unpacked, if it has no more than `most` bytes.
async fn body(response: Response<Incoming>, most: usize) -> Result<Vec<u8>, (ErrorKind, String)> {
    let too_large = || {
        let text = format!("more than {most} bytes, which no list has");
        (ErrorKind::TooLarge, text)
    };
    let encoding = response.headers().get(CONTENT_ENCODING).cloned();
    let mut incoming = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| {
            (
                ErrorKind::Broken,
                format!("the answer is cut short: {}", broken_text(&error)),
            )
        })?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(data);
        }
    }
    match encoding.as_ref().map(hyper::header::HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(bytes),
        Some(b"gzip" | b"x-gzip") => {
            let unpack = move || {
                let mut plain = Vec::new();
                let limit = most as u64 + 1;
                flate2::read::GzDecoder::new(bytes.as_slice())
                    .take(limit)
                    .read_to_end(&mut plain)
                    .map(|_| plain)
            };
            let plain = tokio::task::spawn_blocking(unpack)
                .await
                .map_err(io::Error::other)
                .flatten()
                .map_err(|error| (ErrorKind::Encoding, format!("cannot be unpacked: {error}")))?;
            if plain.len() > most {
                return Err(too_large());
            }
            Ok(plain)
        }
        Some(other) => {
            let other = String::from_utf8_lossy(other).into_owned();
            Err((
                ErrorKind::Encoding,
                format!("is packed as {other:?}, which was not asked for"),
            ))
        }
    }
}

/// Where to go instead. Only to HTTPS: what is not is a portal, or worse.
fn redirection(from: &Uri, headers: &HeaderMap) -> Result<Uri, String> {
    let location = headers
        .get(LOCATION)
        .and_then(|it| it.to_str().ok())
        .ok_or("redirects to nowhere")?;
    let text = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority().map_or("", |it| it.as_str());
        format!("https://{authority}{location}")
    } else {
        location.to_owned()
    };
    let shown: String = location.chars().take(100).collect();
    match text.parse::<Uri>() {
        Ok(url) if url.scheme_str() == Some("https") && url.host().is_some() => Ok(url),
        _ => Err(format!(
            "redirects to {shown:?}, which is not HTTPS: perhaps a portal"
        )),
    }
}

/// Seconds; a date is too much to ask of a router's clock, and is taken as the service's usual hour.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get(RETRY_AFTER)
        .and_then(|it| it.to_str().ok()?.parse().ok());
    seconds
        .map_or(DEFAULT_WAIT, Duration::from_secs)
        .min(LONGEST_WAIT)
}

/// For the one header that needs it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .chain(&[0, 0])
            .take(3)
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        for digit in 0..4_usize {
            if digit <= chunk.len() {
                let index = word >> (18 - 6 * digit) & 63;
                text.push(DIGITS[index as usize] as char);
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, packed) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), packed);
        }
    }

    #[test]
    fn redirections_stay_with_https() {
        let from: Uri = "https://a.example/x?y".parse().unwrap();
        for (location, to) in [
            ("/z", Some("https://a.example/z")),
            ("https://b.example/z", Some("https://b.example/z")),
            ("http://b.example/z", None),
            ("//b.example/z", None),
            ("z", None),
        ] {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            let to = to.map(|to| to.parse::<Uri>().unwrap());
            assert_eq!(redirection(&from, &headers).ok(), to, "{location}");
        }
    }
}
