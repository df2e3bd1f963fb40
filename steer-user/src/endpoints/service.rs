//! The client of Microsoft's endpoint web service, or of a mirror of it: behind HTTPS, or a folder of
//! this machine.

use std::path::PathBuf;

use super::{
    Access, ErrorKind, FeedVersion, Instance, ServiceArea, ServiceError, Signer,
    explanation::{self, Explanation},
    fetch::Fetcher,
    folder, limits,
    signer::SIGNATURE_BYTES,
};

/// Microsoft's own.
pub const MICROSOFT: &str = "https://endpoints.office.com";
/// Before the folder of a mirror.
pub const FOLDER: &str = "file://";
/// An answer of the version method has some hundred bytes.
const VERSION_BYTES: usize = 64 << 10;
const LIST_BYTES: usize = 16 << 20;
const _: () = assert!(LIST_BYTES as u64 == limits::FILE_BYTES);

/// What is asked, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Before `/version`; `https://`, or `file://` for a folder; without a slash at its end.
    pub base: String,
    /// The cloud.
    pub instance: Instance,
    /// The tenant whose names take the place of wildcards.
    pub tenant: Option<String>,
    /// The areas that are asked for; empty: all.
    pub areas: Vec<ServiceArea>,
    /// Whether IPv6 prefixes are wanted.
    pub ipv6: bool,
    /// How it is reached.
    pub access: Access,
    /// Who must have signed a list; none: nobody.
    pub signer: Option<Signer>,
}

impl Service {
    /// The folder of a mirror that no server stands before.
    pub fn folder(&self) -> Option<PathBuf> {
        self.base.strip_prefix(FOLDER).map(PathBuf::from)
    }

    /// The files of that folder that change with a list.
    pub fn files(&self) -> Vec<PathBuf> {
        let Some(folder) = self.folder() else {
            return Vec::new();
        };
        let list = format!("endpoints/{}", self.instance);
        let signature = format!("{list}.minisig");
        let version = format!("version/{}", self.instance);
        [version, list, signature].map(|it| folder.join(it)).into()
    }
}

/// Asks the service.
#[derive(Clone)]
pub struct Client {
    service: Service,
    guid: String,
    source: Source,
}

/// Where the answers are.
#[derive(Clone)]
enum Source {
    Server(Fetcher),
    Folder(PathBuf),
}

impl Client {
    /// A client with this machine's GUID. Fails when no certificate authority can be read.
    pub fn new(service: Service, guid: String) -> Result<Self, ServiceError> {
        let source = match service.folder() {
            Some(folder) => Source::Folder(folder),
            None => Source::Server(Fetcher::new(service.access.clone())?),
        };
        Ok(Self {
            service,
            guid,
            source,
        })
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
            let wanted = format!("{} {version}", self.service.instance);
            signer.check(&list, &signature, &wanted).map_err(|reason| {
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
        let shown = format!("{}{method}", self.service.base);
        match &self.source {
            Source::Server(server) => {
                let url = format!("{shown}?ClientRequestId={}{more}", self.guid);
                server.get(&url, &shown, most).await
            }
            Source::Folder(folder) => {
                let path = folder.join(method.trim_start_matches('/'));
                folder::read(path, most, self.service.access.timeout).await
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
