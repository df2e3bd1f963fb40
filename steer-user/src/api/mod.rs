//! The controller's API: HTTP and JSON on a unix socket, for the command line and for scripts.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `POST /v1/reload` | [`Answer`]: configuration and feed read again, applied whole or not at all |
//! | `POST /v1/endpoints` | [`Order`] in, [`Answer`] out: a change of the endpoint list |
//! | `POST /v1/detach` | [`Answer`]: steering stopped and, once drained, everything removed |
//!
//! [`Metrics`] shows the same status on a TCP address, if the configuration names one.

mod client;
mod metrics;
mod server;
mod status;

pub use client::{Client, ClientError};
pub use metrics::{Metrics, open_metrics};
pub use server::{Command, Server, serve};
pub use status::{
    BreakoutStatus, BypassStatus, BypassedTo, ClassCounter, DeadManBreakout, DeadManFamily,
    DeadManStatus, DnsStatus, FamilyStatus, FeedStatus, LanStatus, NftStatus, PathHealth,
    PlanStatus, PreferenceHealth, PreferenceStatus, ProbeStatus, ResolverStatus, Status,
    SteeringState, TcpQueryStatus,
};

use serde::{Deserialize, Serialize};

use crate::endpoints::FeedVersion;

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was carried out.
    pub done: bool,
    /// What was done, or why not, for the operator.
    pub message: String,
}

impl Answer {
    /// It was carried out.
    pub fn done(message: impl Into<String>) -> Self {
        Self {
            done: true,
            message: message.into(),
        }
    }

    /// It was not.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            done: false,
            message: message.into(),
        }
    }
}

/// A change of the endpoint list that an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub action: Action,
    /// Which version; none: the one that the action is usually about.
    #[serde(default)]
    pub version: Option<FeedVersion>,
    /// Who wants it, for the journal.
    pub who: String,
    /// Why, for the journal.
    pub why: String,
}

/// What can be done with the endpoint list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Ask the service now.
    Update,
    /// Apply the list that is held back.
    Approve,
    /// Go back to an earlier list, and hold it.
    Rollback,
    /// Hold the list in use.
    Pin,
    /// Hold it no more.
    Unpin,
}

/// How long a drain may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// In seconds; 0 resets what still flows.
    pub seconds: u64,
}
