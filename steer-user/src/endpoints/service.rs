//! The client of Microsoft's endpoint web service, or of a mirror of it: HTTPS, bounded in every
//! direction, over the path that the configuration names.
//!
//! It believes nothing: an answer that is too long, too late, elsewhere, compressed beyond measure or
//! cut short is an error with a kind, and nothing of it is used.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
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
        ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HOST, HeaderMap, LOCATION, RETRY_AFTER,
        USER_AGENT,
    },
};
use hyper_util::rt::TokioIo;
use minisign_verify::{PublicKey, Signature};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::{FeedVersion, Instance, ServiceArea, explanation, explanation::Explanation, limits};

/// Microsoft's own.
pub const MICROSOFT: &str = "https://endpoints.office.com";
/// The longest wait that `Retry-After` is obeyed for; the service asks for an hour.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
const DEFAULT_WAIT: Duration = Duration::from_hours(1);
const REDIRECTS: usize = 4;
const CONNECT: Duration = Duration::from_secs(10);
/// An answer of the version method has some hundred bytes.
const VERSION_BYTES: usize = 64 << 10;
/// A signature has some 300 bytes.
const SIGNATURE_BYTES: usize = 4 << 10;
const LIST_BYTES: usize = 16 << 20;
const _: () = assert!(LIST_BYTES as u64 == limits::FILE_BYTES);

/// What is asked, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Before `/version`; `https` only, without a slash at its end.
    pub base: String,
    /// The cloud.
    pub instance: Instance,
    /// The tenant whose names take the place of wildcards.
    pub tenant: Option<String>,
    /// The areas that are asked for; empty: all.
    pub areas: Vec<ServiceArea>,
    /// Whether IPv6 prefixes are wanted.
    pub ipv6: bool,
    /// The interface that it is asked over; none: as the kernel routes.
    pub device: Option<String>,
    /// A proxy that is asked with CONNECT: `http://[USER:PASSWORD@]HOST:PORT`.
    pub proxy: Option<Uri>,
    /// Certificates of authorities that are believed besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Who must have signed a list; none: nobody.
    pub signer: Option<Signer>,
    /// How long one request may take with all that belongs to it.
    pub timeout: Duration,
}

/// The public key of whoever signs a mirror's lists (Ed25519, as minisign writes it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer(PublicKey);

impl FromStr for Signer {
    type Err = String;

    /// Of the second line of a `.pub` file. Fails with what is wrong.
    fn from_str(text: &str) -> Result<Self, String> {
        let no_key = |error| format!("{text:?} is no minisign public key: {error}");
        PublicKey::from_base64(text).map(Self).map_err(no_key)
    }
}

impl Signer {
    /// Whether this is the list of that cloud and version, by the word of the signer: a list that
    /// was signed for another version is a replay. Fails with what is wrong.
    fn check(
        &self,
        list: &[u8],
        signature: &[u8],
        instance: Instance,
        version: FeedVersion,
    ) -> Result<(), String> {
        let text = std::str::from_utf8(signature).map_err(|error| error.to_string())?;
        let signature = Signature::decode(text).map_err(|error| error.to_string())?;
        self.0
            .verify(list, &signature, false)
            .map_err(|error| error.to_string())?;
        let (said, wanted) = (signature.trusted_comment(), format!("{instance} {version}"));
        if said == wanted {
            return Ok(());
        }
        Err(format!("it was signed as {said:?}, not as {wanted:?}"))
    }
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
            Self::Disk => "disk",
        }
    }
}

impl ServiceError {
    pub(super) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            retry_after: None,
        }
    }
}

/// Asks the service.
#[derive(Clone)]
pub struct Client {
    service: Service,
    guid: String,
    tls: Arc<ClientConfig>,
}

impl Client {
    /// A client with this machine's GUID. Fails when no certificate authority can be read.
    pub fn new(service: Service, guid: String) -> Result<Self, ServiceError> {
        let tls = Arc::new(tls(&service)?);
        Ok(Self { service, guid, tls })
    }

    /// The version that the service has now.
    pub async fn version(&self) -> Result<FeedVersion, ServiceError> {
        let method = format!("/version/{}", self.service.instance);
        let bytes = self.get(&method, "", VERSION_BYTES).await?;
        latest(&bytes, self.service.instance).ok_or_else(|| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
            ServiceError::new(
                ErrorKind::Version,
                format!(
                    "the version method of {} says no version but {text:?}: perhaps a proxy's or a portal's page",
                    self.service.base
                ),
            )
        })
    }

    /// The list of this version, as the service writes it.
    pub async fn endpoints(&self, version: FeedVersion) -> Result<Vec<u8>, ServiceError> {
        let mut options = String::new();
        if let Some(tenant) = &self.service.tenant {
            options.push_str("&TenantName=");
            options.push_str(tenant);
        }
        if !self.service.areas.is_empty() {
            let areas: Vec<&str> = self.service.areas.iter().map(ServiceArea::as_str).collect();
            options.push_str("&ServiceAreas=");
            options.push_str(&areas.join(","));
        }
        if !self.service.ipv6 {
            options.push_str("&NoIPv6=true");
        }
        let method = format!("/endpoints/{}", self.service.instance);
        let list = self.get(&method, &options, LIST_BYTES).await?;
        if let Some(signer) = &self.service.signer {
            let method = format!("{method}.minisig");
            let signature = self.get(&method, "", SIGNATURE_BYTES).await?;
            signer
                .check(&list, &signature, self.service.instance, version)
                .map_err(|reason| {
                    let base = &self.service.base;
                    let text = format!(
                        "{base}{method}: the list is not signed by [feed] public_key: {reason}"
                    );
                    ServiceError::new(ErrorKind::Signature, text)
                })?;
        }
        Ok(list)
    }

    /// Whether lists must be signed.
    pub(super) fn is_signed(&self) -> bool {
        self.service.signer.is_some()
    }

    /// Why the list changed after `since`. It only explains: what is no explanation is empty.
    pub async fn changes(&self, since: FeedVersion) -> Result<Vec<Explanation>, ServiceError> {
        let method = format!("/changes/{}/{since}", self.service.instance);
        let bytes = self.get(&method, "", LIST_BYTES).await?;
        Ok(explanation::read(&bytes))
    }

    async fn get(&self, method: &str, more: &str, most: usize) -> Result<Vec<u8>, ServiceError> {
        let Service { base, timeout, .. } = &self.service;
        let url = format!("{base}{method}?ClientRequestId={}{more}", self.guid);
        let answer = tokio::time::timeout(*timeout, self.follow(&url, most)).await;
        answer.unwrap_or_else(|_| {
            Err(ServiceError::new(
                ErrorKind::Timeout,
                format!(
                    "{base}{method}: no whole answer within {} s",
                    timeout.as_secs_f32()
                ),
            ))
        })
    }

    async fn follow(&self, url: &str, most: usize) -> Result<Vec<u8>, ServiceError> {
        let mut url: Uri = url
            .parse()
            .map_err(|error| ServiceError::new(ErrorKind::Setup, format!("{url}: {error}")))?;
        for _ in 0..=REDIRECTS {
            let response = self.ask(&url).await?;
            let at = |kind, text: String| {
                let host = url.authority().map_or("", |it| it.as_str());
                ServiceError::new(kind, format!("https://{host}{}: {text}", url.path()))
            };
            match response.status() {
                StatusCode::OK => return body(response, most).await.map_err(|(k, t)| at(k, t)),
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
            format!("{}: more than {REDIRECTS} redirections", self.service.base),
        ))
    }

    /// One request on a connection of its own.
    async fn ask(&self, url: &Uri) -> Result<Response<Incoming>, ServiceError> {
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
        let request = Request::get(target)
            .header(HOST, url.authority().map_or(host, |it| it.as_str()))
            .header(USER_AGENT, concat!("steer/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "gzip")
            .body(Body::empty())
            .map_err(|error| fail(ErrorKind::Setup, error.to_string()))?;
        sender.send_request(request).await.map_err(broken)
    }

    /// A connection to the server, or through the proxy to it.
    async fn connect(&self, url: &Uri) -> Result<TcpStream, ServiceError> {
        let host = url.host().unwrap_or_default();
        let port = url.port_u16().unwrap_or(443);
        let Some(proxy) = &self.service.proxy else {
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
            .service
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
        if let Some(device) = &self.service.device {
            // The table of the path, and no other, for a socket of its device: see the rules.
            setsockopt(&socket, BindToDevice, &device.into())?;
        }
        socket.connect(address).await
    }
}

fn tls(service: &Service) -> Result<ClientConfig, ServiceError> {
    let fail = |text: String| ServiceError::new(ErrorKind::Setup, text);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &service.ca_file {
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

/// The version in an answer for one cloud, or for all of them.
fn latest(bytes: &[u8], instance: Instance) -> Option<FeedVersion> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let of_instance = |record: &serde_json::Value| {
        let named = record["instance"].as_str()?;
        named
            .eq_ignore_ascii_case(instance.as_str())
            .then(|| record["latest"].as_str()?.parse().ok())?
    };
    match &value {
        serde_json::Value::Array(records) => records.iter().find_map(of_instance),
        record => of_instance(record),
    }
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
    fn the_version_of_the_right_cloud_is_read() {
        let one = br#"{"instance":"Worldwide","latest":"2026081400","odd":1}"#;
        let all = br#"[{"instance":"China","latest":"2026010100"},{"instance":"Worldwide","latest":"2026081400"}]"#;
        let wanted = "2026081400".parse().ok();
        assert_eq!(latest(one, Instance::Worldwide), wanted);
        assert_eq!(latest(all, Instance::Worldwide), wanted);
        assert_eq!(latest(one, Instance::China), None);
        for bad in [
            "",
            "{}",
            "[]",
            "7",
            r#"{"instance":"Worldwide","latest":"202608140"}"#,
            r#"{"instance":"Worldwide","latest":2026081400}"#,
        ] {
            assert_eq!(latest(bad.as_bytes(), Instance::Worldwide), None, "{bad}");
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
