//! A TLS handshake that looks at the certificate: a captive portal, or a box that opens TLS, has
//! none of the front door's names.

use std::{fmt, io, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::Identity;

/// Whose certificates are believed.
#[derive(Clone, Debug)]
pub struct Trust {
    provider: Arc<CryptoProvider>,
    /// None: any certificate will do.
    authorities: Option<Arc<WebPkiServerVerifier>>,
}

/// Why no trust could be made.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of more certificates.
    #[error("[health] trust: {file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The box has no certificates of authorities.
    #[error(
        "[health] identity: this box trusts no certificate authority, so no front door's certificate \
         can be verified and any TLS answer counts. Install the package ca-certificates, or write \
         identity = \"any\""
    )]
    Empty,
}

impl Trust {
    /// Any certificate will do.
    pub fn any() -> Self {
        Self {
            provider: Arc::new(ring::default_provider()),
            authorities: None,
        }
    }

    /// The trust that a configuration asks for: the system's authorities and those of a file.
    ///
    /// Fails when the file cannot be read, or there is no authority at all.
    pub fn new(identity: Identity, more: Option<&Path>) -> Result<Self, TrustError> {
        let any = Self::any();
        if identity == Identity::Any {
            return Ok(any);
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = more {
            let failed = |reason: String| TrustError::File {
                file: path.display().to_string(),
                reason,
            };
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| failed(error.to_string()))?;
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(failed("holds no certificate of an authority".into()));
            }
        }
        let provider = Arc::clone(&any.provider);
        let authorities =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self {
            authorities: Some(authorities.map_err(|_| TrustError::Empty)?),
            ..any
        })
    }

    /// Shakes hands; the certificate must hold one of the names, if there are any.
    ///
    /// Fails with what an operator should know.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        names: &[String],
    ) -> Result<(), String> {
        let names: Vec<ServerName<'static>> = names
            .iter()
            .filter_map(|name| ServerName::try_from(name.clone()).ok())
            .collect();
        let peer = stream.peer_addr().map_err(|error| error.to_string())?;
        let first = names.first().cloned();
        let asked = first.unwrap_or_else(|| ServerName::from(peer.ip()));
        let verifier = Verifier {
            names,
            provider: Arc::clone(&self.provider),
            authorities: self.authorities.clone(),
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        match TlsConnector::from(Arc::new(config))
            .connect(asked, stream)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => Err(explained(&error)),
        }
    }
}

fn explained(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|it| it.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "its certificate is by nobody this box trusts: something between opens TLS, or a portal \
             wants a login"
                .into()
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "its certificate is for other names: something else answers in its place".into(),
        _ => format!("TLS fails: {error}"),
    }
}

struct Verifier {
    names: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
    authorities: Option<Arc<WebPkiServerVerifier>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = self.authorities.as_ref().filter(|_| !self.names.is_empty()) else {
            return Ok(ServerCertVerified::assertion());
        };
        let mut result = Ok(ServerCertVerified::assertion());
        for name in &self.names {
            result =
                authorities.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
            match &result {
                Ok(_) => break,
                // A router without a battery wakes up in the past.
                Err(Error::InvalidCertificate(
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. },
                )) => return Ok(ServerCertVerified::assertion()),
                Err(_) => {}
            }
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
