//! Why there is no plan, in words for the operator.

use ipnet::IpNet;
use steer_common::{image::ImageError, names::TableError};

use super::{ClassLabel, RegistryFull};
use crate::endpoints::FeedError;

/// Why a plan could not be made. The one in use stays in use.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The feed does not fit this office.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// A prefix that is never steered was asked for.
    #[error("{who}: {prefix} holds {kind} addresses, which are never steered; remove the prefix")]
    NeverSteered {
        /// Who asked for it.
        who: ClassLabel,
        /// The prefix.
        prefix: IpNet,
        /// What kind of addresses.
        kind: &'static str,
    },
    /// Two includes whose names have the same id.
    #[error("the includes {0:?} and {1:?} get the same id from their names; rename one of them")]
    SameId(String, String),
    /// No class number is left.
    #[error(
        "{0}; stop steer with `steer detach` and remove the class registry from its state folder"
    )]
    Registry(#[from] RegistryFull),
    /// The names do not fit.
    #[error("the names do not fit: {0}; select fewer sets, or say [dns] queries = \"leave\"")]
    Names(#[from] TableError),
    /// The plan is larger than the tables.
    #[error("the plan does not fit: {source}; {hint}")]
    Tables {
        /// Which limit.
        source: ImageError,
        /// Who takes most, and what to do.
        hint: String,
    },
}
