//! The names by which programs ask whether they may use a resolver of their own instead of the
//! network's: told that there are none, they use the network's.

/// Firefox's (support.mozilla.org, "Canary domain - use-application-dns.net") and those of iCloud
/// Private Relay (developer.apple.com, "Prepare your network for iCloud Private Relay").
pub(super) const NAMES: [&str; 3] = [
    "use-application-dns.net",
    "mask.icloud.com",
    "mask-h2.icloud.com",
];

/// What an export does not say of itself.
pub(super) const NOTE: &str = "The last lines have Firefox (unless its user chose otherwise) and \
                               iCloud Private Relay use this resolver";
